"""Reranking by late interaction: the query's patches against those of each candidate's objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from soir_qdrant.errors import ConfigError
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.patches import late_interaction
from soir_qdrant.qdrant.payload import KEY, PATCHES, code_cosines, pack_patches, unpack_patches
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import Need, SearchQuery
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.order import reordered
from soir_qdrant.types import Failure, Hit, SceneObject, Vector

WEIGHT = 0.7  # of the patches in the score; see docs/concepts/search.md


class PatchReranker:
    """Orders hits by their best object's patches and code.

    The score of an image, -1..1, is the weighted mean of the score that it has by codes and of its best
    object's late interaction with the query (`vision.patches.late_interaction`). The box is that of the
    object for which late interaction and the code's cosine are largest together.

    Patches are read out of the payload, where they were stored (`SoirIngestor(object_patches=True)`), else
    computed from the picture at the hit's uri and cached: seconds a picture on a CPU.

    Args:
        pipeline: that the collection was filled with.
        weight: of late interaction in the score, 0..1.
        cache: of patches that were computed; None makes one in the usual place.
        max_pixels: of the largest picture that is opened.

    Raises:
        ConfigError: for a weight out of range, or an encoder without patch tokens.
    """

    name = "patches"
    needs: frozenset[Need] = frozenset({"payload", "picture", "query picture"})

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        weight: float = WEIGHT,
        cache: TokenCache | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight {weight}: give the share of late interaction in the score, 0 to 1")
        self.pipeline = pipeline
        self.projection = pipeline.patch_projection
        self.weight = weight
        self.cache = TokenCache() if cache is None else cache
        self.max_pixels = max_pixels

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The same hits, each with the new score and the box of its best object.

        Args:
            query: its picture is needed.
            hits: with the payload as it is stored, and the score that they have by codes.
            failed: gets those that keep their place and score, since their patches are neither stored nor
                to be computed: a picture that is missing, or not what was ingested. They are logged too.

        Raises:
            ConfigError: for a query that is no picture.
        """
        if query.image is None:
            raise ConfigError('rerank="patches" compares pictures: this query is none')
        image = query.image
        crops, masks = self.pipeline.query_crop(image.rgb, box=query.box, mask=image.alpha)
        (own,) = self.pipeline.patches(crops, masks)
        return reordered(hits, lambda hit: self._scored(hit, own, query.vector), failed)

    def candidate(self, hit: Hit) -> list[Vector]:
        """The patches of each stored object of a hit, float32 [n, d], unit rows.

        Raises ImageError where they are not stored, and the picture is missing or not what was ingested.
        """
        packed = hit.payload.get(KEY, {}).get(PATCHES)
        if packed is None:
            packed = self._computed(hit)
        return [unpack_patches(one, self.projection.dim) for one in packed]

    def _computed(self, hit: Hit) -> list[str]:
        boxes = hit_image.boxes(hit)
        key = self._key(hit_image.sha256(hit), boxes)
        cached = self.cache.get(key)
        if cached is not None:
            return bytes(cached["patches"].numpy()).decode().split()
        image = hit_image.picture(hit, self.max_pixels).rgb
        height, width = image.shape[:2]
        boxes = boxes or [(0.0, 0.0, float(width), float(height))]
        objects = self.pipeline.segment(image, [SceneObject(box) for box in boxes])
        packed = [
            pack_patches(rows) for rows in self.pipeline.patches(*self.pipeline.crops([image], [objects]))
        ]
        text = np.frombuffer(" ".join(packed).encode(), np.uint8)
        self.cache.put(key, {"patches": torch.from_numpy(text.copy())})
        return packed

    def _scored(self, hit: Hit, own: Vector, vector: Vector) -> Hit:
        boxes = hit_image.boxes(hit)
        late = late_interaction(own, self.candidate(hit))
        by_code = code_cosines(hit.payload, vector)
        if by_code is None or len(by_code) != len(late):
            by_code = np.zeros_like(late)
        best = int(np.argmax(late + by_code))
        score = (1 - self.weight) * hit.score + self.weight * float(late.max())
        return replace(hit, score=score, box=boxes[best] if boxes else None, object=best if boxes else None)

    def _key(self, sha256: str, boxes: list[Any]) -> str:
        pipeline = self.pipeline
        made_of = [sha256, boxes, pipeline.fingerprint, pipeline.segmenter.name, "signs", self.projection.dim]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
