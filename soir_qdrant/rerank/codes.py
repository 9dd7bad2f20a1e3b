"""Hits ordered by the codes of their objects, which lie in the payload: no image and no vector is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.payload import best_object
from soir_qdrant.rerank.base import Need, Page, SearchQuery, Window, candidate_blocks
from soir_qdrant.types import Failure, Hit, Vector

WEIGHT = 0.7  # of the best object in the score; the rest is the image's. See docs/concepts/search.md


class CodeReranker:
    """`rerank="codes"`, the default: each block of candidates by the image's score and its best object's.

    The score of an image, -1..1, is the weighted mean of the dot product of its vector with the query's and
    of the largest cosine of its objects' codes with the query's first numbers. The box is that object's. An
    image without codes keeps its score.

    Args:
        candidates: of a block.
        weight: of the best object in the score, 0..1.

    Raises:
        ConfigError: for a weight out of range.
    """

    name = "codes"
    needs: frozenset[Need] = frozenset({"payload"})

    def __init__(self, candidates: int = 100, *, weight: float = WEIGHT) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight {weight}: give the best object's share of the score, 0 to 1")
        self.candidates = candidates
        self.weight = weight

    def window(self, page: Page) -> Window:
        """See `candidate_blocks`."""
        return candidate_blocks(self.candidates, page)

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The same hits, best first, with the box of their best object. All can be scored."""
        del failed
        return sorted((self._scored(hit, query.vector) for hit in hits), key=lambda hit: -hit.score)

    def _scored(self, hit: Hit, query: Vector) -> Hit:
        match = best_object(hit.payload, query)
        if match is None:
            return hit
        score = hit.score
        if match.score is not None:
            score = (1 - self.weight) * score + self.weight * match.score
        return replace(hit, score=score, box=match.box, object=match.index)
