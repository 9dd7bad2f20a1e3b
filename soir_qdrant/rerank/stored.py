"""The default order: by all that is stored of the objects."""

from __future__ import annotations

from collections.abc import Sequence

from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.rerank.base import Need, SearchQuery
from soir_qdrant.rerank.codes import CodeReranker
from soir_qdrant.types import Failure, Hit


class StoredReranker(CodeReranker):
    """`rerank="stored"`, the default: by codes, and then by patches too, where all hits of a block have them and the
    query is an image. No image is opened, and the query's patches come with its vector.

    The score of an image, -1..1.15, is the weighted mean of the score that it has by codes and of its best
    object's late interaction with the query, and what it gains by words (`written.gain`) in both. The box is that of
    the object that late interaction and the code's cosine together make the `likeliest`. Texts and vectors are ordered
    as "codes" does it.
    """

    name = "stored"
    needs: frozenset[Need] = frozenset({"payload", "patches", "written"})

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The same hits, best first, with the box of their best object. All can be scored."""
        ranked = super().rerank(query, hits, failed=failed)
        if query.patches is None or any(PATCHES not in hit.payload.get(KEY, {}) for hit in hits):
            return ranked
        from soir_qdrant.rerank.late import WEIGHT, by_patches, stored_patches

        patches, dim = query.patches, query.patches.shape[1]
        scored = (by_patches(hit, query, patches, stored_patches(hit, dim) or [], WEIGHT) for hit in ranked)
        return sorted(scored, key=lambda hit: -hit.score)
