"""Reranking hits of a text query by BLIP-2 with Q-Perturbation, as in the paper, on the stored boxes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from PIL import Image

from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.perturb import PerturbSettings
from soir_qdrant.rerank.vl import blip2, perturbed
from soir_qdrant.rerank.vl_table import PAPER, Matcher, Words
from soir_qdrant.types import Failure, Hit


class TextPerturbation:
    """Reranks hits by their pictures and a sentence.

    The score of an image is its ITC similarity, plus its ITM logit where `itm`, with the Q-Former's queries
    perturbed in the subspaces of the stored boxes. matcher: BLIP-2 for retrieval, `Matcher.load(weights)`.
    settings: of the perturbation; None leaves the model as it is.
    """

    def __init__(
        self,
        matcher: Matcher,
        settings: PerturbSettings | None = PAPER,
        *,
        itm: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.matcher, self.settings, self.itm, self.max_pixels = matcher, settings, itm, max_pixels
        self.sites = blip2(matcher.model)

    def rerank(self, text: str, hits: Sequence[Hit], *, failed: list[Failure] | None = None) -> list[Hit]:
        """The same hits in a new order, each with the new score. One whose picture is missing, unreadable or
        another than was ingested keeps its place and score; it is added to `failed` and logged."""
        with torch.inference_mode():
            words = self.matcher.words([text])
            read = self.matcher.read(words).float()[0]
            return reordered(hits, lambda hit: replace(hit, score=self._score(hit, words, read)), failed)

    def _score(self, hit: Hit, words: Words, read: torch.Tensor) -> float:
        image = hit_image.picture(hit, self.max_pixels)
        boxes = torch.tensor(hit_image.boxes(hit)).reshape(-1, 4)
        tokens = self.matcher.look([Image.fromarray(image.rgb)])
        size = (image.width, image.height)
        moved = (
            nullcontext() if self.settings is None else perturbed(self.sites, [boxes], [size], self.settings)
        )
        with moved:
            seen = self.matcher.describe(tokens).float()[0]
            score = float((seen @ read).max())
            return score + float(self.matcher.match(tokens, words)) if self.itm else score
