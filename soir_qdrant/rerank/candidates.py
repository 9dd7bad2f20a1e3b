"""Reranking by Q-Perturbation: the candidates' pictures are opened again, and the query reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.image_query import WINNER, ImagePerturbation
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.perturb import PerturbSettings
from soir_qdrant.types import RGB, Box, Failure, Hit, Mask, SceneObject, Vector

READ = "patches-1"  # what the query reads of a crop: the patches that enter the last block


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The k objects of one picture. boxes: float32 [k, 4] in pixels; vectors: float32 [k, dim], as
    `describe` makes them; tokens: float16 [k, N, D], those that enter the last block; shares: float16
    [k, N - 1], 0..1, of each patch inside the object."""

    boxes: Tensor
    vectors: Tensor
    tokens: Tensor
    shares: Tensor


class QPerturbation:
    """Reranks hits by their pictures.

    The score of an image, -1..1, is the weighted mean of two cosines, each of its best object: of the
    object's vector with the query's, as in a search for single objects, and of what the query reads in the
    object's crop (see `image_query`) with the query's own patches, whitened alike. The box is the first's.

    pipeline: that the collection was filled with. settings: of the perturbation. cache: of the candidates'
    tokens; None makes one in the usual place. weight: 0..1, of the reading in the score; 0 leaves it out
    (and saves a fifth of the time, or nearly all where tokens are cached; see docs/concepts/q-perturbation.md).
    Raises ConfigError for an encoder without CLS token or a weight out of range.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        settings: PerturbSettings = WINNER,
        cache: TokenCache | None = None,
        weight: float = 0.1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight {weight}: give the reading's share of the score, 0 to 1")
        self.pipeline = pipeline
        self.reader = ImagePerturbation(pipeline.encoder.last_block, settings)
        self.cache = TokenCache() if cache is None else cache
        self.weight = weight
        self.max_pixels = max_pixels

    def rerank(
        self,
        image: RGB,
        hits: Sequence[Hit],
        *,
        box: Box | None = None,
        mask: Mask | None = None,
        vector: Vector | None = None,
        failed: list[Failure] | None = None,
    ) -> list[Hit]:
        """The same hits in a new order, each with the new score and the box of its best object.

        image, box, mask: the query, as in `Pipeline.query`. vector: float32 [dim], unit length, of what is
        searched for, where that is more than this picture shows (examples, negatives). A hit whose picture
        is missing, unreadable or another than was ingested keeps its place, score and box; it is added to
        `failed` and logged.
        """
        with torch.inference_mode():
            head, seen, own = self._query(image, box, mask)
            query = head, seen, own if vector is None else vector
            return reordered(hits, lambda hit: self._scored(hit, query), failed)

    def candidate(self, hit: Hit) -> Candidate:
        """The objects of a hit's picture, out of the cache or encoded again from `hit.uri`.

        Raises ImageError where the picture is needed, but missing or another than was ingested.
        """
        boxes = hit_image.boxes(hit)
        key = self._key(hit_image.sha256(hit), boxes)
        found = self.cache.get(key)
        if found is None:
            found = self._encode(hit_image.picture(hit, self.max_pixels).rgb, boxes)
            self.cache.put(key, found)
        return Candidate(**found)

    def _encode(self, image: RGB, boxes: list[Box]) -> dict[str, Tensor]:
        height, width = image.shape[:2]
        boxes = boxes or [(0.0, 0.0, float(width), float(height))]
        objects = [SceneObject(box) for box in boxes]
        crops, masks = self.pipeline.crops([image], [self.pipeline.segment(image, objects)])
        encoding = self.pipeline.encode_whole(crops, masks)
        tokens = torch.as_tensor(encoding.tokens)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "vectors": torch.from_numpy(self.pipeline.describe(encoding)),
            "tokens": tokens.half().cpu(),
            "shares": _shares(masks, tokens.shape[1] - 1).half(),
        }

    def _query(self, image: RGB, box: Box | None, mask: Mask | None) -> tuple[Tensor, Vector, Vector]:
        """The query's CLS token per head, its own patches as `_described`, [d], and its vector, [dim]."""
        encoding = self.pipeline.encode_whole(*self.pipeline.query_crop(image, box=box, mask=mask))
        query = self.reader.query(torch.as_tensor(encoding.tokens)[0].to(self.reader.block.device))
        return query, self._described(encoding.layers[:, -2])[0], self.pipeline.describe(encoding)[0]

    def _scored(self, hit: Hit, query: tuple[Tensor, Vector, Vector]) -> Hit:
        head, seen, vector = query
        found, device = self.candidate(hit), self.reader.block.device
        scores = found.vectors.numpy() @ vector
        best = int(scores.argmax())
        x0, y0, x1, y1 = found.boxes[best].tolist()
        score = (1 - self.weight) * float(scores[best])
        if self.weight:
            tokens, shares = found.tokens.to(device), found.shares.to(device)
            read = self.reader.read(head, self.reader.prepare(tokens, shares), shares)
            score += self.weight * float((self._described(read.cpu().numpy()) @ seen).max())
        return replace(hit, score=score, box=(x0, y0, x1, y1), object=best)

    def _described(self, rows: Vector) -> Vector:
        """Means of patches, [k, D] -> unit rows to compare, [k, d]."""
        if self.whitening is None:
            return normalize(rows)
        # The shipped whitening is of all features side by side, of unit length together.
        parts = len(self.pipeline.settings.vector.features)
        return self.whitening(normalize(rows) / np.float32(parts**0.5))

    @cached_property
    def whitening(self) -> Whitening | None:
        """The part of the pipeline's whitening that concerns the patches; None where it has none."""
        whole, names = self.pipeline.whitening, self.pipeline.settings.vector.features
        if whole is None or READ not in names:
            return None
        sizes = [self.pipeline.encoder.dim if name == "cls" else self.reader.block.dim for name in names]
        first = sum(sizes[: names.index(READ)])
        rows = slice(first, first + self.reader.block.dim)
        return Whitening(whole.mean[rows], whole.matrix[rows], whole.variance)

    def _key(self, sha256: str, boxes: list[Box]) -> str:
        made_of = [sha256, boxes, self.pipeline.fingerprint, self.pipeline.segmenter.name]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _shares(masks: np.ndarray, patches: int) -> Tensor:
    """Masks [k, S, S], 0..1 -> the share of each patch inside, [k, patches]."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks)[:, None], round(patches**0.5))
    return pooled.flatten(1)
