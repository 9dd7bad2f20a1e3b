"""Reranking by Q-Perturbation: the candidates' images are opened again, and the query reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.crops import Crops
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.models.last_block import entering_last
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.patches import place
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.rerank.base import Need, SearchQuery, query_image
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.image import ImageReranker, by_best_object
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
from soir_qdrant.rerank.q_perturbation.reading import WINNER, ImagePerturbation
from soir_qdrant.types import Box, Encoding, Failure, Hit, Vector

READ = "patches-1"  # what the query reads of a crop: the patches that enter the last block


@dataclass(frozen=True, slots=True, eq=False)
class _QueryReading:
    """head_queries: [heads, d], of the CLS token; rows: float32 [d], its own patches as `_whitened`;
    vector: float32 [dim], what is searched for."""

    head_queries: Tensor
    rows: Vector
    vector: Vector


class QPerturbation(ImageReranker):
    """`rerank="q-perturbation"`: hits by their images, opened again, and read by the query.

    The score of an image, -1..1, is the weighted mean of two cosines, each of its best object: of the
    object's vector with the query's, as `rerank="image"` has it, and of what the query reads in the
    object's crop (see `ImagePerturbation`) with the query's own patches, whitened alike. The box is the
    first's.

    For image queries the reading gained nothing over `rerank="image"`, which costs a twentieth (90.3 mAP with it, 90.9
    without; docs/concepts/q-perturbation.md): take that one, unless it is the operator that is wanted.

    Args:
        pipeline: that the collection was filled with.
        settings: of the perturbation.
        cache: of the candidates' tokens; None makes one in the usual place.
        weight: 0..1, of the reading in the score.
        candidates: hits to order where `prefetch` does not say.
        max_pixels: of the largest image that is opened.

    Raises:
        ConfigError: for a weight out of range.
    """

    name = "q-perturbation"
    needs: frozenset[Need] = frozenset({"payload", "image", "query image"})
    contents: ClassVar[tuple[str, ...]] = ("boxes", "vectors", "tokens", "shares")

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
        super().__init__(pipeline, cache=cache, candidates=candidates, max_pixels=max_pixels)
        self.settings = settings
        self.weight = weight

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

    @cached_property
    def reader(self) -> ImagePerturbation:
        """Reads crops on the encoder's last block. Raises ConfigError for an encoder without CLS token."""
        return ImagePerturbation(self.pipeline.encoder.last_block, self.settings)

    def _encoding(self, crops: Crops) -> Encoding:
        return self.pipeline.encode_whole(crops)

    def _contents(
        self, boxes: list[Box], encoding: Encoding, masks: NDArray[np.float32]
    ) -> dict[str, Tensor]:
        """And tokens, float16 [k, N, D], those that enter the last block; shares, float16 [k, N - 1], 0..1, of each
        patch inside the object."""
        tokens = self._tokens(encoding)
        patches = tokens.shape[1] - self.reader.block.prefix_tokens
        return {
            **super()._contents(boxes, encoding, masks),
            "tokens": tokens.half().cpu(),
            "shares": _shares(masks, patches).half(),
        }

    def _query(self, query: SearchQuery) -> _QueryReading:
        image = query_image(self, query)
        crop = self.pipeline.query_crop(image.rgb, box=query.box, mask=image.alpha)
        encoding = self.pipeline.encode_whole(crop)
        rows = self._whitened(encoding.layers[:, -2])[0]
        return _QueryReading(self.reader.query(self._tokens(encoding)[0]), rows, query.vector)

    def _tokens(self, encoding: Encoding) -> Tensor:
        """Those of crops that enter the last block, float32 [k, N, D]."""
        tokens = torch.as_tensor(encoding.tokens).to(self.reader.block.device, torch.float32)
        return entering_last(self.pipeline.encoder.last_blocks, tokens)

    def _scored(self, hit: Hit, reading: _QueryReading) -> Hit:
        objects, device = self.objects(hit), self.reader.block.device
        scored = by_best_object(hit, objects, reading.vector)
        if not self.weight:
            return scored
        tokens, shares = objects["tokens"].to(device), objects["shares"].to(device)
        rows = self.reader.read(reading.head_queries, self.reader.prepare(tokens, shares), shares)
        read = float((self._whitened(rows.cpu().numpy()) @ reading.rows).max())
        return replace(scored, score=(1 - self.weight) * scored.score + self.weight * read)

    def _whitened(self, rows: Vector) -> Vector:
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
        rows = place(names, self.pipeline.encoder)
        return Whitening(whole.mean[rows], whole.matrix[rows], whole.variance)


def _shares(masks: NDArray[np.float32], patches: int) -> Tensor:
    """Masks [k, S, S], 0..1 -> the share of each patch inside, [k, patches]."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks)[:, None], round(patches**0.5))
    return pooled.flatten(1)
