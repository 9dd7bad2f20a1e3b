"""Reranking hits of a text query by BLIP-2 with Q-Perturbation, as in the paper, on the stored boxes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from PIL import Image

from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import FirstCandidates, Need, SearchQuery, query_text
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.q_perturbation.hooks import blip2, perturbed
from soir_qdrant.rerank.q_perturbation.matcher import PAPER, Matcher, Words
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
from soir_qdrant.types import Failure, Hit


class TextPerturbation(FirstCandidates):
    """`rerank="blip2"`: hits by their images, opened again, and the query's words.

    The score of an image is its ITC similarity, plus its ITM logit where `itm`, with the Q-Former's queries
    perturbed in the subspaces of the stored boxes.

    Args:
        matcher: BLIP-2 for retrieval, `Matcher.load(weights)`.
        settings: of the perturbation; None leaves the model as it is.
        itm: add the ITM logit.
        candidates: hits to order where `prefetch` does not say.
        max_pixels: of the largest image that is opened.
    """

    name = "blip2"
    needs: frozenset[Need] = frozenset({"payload", "image", "query text"})

    def __init__(
        self,
        matcher: Matcher,
        settings: PerturbSettings | None = PAPER,
        *,
        itm: bool = True,
        candidates: int = 50,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.matcher, self.settings, self.itm = matcher, settings, itm
        self.candidates, self.max_pixels = candidates, max_pixels
        self.sites = blip2(matcher.model)

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
            ConfigError: for a query without text.
        """
        with torch.inference_mode():
            words = self.matcher.words([query_text(self, query)])
            text_row = self.matcher.read(words).float()[0]
            return reordered(hits, lambda hit: replace(hit, score=self._score(hit, words, text_row)), failed)

    def _score(self, hit: Hit, words: Words, text_row: torch.Tensor) -> float:
        image = hit_image.open_image(hit, self.max_pixels)
        boxes = torch.tensor(hit_image.boxes(hit)).reshape(-1, 4)
        tokens = self.matcher.image_tokens([Image.fromarray(image.rgb)])
        perturbing = (
            nullcontext()
            if self.settings is None
            else perturbed(self.sites, [boxes], [image.whole], self.settings)
        )
        with perturbing:
            rows = self.matcher.describe(tokens).float()[0]
            score = float((rows @ text_row).max())
            return score + float(self.matcher.match(tokens, words)) if self.itm else score
