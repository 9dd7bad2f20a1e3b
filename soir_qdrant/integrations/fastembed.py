"""Images for qdrant-client's own calls: `models.Image(image="shelf.jpg", model="soir/embedded")`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from soir_qdrant.config import PROFILES
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import MAX_PIXELS, Source, load
from soir_qdrant.query import open_query
from soir_qdrant.types import Box, Vector

try:
    from fastembed import ImageEmbedding
    from fastembed.common.model_description import DenseModelDescription, ModelSource
    from fastembed.image.image_embedding_base import ImageEmbeddingBase
    from qdrant_client.embed.embedder import Embedder
except ImportError as error:
    raise ConfigError(f"{error}: pip install 'soir-qdrant[fastembed]'") from error

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline

HOME = ModelSource(
    url="https://github.com/soir-qdrant/soir-qdrant"
)  # fastembed wants one; nothing is fetched
ONE_IMAGE = (str, bytes, bytearray, memoryview, np.ndarray)  # though they can be iterated
IGNORED = {"providers", "cuda", "device_ids", "lazy_load", "local_files_only"}  # fastembed's, for ONNX models

# Whether the client embeds for a query: it says so for texts alone, see `_note_queries`.
_is_query: ContextVar[bool] = ContextVar("is_query", default=False)


@dataclass(frozen=True, slots=True)
class _Registered:
    """A pipeline by name. lock: held while its models run."""

    description: DenseModelDescription
    pipeline: Pipeline
    lock: RLock


def register(name: str | None = None, *, profile: str = "embedded", pipeline: Pipeline | None = None) -> str:
    """Make a pipeline known to fastembed and qdrant-client, as a model of images.

    What is upserted is looked at as `SoirIngestor` does: its objects are found and pooled into one vector. What is
    searched with (`query_points` and the like) is looked at as `SoirSearcher` does: as one thing. The models of the
    pipeline are loaded now. Calls with `parallel=` do not know it: their processes are new ones.

    Args:
        name: of the model; None is "soir/" and the profile's name, or that of its file without the suffix. A name
            that is known is replaced.
        profile: a name or a file of settings.
        pipeline: in place of the profile's.

    Returns:
        The name, for `models.Image(image=..., model=name)`. Of options, `models.Image(..., options={"box": (x0, y0,
        x1, y1)})` names the thing in a query image, and `{"query": True}`, or False, says what the image is.

    Raises:
        ConfigError: where fastembed is missing, or for an unknown profile.
    """
    from soir_qdrant.assembly import make_pipeline

    if name is None:
        known = pipeline.settings.profile if pipeline else profile
        name = f"soir/{known if known in PROFILES else Path(known).stem}"
    pipeline = pipeline or make_pipeline(profile)
    description = DenseModelDescription(
        model=name,
        sources=HOME,
        model_file="",
        description="Small object image retrieval: an image as its objects, a query as one thing",
        license="apache-2.0",
        size_in_GB=0.1,
        dim=pipeline.dim,
    )
    SoirImageEmbedding.registered[name.lower()] = _Registered(description, pipeline, RLock())
    if SoirImageEmbedding not in ImageEmbedding.EMBEDDINGS_REGISTRY:
        ImageEmbedding.EMBEDDINGS_REGISTRY.append(SoirImageEmbedding)
        _note_queries()
    return name


class SoirImageEmbedding(ImageEmbeddingBase):
    """What fastembed makes of a registered name.

    Args:
        model_name: as registered.
        cache_dir, threads: fastembed's; not used.
        query: whether the images are queries; None: where the client embeds for a search.
        box: x0, y0, x1, y1 in pixels, the thing in a query image.
        options: what fastembed hands to its own models is ignored.

    Raises:
        ConfigError: for another option.
    """

    registered: ClassVar[dict[str, _Registered]] = {}

    def __init__(
        self,
        model_name: str,
        cache_dir: str | None = None,
        threads: int | None = None,
        *,
        query: bool | None = None,
        box: Box | None = None,
        **options: Any,
    ) -> None:
        unknown = ", ".join(sorted(options.keys() - IGNORED))
        if unknown:
            raise ConfigError(f"{model_name} has no option {unknown}: its options are query and box")
        super().__init__(model_name, cache_dir, threads)
        self.query, self.box = query, box

    @classmethod
    def _list_supported_models(cls) -> list[DenseModelDescription]:
        return [known.description for known in cls.registered.values()]

    def embed(
        self,
        images: Source | Iterable[Source],
        batch_size: int = 16,
        parallel: int | None = None,
        **options: Any,  # noqa: ARG002 - of other models
    ) -> Iterator[Vector]:
        """The vectors of images.

        Args:
            images: one or more, in any form that the ingestor takes.
            batch_size: images whose objects are looked at together.
            parallel: processes; None alone.

        Yields:
            float32 [D], unit length, for each image.

        Raises:
            ImageError: for an image that cannot be read.
            ConfigError: for several processes.
        """
        if parallel is not None and parallel != 1:
            raise ConfigError(f"parallel={parallel}: {self.model_name} runs in one process; leave it out")
        listed = (
            list(images) if isinstance(images, Iterable) and not isinstance(images, ONE_IMAGE) else [images]
        )
        known = self.registered[self.model_name.lower()]
        if _is_query.get() if self.query is None else self.query or self.box is not None:
            for image in listed:
                yield self._query_vector(known, image)
            return
        for start in range(0, len(listed), batch_size):
            loaded = [load(image) for image in listed[start : start + batch_size]]
            with known.lock:
                scenes = known.pipeline.scenes(loaded)
            yield from (scene.vector for scene in scenes)

    def _query_vector(self, known: _Registered, image: Source) -> Vector:
        opened, box = open_query(image, self.box, MAX_PIXELS)
        with known.lock:
            return known.pipeline.query(opened.rgb, box=box, mask=opened.alpha)


def _note_queries() -> None:
    """Let `Embedder.embed` of qdrant-client say whether it embeds for a search: it hands that on for texts, and drops
    it for images."""
    embed = Embedder.embed

    @wraps(embed)
    def noting(self: Embedder, *arguments: Any, **options: Any) -> Any:
        token = _is_query.set(bool(options.get("is_query")))
        try:
            return embed(self, *arguments, **options)
        finally:
            _is_query.reset(token)

    Embedder.embed = noting  # type: ignore[method-assign]
