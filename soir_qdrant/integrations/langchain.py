"""A retriever of LangChain: images, or words where the profile reads them, to the images that hold the thing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from soir_qdrant.errors import ConfigError
from soir_qdrant.integrations.hit_fields import hit_fields
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Text

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise ConfigError(f"{error}: pip install 'soir-qdrant[langchain]'") from error


class SoirRetriever(BaseRetriever):
    """Retrieves the images that hold one thing. `invoke("mug.png")`, `invoke("room.jpg", box=(410, 220, 470, 300))`.

    A document's `page_content` is the place of the image's file, its `metadata` has the score, the box that matched
    and your own payload (see `hit_fields`).

    Attributes:
        searcher: of the collection.
        reads: what a string is: the path of an image, or words, where the profile's encoder reads them.
        search_kwargs: fields of SearchOptions, such as `{"limit": 3}`; `invoke` takes them as keywords too.
    """

    searcher: SoirSearcher
    reads: Literal["image", "words"] = "image"
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's
        **keywords: Any,
    ) -> list[Document]:
        what = Text(query) if self.reads == "words" else query
        hits = self.searcher.search(what, **{**self.search_kwargs, **keywords})
        return [Document(hit.uri or "", id=str(hit.id), metadata=hit_fields(hit)) for hit in hits]
