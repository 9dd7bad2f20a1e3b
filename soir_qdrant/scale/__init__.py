"""Many machines: images through Ray Data into one collection."""

from typing import TYPE_CHECKING, Any

from soir_qdrant.errors import ConfigError
from soir_qdrant.scale.embed import Embed as Embed
from soir_qdrant.scale.ingest import LOCAL as LOCAL
from soir_qdrant.scale.ingest import ingest as ingest
from soir_qdrant.scale.target import Target as Target

if TYPE_CHECKING:
    from soir_qdrant.scale.sink import QdrantSink as QdrantSink


def __getattr__(name: str) -> Any:
    if name != "QdrantSink":
        raise AttributeError(name)
    try:
        from soir_qdrant.scale.sink import QdrantSink
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'soir-qdrant[ray]'") from error
    return QdrantSink
