"""Reranking by the images themselves: each candidate is opened again, and its stored objects are described anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.geometry.crops import Crops
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import FirstCandidates, Need, SearchQuery
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.order import reordered
from soir_qdrant.types import Box, Encoding, Failure, Hit, LoadedImage, Vector


class ImageReranker(FirstCandidates):
    """`rerank="image"`: hits by their images, opened again.

    The score of an image, -1..1, is the dot product of the query's vector with that of its best object, described
    anew; the box is that object's. It is what `rerank="objects"` gives without opening anything, where the
    collection keeps the vectors of objects.

    Args:
        pipeline: that the collection was filled with.
        cache: of what was computed of the candidates; None makes one in the usual place.
        candidates: hits to order where `prefetch` does not say.
        max_pixels: of the largest image that is opened.
    """

    name = "image"
    needs: frozenset[Need] = frozenset({"payload", "image"})
    contents: ClassVar[tuple[str, ...]] = ("boxes", "vectors")  # what the cache keeps of a candidate

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        cache: TokenCache | None = None,
        candidates: int = 50,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.pipeline = pipeline
        self.cache = TokenCache() if cache is None else cache
        self.candidates = candidates
        self.max_pixels = max_pixels

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """Order hits by their images.

        Args:
            query: an image, words or a vector.
            hits: with the payload as it is stored, codes or not.
            failed: gets those whose image is missing, unreadable or another than was ingested. They keep
                their place and score.

        Returns:
            The same hits, each with the new score and the box of its best object.
        """
        return reordered(hits, lambda hit: by_best_object(hit, self.objects(hit), query.vector), failed)

    def objects(self, hit: Hit) -> dict[str, Tensor]:
        """`contents` of a hit's objects, out of the cache or computed from the image at `hit.uri`: boxes, float32
        [k, 4] in pixels; vectors, float32 [k, dim], as `Pipeline.describe` makes them.

        Raises:
            ImageError: where the image is needed, but missing or another than was ingested.
        """
        boxes = hit_image.boxes(hit)
        key = hit_image.key(self.pipeline, hit, boxes, self.max_pixels, self.contents)
        tensors = self.cache.get(key)
        if tensors is None:
            image = hit_image.open_image(hit, self.max_pixels)
            with torch.inference_mode():
                tensors = self._described(image, boxes)
            self.cache.put(key, tensors)
        return tensors

    def _described(self, image: LoadedImage, boxes: list[Box]) -> dict[str, Tensor]:
        boxes, crops = hit_image.object_crops(self.pipeline, image, boxes)
        return self._contents(boxes, self._encoding(crops), crops.masks)

    def _encoding(self, crops: Crops) -> Encoding:
        return self.pipeline.encode(crops, with_tokens=self.pipeline.settings.vector.refines_crops)

    def _contents(
        self, boxes: list[Box], encoding: Encoding, masks: NDArray[np.float32]
    ) -> dict[str, Tensor]:
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "vectors": torch.from_numpy(self.pipeline.describe(encoding, masks)),
        }


def by_best_object(hit: Hit, objects: dict[str, Tensor], query: Vector) -> Hit:
    """The hit with the score and the box of the object that is most similar to the query, float32 [dim]."""
    scores = objects["vectors"].numpy() @ query
    best = int(scores.argmax())
    x0, y0, x1, y1 = objects["boxes"][best].tolist()
    return replace(hit, score=float(scores[best]), box=(x0, y0, x1, y1), object=best)
