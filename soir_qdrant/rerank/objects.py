"""Hits ordered by their most similar object vector, in Qdrant."""

from __future__ import annotations

from collections.abc import Sequence

from soir_qdrant.rerank.base import Need, Page, SearchQuery, Window
from soir_qdrant.types import Failure, Hit


class ObjectReranker:
    """`rerank="objects"`: Qdrant orders the candidates by their best object vector (MaxSim), in the request
    that finds them. The collection must keep object vectors.

    Args:
        candidates: at least; ten times the hits wanted, where that is more.
    """

    name = "objects"
    needs: frozenset[Need] = frozenset({"box"})

    def __init__(self, candidates: int = 100) -> None:
        self.candidates = candidates

    def window(self, page: Page) -> Window:
        """The page itself: Qdrant orders before it cuts."""
        wanted = (page.limit + page.offset) * (page.group_size or 1)
        by_objects = max(page.prefetch or max(self.candidates, 10 * wanted), wanted)
        return Window(page.limit, page.offset, by_objects=by_objects, group_size=page.group_size or 0)

    def rerank(
        self, _query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The hits as they are: they come ordered."""
        del failed
        return list(hits)
