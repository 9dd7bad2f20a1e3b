"""A component of Haystack: an image, or words where the profile reads them, to the images that hold the thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.integrations.hit_fields import hit_fields
from soir_qdrant.search.options import SearchOptions
from soir_qdrant.search.searcher import SoirSearcher

try:
    from haystack import Document, component
    from haystack.dataclasses import ByteStream
except ImportError as error:
    raise ConfigError(f"{error}: pip install 'soir-qdrant[haystack]'") from error


@component
class SoirRetriever:
    """Retrieves the images that hold one thing.

    Args:
        searcher: of the collection.
        top_k: images.
        options: how to search else. The component is not written to files with a pipeline, as a searcher is not.
    """

    def __init__(self, searcher: SoirSearcher, top_k: int = 10, options: SearchOptions | None = None) -> None:
        self.searcher, self.top_k, self.options = searcher, top_k, options

    @component.output_types(documents=list[Document])
    def run(
        self,
        image: str | Path | ByteStream | None = None,
        text: str | None = None,
        box: tuple[float, float, float, float] | None = None,
        top_k: int | None = None,
        filters: models.Filter | None = None,
    ) -> dict[str, Any]:
        """Search.

        Args:
            image: of the thing: a path, or the bytes of a file.
            text: words instead, where the profile's encoder reads them.
            box: x0, y0, x1, y1 in pixels, the thing in the image.
            top_k: images, in place of the component's.
            filters: Qdrant's.

        Returns:
            `documents`, best first: `content` is the place of the image's file, `score`, and `meta` with the box that
            matched and your own payload (see `hit_fields`).
        """
        query = image.data if isinstance(image, ByteStream) else image
        limits = {"limit": self.top_k if top_k is None else top_k, **({"filter": filters} if filters else {})}
        hits = self.searcher.search(query, text=text, box=box, options=self.options, **limits)  # type: ignore[arg-type]
        documents = [
            Document(id=str(hit.id), content=hit.uri or "", score=float(hit.score), meta=hit_fields(hit))
            for hit in hits
        ]
        return {"documents": documents}
