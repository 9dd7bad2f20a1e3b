"""Reranking hits of a text query by the encoder's own tower with Q-Perturbation, on the stored boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import torch
from torch import Tensor

from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.models.last_block import LastBlock, entering_last
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import FirstCandidates, Need, SearchQuery, query_text
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.q_perturbation.hooks import Site, perturbed
from soir_qdrant.rerank.q_perturbation.matcher import PAPER
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, perturb, regions
from soir_qdrant.types import Failure, Hit

Size = tuple[float, float]


class TowerPerturbation(FirstCandidates):
    """`rerank="text-q-perturbation"`: hits by their images, opened again, and the query's words, for encoders that read
    text (CLIP, SigLIP ...).

    An image is described as a whole by the encoder's own descriptor. What pools it, SigLIP's probe or the CLS token
    in the last block, has its queries perturbed in the subspaces of the stored boxes. The score, -1..1, is the
    descriptor's cosine with the words; the box stays that of the hit.

    No weights of such encoders could be had where this was written: what it brings is unmeasured.

    Args:
        pipeline: that the collection was filled with.
        settings: of the perturbation; None leaves the model as it is.
        candidates: hits to order where `prefetch` does not say.
        max_pixels: of the largest image that is opened.
    """

    name = "text-q-perturbation"
    needs: frozenset[Need] = frozenset({"payload", "image", "query text"})

    def __init__(
        self,
        pipeline: Pipeline,
        settings: PerturbSettings | None = PAPER,
        *,
        candidates: int = 50,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.candidates, self.max_pixels = candidates, max_pixels

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """Order hits by their images and the query's words.

        Args:
            query: its text is needed.
            hits: with the payload as it is stored.
            failed: gets those whose image is missing, unreadable or another than was ingested. They keep
                their place and score.

        Returns:
            The same hits, each with the new score.

        Raises:
            ConfigError: for a query without text, or an encoder whose last block is not taken apart.
        """
        query_text(self, query)
        return reordered(hits, lambda hit: replace(hit, score=self._score(hit, query)), failed)

    def _score(self, hit: Hit, query: SearchQuery) -> float:
        image, encoder = hit_image.open_image(hit, self.max_pixels), self.pipeline.encoder
        side = encoder.input_size
        squeezed = cv2.resize(image.rgb, (side, side), interpolation=cv2.INTER_AREA)
        block = encoder.last_block  # first, for its error is the clearer one
        tokens = torch.as_tensor(encoder.encode(squeezed[None], with_tokens=True).tokens).to(block.device)
        boxes = torch.tensor(hit_image.boxes(hit)).reshape(-1, 4)
        with torch.inference_mode():
            tokens = entering_last(encoder.last_blocks, tokens.float())
            row = described(block, tokens, boxes, image.whole, self.settings)
        return float(normalize(self.pipeline.whiten(row.cpu().numpy())) @ query.vector)


def described(
    block: LastBlock, tokens: Tensor, boxes: Tensor, size: Size, settings: PerturbSettings | None
) -> Tensor:
    """The descriptor of one image, [D_out], by perturbed queries.

    Args:
        block: the encoder's last.
        tokens: those that enter it, of the image squeezed to a square, [1, N, D].
        boxes: [k, 4], x0 y0 x1 y1 in pixels of the image.
        size: its width and height.
        settings: of the perturbation; None is the model's own descriptor.
    """
    if settings is None or not len(boxes):
        return block.descriptor(tokens)[0]
    side = math.isqrt(tokens.shape[1] - block.prefix_tokens)
    if block.head is not None:
        attention = block.head.attention
        assert isinstance(attention, torch.nn.MultiheadAttention)
        with perturbed([Site(attention, attention.num_heads)], [boxes], [size], settings, (side, side)):
            return block.descriptor(tokens)[0]
    phi, alpha = regions(block.keys(tokens)[0], boxes, size, (side, side), settings)
    rows, _ = block.attend(
        tokens[:, :1],
        tokens,
        lambda q: perturb(q, phi[:, None], alpha[:, None], keep_norm=settings.keep_norm),
    )
    return rows[0, 0]
