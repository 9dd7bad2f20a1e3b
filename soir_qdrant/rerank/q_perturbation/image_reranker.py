"""Reranking by Q-Perturbation: the candidates' images are opened again, and the query reads them."""

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
from soir_qdrant.rerank.base import Need, Page, SearchQuery, Window, first_candidates, query_image
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
from soir_qdrant.rerank.q_perturbation.reading import WINNER, ImagePerturbation
from soir_qdrant.types import RGB, Box, Failure, Hit, Vector

READ = "patches-1"  # what the query reads of a crop: the patches that enter the last block


@dataclass(frozen=True, slots=True, eq=False)
class ObjectTokens:
    """The k objects of one image.

    Attributes:
        boxes: float32 [k, 4] in pixels.
        vectors: float32 [k, dim], as `Pipeline.describe` makes them.
        tokens: float16 [k, N, D], those that enter the last block.
        shares: float16 [k, N - 1], 0..1, of each patch inside the object.
    """

    boxes: Tensor
    vectors: Tensor
    tokens: Tensor
    shares: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _QueryReading:
    """head_queries: [heads, d], of the CLS token; rows: float32 [d], its own patches as `_described`;
    vector: float32 [dim], what is searched for."""

    head_queries: Tensor
    rows: Vector
    vector: Vector


class QPerturbation:
    """`rerank="q-perturbation"`: hits by their images, opened again.

    The score of an image, -1..1, is the weighted mean of two cosines, each of its best object: of the
    object's vector with the query's, as in a search for single objects, and of what the query reads in the
    object's crop (see `ImagePerturbation`) with the query's own patches, whitened alike. The box is the
    first's.

    Args:
        pipeline: that the collection was filled with.
        settings: of the perturbation.
        cache: of the candidates' tokens; None makes one in the usual place.
        weight: 0..1, of the reading in the score; 0 leaves it out (and saves a fifth of the time, or nearly
            all where tokens are cached; see docs/concepts/q-perturbation.md).
        candidates: hits to order where `prefetch` does not say.
        max_pixels: of the largest image that is opened.

    Raises:
        ConfigError: for a weight out of range.
    """

    name = "q-perturbation"
    needs: frozenset[Need] = frozenset({"payload", "image", "query image"})

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        settings: PerturbSettings = WINNER,
        cache: TokenCache | None = None,
        weight: float = 0.1,
        candidates: int = 50,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight {weight}: give the reading's share of the score, 0 to 1")
        self.pipeline = pipeline
        self.settings = settings
        self.cache = TokenCache() if cache is None else cache
        self.weight = weight
        self.candidates = candidates
        self.max_pixels = max_pixels

    def window(self, page: Page) -> Window:
        """See `first_candidates`."""
        return first_candidates(self.candidates, page, self.name)

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """Order hits by their images.

        Args:
            query: its image is needed.
            hits: with the payload as it is stored, codes or not.
            failed: gets those whose image is missing, unreadable or another than was ingested. They keep
                their place and score.

        Returns:
            The same hits, each with the new score and the box of its best object.

        Raises:
            ConfigError: for a query without image, or an encoder without CLS token.
        """
        with torch.inference_mode():
            reading = self._query(query)
            return reordered(hits, lambda hit: self._scored(hit, reading), failed)

    def tokens(self, hit: Hit) -> ObjectTokens:
        """The objects of a hit's image, out of the cache or encoded again from `hit.uri`.

        Raises:
            ImageError: where the image is needed, but missing or another than was ingested.
        """
        boxes = hit_image.boxes(hit)
        key = self._key(hit_image.sha256(hit), boxes)
        tensors = self.cache.get(key)
        if tensors is None:
            tensors = self._encode(hit_image.open_image(hit, self.max_pixels).rgb, boxes)
            self.cache.put(key, tensors)
        return ObjectTokens(**tensors)

    @cached_property
    def reader(self) -> ImagePerturbation:
        """Reads crops on the encoder's last block. Raises ConfigError for an encoder without CLS token."""
        return ImagePerturbation(self.pipeline.encoder.last_block, self.settings)

    def _encode(self, image: RGB, boxes: list[Box]) -> dict[str, Tensor]:
        boxes, crops, masks = hit_image.object_crops(self.pipeline, image, boxes)
        encoding = self.pipeline.encode_whole(crops, masks)
        tokens = torch.as_tensor(encoding.tokens)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "vectors": torch.from_numpy(self.pipeline.describe(encoding, masks)),
            "tokens": tokens.half().cpu(),
            "shares": _shares(masks, tokens.shape[1] - self.reader.block.prefix_tokens).half(),
        }

    def _query(self, query: SearchQuery) -> _QueryReading:
        image = query_image(self, query)
        crop = self.pipeline.query_crop(image.rgb, box=query.box, mask=image.alpha)
        encoding = self.pipeline.encode_whole(*crop)
        tokens = torch.as_tensor(encoding.tokens)[0].to(self.reader.block.device)
        rows = self._described(encoding.layers[:, -2])[0]
        return _QueryReading(self.reader.query(tokens), rows, query.vector)

    def _scored(self, hit: Hit, reading: _QueryReading) -> Hit:
        objects, device = self.tokens(hit), self.reader.block.device
        scores = objects.vectors.numpy() @ reading.vector
        best = int(scores.argmax())
        x0, y0, x1, y1 = objects.boxes[best].tolist()
        score = (1 - self.weight) * float(scores[best])
        if self.weight:
            tokens, shares = objects.tokens.to(device), objects.shares.to(device)
            rows = self.reader.read(reading.head_queries, self.reader.prepare(tokens, shares), shares)
            score += self.weight * float((self._described(rows.cpu().numpy()) @ reading.rows).max())
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
        start = sum(sizes[: names.index(READ)])
        rows = slice(start, start + self.reader.block.dim)
        return Whitening(whole.mean[rows], whole.matrix[rows], whole.variance)

    def _key(self, sha256: str, boxes: list[Box]) -> str:
        contents = [sha256, boxes, self.pipeline.fingerprint, self.pipeline.segmenter.name]
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _shares(masks: np.ndarray, patches: int) -> Tensor:
    """Masks [k, S, S], 0..1 -> the share of each patch inside, [k, patches]."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks)[:, None], round(patches**0.5))
    return pooled.flatten(1)
