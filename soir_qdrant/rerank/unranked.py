"""Hits as Qdrant orders them, by the image's vector."""

from __future__ import annotations

from collections.abc import Sequence

from soir_qdrant.rerank.base import Need, Page, SearchQuery, Window
from soir_qdrant.types import Failure, Hit


class Unranked:
    """`rerank=None`: the order is that of the images' vectors. Object vectors, where they are kept, tell the
    box that matched."""

    name = "none"
    candidates = 0
    needs: frozenset[Need] = frozenset({"box"})

    def window(self, page: Page) -> Window:
        """Nothing but the page."""
        return Window(page.limit, page.offset, group_size=page.group_size or 0)

    def rerank(
        self, _query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The hits as they are."""
        del failed
        return list(hits)
