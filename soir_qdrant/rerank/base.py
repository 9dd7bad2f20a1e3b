"""The contract of what orders hits anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from soir_qdrant.types import Box, Hit, LoadedImage, Vector

Need: TypeAlias = Literal["payload", "vectors", "picture", "query picture"]


class SearchQuery(Protocol):
    """One query, as a reranker reads it."""

    @property
    def vector(self) -> Vector:
        """float32 [D], unit length: what the collection was searched for."""
        ...

    @property
    def image(self) -> LoadedImage | None:
        """The picture that was searched with; None for words and vectors."""
        ...

    @property
    def box(self) -> Box | None:
        """Where the thing is in that picture, x0, y0, x1, y1 in pixels; None for all of it."""
        ...


class Reranker(Protocol):
    """Orders hits anew.

    Attributes:
        name: what `search(rerank=...)` calls it.
        needs: what it reads beside ids and scores: each hit's stored payload, vectors or picture, and the
            picture of the query.
    """

    name: str
    needs: frozenset[Need]

    def rerank(self, query: SearchQuery, hits: Sequence[Hit]) -> list[Hit]:
        """Score hits anew.

        Args:
            query: what was searched for.
            hits: candidates, best first, with the payload as it is stored.

        Returns:
            The same hits with new scores, best first. One that cannot be scored keeps its place and score.
        """
        ...
