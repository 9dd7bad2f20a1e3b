"""What was fetched, in the reranker's order: block by block, and the first of each block once more where it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from soir_qdrant.qdrant.calls import SharedTimeout
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.fetching import patches_of
from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.qdrant.written import gain
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.search.requests import Plan
from soir_qdrant.timing import stage
from soir_qdrant.types import Hit


def ranked(
    store: Store, query: SearchQuery, hits: Sequence[Hit], plan: Plan, timeout: SharedTimeout
) -> list[Hit]:
    """All hits, as Qdrant returned them, in the order of the plan's reranker.

    Raises:
        ServerError: when Qdrant does not answer, where a finer order fetches patches.
    """
    size, finer = max(plan.window.block or len(hits), 1), plan.window.finer
    order = _by_words if plan.window.by_codes else plan.reranker.rerank
    with stage("rerank"):
        blocks = [order(query, hits[i : i + size]) for i in range(0, len(hits), size)]
    if finer is None:
        return [hit for block in blocks for hit in block]
    firsts = [block[: finer.hits] for block in blocks]
    ids = [hit.id for first in firsts for hit in first]
    with timeout.request() as left:
        patches = patches_of(
            store, ids, plan.options.shard_key, consistency=plan.options.consistency, timeout=left
        )
    with stage("rerank"):
        return [
            hit
            for block, first in zip(blocks, firsts, strict=True)
            for hit in _below(
                finer.rerank(query, [_with(hit, patches) for hit in first]), block[finer.hits :]
            )
        ]


def _by_words(query: SearchQuery, hits: Sequence[Hit]) -> list[Hit]:
    """Hits that Qdrant has ordered by codes, with what they gain by words."""
    if not query.written:
        return list(hits)
    worded = [replace(hit, score=hit.score + gain(hit.payload, query.written)) for hit in hits]
    return sorted(worded, key=lambda hit: -hit.score)


def _with(hit: Hit, patches: dict[str | int, list[str]]) -> Hit:
    """The hit with its patches, where it has some."""
    if hit.id not in patches:
        return hit
    return replace(hit, payload={**hit.payload, KEY: {**hit.payload[KEY], PATCHES: patches[hit.id]}})


def _below(first: list[Hit], rest: Sequence[Hit]) -> list[Hit]:
    """All of them, scores descending: what the rest is better by than the last of the first is taken off each."""
    if not first or not rest:
        return [*first, *rest]
    last = first[-1].score
    over = max(rest[0].score - last, 0.0)
    return [*first, *(replace(hit, score=min(hit.score - over, last)) for hit in rest)]
