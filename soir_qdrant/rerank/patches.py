"""Reranking by late interaction: the query's patches against those of each candidate's objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from soir_qdrant.errors import ConfigError
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.payload import pack_patches, unpack_patches
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import FirstCandidates, Need, SearchQuery, query_image
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.codes import CodeReranker
from soir_qdrant.rerank.late import WEIGHT, by_patches, stored_patches
from soir_qdrant.rerank.order import reordered
from soir_qdrant.types import Failure, Hit, Vector


class PatchReranker(FirstCandidates):
    """`rerank="patches"`: hits by their best object's patches and code.

    The score of an image, -1..1.25, is the weighted mean of the score that it has by codes and of its best
    object's late interaction with the query (`pooling.patches.late_interaction`), and what it gains by words
    (`written.gain`) in both. The box is that of the object that late interaction and the code's cosine together make
    the `likeliest`.

    Patches are read out of the payload, where they were stored (`SoirIngestor(object_patches=True)`), else
    computed from the image at the hit's uri and cached: seconds an image on a CPU.

    Args:
        pipeline: that the collection was filled with.
        weight: of late interaction in the score, 0..1.
        candidates: hits to order where `prefetch` does not say.
        cache: of patches that were computed; None makes one in the usual place.
        max_pixels: of the largest image that is opened.

    Raises:
        ConfigError: for a weight out of range.
    """

    name = "patches"
    needs: frozenset[Need] = frozenset({"payload", "patches", "image", "query image", "written"})

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        weight: float = WEIGHT,
        candidates: int = 100,
        cache: TokenCache | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight {weight}: give the share of late interaction in the score, 0 to 1")
        self.pipeline = pipeline
        self.weight = weight
        self.candidates = candidates
        self.cache = TokenCache() if cache is None else cache
        self.max_pixels = max_pixels

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """Order hits by patches.

        Args:
            query: its image is needed.
            hits: with the payload as it is stored.
            failed: gets those whose patches are neither stored nor can be computed, since the image is
                missing, or not what was ingested. They keep the place and score that they have by codes.

        Returns:
            The same hits, each with the new score and the box of its best object.

        Raises:
            ConfigError: for a query without image, or an encoder without patch tokens or their whitening.
        """
        image, rows = query_image(self, query), query.patches
        if rows is None:
            crops = self.pipeline.query_crop(image.rgb, box=query.box, mask=image.alpha)
            (rows,) = self.pipeline.patches(crops)
        by_codes = CodeReranker().rerank(query, hits)
        return reordered(
            by_codes,
            lambda hit: by_patches(hit, query, rows, self.patches(hit), self.weight),
            failed,
        )

    def patches(self, hit: Hit) -> list[Vector]:
        """The patches of each stored object of a hit, float32 [n, d], unit rows.

        Raises:
            ImageError: where they are not stored, and the image is missing or not what was ingested.
        """
        dim = self.pipeline.patch_projection.dim
        stored = stored_patches(hit, dim)
        return stored if stored is not None else [unpack_patches(one, dim) for one in self._computed(hit)]

    def _computed(self, hit: Hit) -> list[str]:
        boxes = hit_image.boxes(hit)
        dim = self.pipeline.patch_projection.dim
        key = hit_image.key(self.pipeline, hit, boxes, self.max_pixels, "signs", dim)
        cached = self.cache.get(key)
        if cached is not None:
            return bytes(cached["patches"].numpy()).decode().split()
        image = hit_image.open_image(hit, self.max_pixels)
        _, crops = hit_image.object_crops(self.pipeline, image, boxes)
        packed = [pack_patches(rows) for rows in self.pipeline.patches(crops)]
        text = np.frombuffer(" ".join(packed).encode(), np.uint8)
        self.cache.put(key, {"patches": torch.from_numpy(text.copy())})
        return packed
