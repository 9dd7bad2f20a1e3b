"""The default order: by all that is stored of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.rerank.base import FinerOrder, Need, Page, SearchQuery, Window, candidate_blocks
from soir_qdrant.rerank.codes import CodeReranker
from soir_qdrant.types import Failure, Hit

BY_PATCHES = 50  # of each block: more gain nothing; see docs/concepts/search.md


class StoredReranker(CodeReranker):
    """`rerank="stored"`, the default: each block of candidates by codes, and its first BY_PATCHES then by patches too,
    where all of these have them and the query is an image. No image is opened, and the query's patches come with its
    vector.

    The score of an image, -1..1.25, is the weighted mean of the score that it has by codes and of its best
    object's late interaction with the query, and what it gains by words (`written.gain`) in both. The box is that of
    the object that late interaction and the code's cosine together make the `likeliest`. Texts and vectors are ordered
    as "codes" does it.
    """

    name = "stored"
    needs: frozenset[Need] = frozenset({"payload", "patches", "written"})

    def window(self, page: Page) -> Window:
        """That of "codes", and the finer order of its first hits. Where Qdrant orders by codes, its order is cut into
        blocks of BY_PATCHES (or of the limit, if more), so that pages fit together."""
        window = super().window(page)
        finer = FinerOrder(BY_PATCHES, by_stored_patches, otherwise=window)
        if window.by_codes:
            blocks = candidate_blocks(BY_PATCHES, replace(page, prefetch=None))
            window = replace(blocks, by_codes=window.by_codes)
        return replace(window, finer=finer)

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The same hits, best first, with the box of their best object: by codes, and by patches where all of them
        have come with theirs. All can be scored."""
        return by_stored_patches(query, super().rerank(query, hits, failed=failed))


def by_stored_patches(query: SearchQuery, hits: Sequence[Hit]) -> list[Hit]:
    """Hits that were ordered by codes, ordered by their patches too, where query and hits all have them."""
    if query.patches is None or any(PATCHES not in hit.payload.get(KEY, {}) for hit in hits):
        return list(hits)
    from soir_qdrant.rerank.late import WEIGHT, by_patches, stored_patches

    patches, dim = query.patches, query.patches.shape[1]
    scored = (by_patches(hit, query, patches, stored_patches(hit, dim) or [], WEIGHT) for hit in hits)
    return sorted(scored, key=lambda hit: -hit.score)
