"""Reranking hits of a text query by models of images and sentences with Q-Perturbation, on the stored boxes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import FirstCandidates, Need, SearchQuery, query_text
from soir_qdrant.rerank.order import reordered
from soir_qdrant.rerank.q_perturbation.hooks import perturbed
from soir_qdrant.rerank.q_perturbation.matcher import PAPER, Matcher
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
from soir_qdrant.types import Failure, Hit


class TextPerturbation(FirstCandidates):
    """`rerank="blip2"`, `"coca"`: hits by their images, opened again, and the query's words.

    The score of an image is the model's own, with its queries perturbed in the subspaces of the stored boxes.

    Args:
        matcher: `Blip2Matcher.load(weights)`, `CoCaMatcher.load(model, weights)`, `InternVLMatcher(model, tokenizer)`,
            or your own.
        settings: of the perturbation; None leaves the model as it is.
        candidates: hits to order where `prefetch` does not say.
        max_pixels: of the largest image that is opened.
    """

    needs: frozenset[Need] = frozenset({"payload", "image", "query text"})

    def __init__(
        self,
        matcher: Matcher,
        settings: PerturbSettings | None = PAPER,
        *,
        candidates: int = 50,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.matcher, self.settings = matcher, settings
        self.candidates, self.max_pixels = candidates, max_pixels
        self.name, self.sites = matcher.name, matcher.sites

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
            words = self.matcher.query(query_text(self, query))
            return reordered(hits, lambda hit: replace(hit, score=self._score(hit, words)), failed)

    def _score(self, hit: Hit, words: Any) -> float:
        image = hit_image.open_image(hit, self.max_pixels)
        boxes = torch.tensor(hit_image.boxes(hit)).reshape(-1, 4)
        perturbing = (
            nullcontext()
            if self.settings is None
            else perturbed(self.sites, [boxes], [image.whole], self.settings)
        )
        with perturbing:
            return self.matcher.score(Image.fromarray(image.rgb), words)
