"""What was fetched, in the reranker's order: block by block, and the first of each once more where it says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from qdrant_client import models

from soir_qdrant.qdrant.calls import SharedTimeout
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.fetching import Patches, patches_of
from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.qdrant.written import gain
from soir_qdrant.rerank.base import FinerOrder, SearchQuery
from soir_qdrant.search.hits import candidate
from soir_qdrant.search.requests import Plan, Planned
from soir_qdrant.timing import stage
from soir_qdrant.types import Hit


class Ranked(NamedTuple):
    """The hits of one query, best first, and its plan."""

    query: SearchQuery
    plan: Plan
    hits: list[Hit]


def ranked(
    store: Store,
    planned: Sequence[Planned],
    answers: Sequence[Sequence[models.ScoredPoint]],
    timeout: SharedTimeout,
    lock: AbstractContextManager[object],
) -> list[Ranked]:
    """All that was fetched for each query, in the order of its plan's reranker. One request fetches what their finer
    orders read.

    Args:
        store: where the points are from.
        planned: queries of the same reranker.
        answers: to each query, in Qdrant's order.
        timeout: of that request.
        lock: for as long as the reranker is at work.

    Raises:
        ServerError: when Qdrant does not answer.
    """
    options = planned[0][1].options
    hits = [
        [candidate(store, point, with_vectors=options.with_vectors) for point in page] for page in answers
    ]
    with lock, stage("rerank"):
        in_blocks = [_blocks(*pair, some) for pair, some in zip(planned, hits, strict=True)]
    ids = {
        hit.id for (_, plan), blocks in zip(planned, in_blocks, strict=True) for hit in _finer(plan, blocks)
    }
    patches: Patches = {}
    if ids:
        with timeout.request() as left:
            limits = {"consistency": options.consistency, "timeout": left}
            patches = patches_of(store, list(ids), options.shard_key, **limits)
    with lock, stage("rerank"):
        return [
            Ranked(
                query,
                plan,
                _descending(_finely(query, block, plan.window.finer, patches) for block in blocks),
            )
            for (query, plan), blocks in zip(planned, in_blocks, strict=True)
        ]


def _blocks(query: SearchQuery, plan: Plan, hits: Sequence[Hit]) -> list[list[Hit]]:
    """Cut as the window says, each in the first order."""
    window = plan.window
    size = max(window.block or len(hits), 1)
    blocks = [hits[i : i + size] for i in range(0, len(hits), size)]
    if window.by_codes:  # Qdrant has ordered them
        return [_by_words(query, block) if window.finer else list(block) for block in blocks]
    return [plan.reranker.rerank(query, block) for block in blocks]


def _by_words(query: SearchQuery, hits: Sequence[Hit]) -> list[Hit]:
    """Hits that Qdrant has ordered by codes, with what they gain by words."""
    if not query.written:
        return list(hits)
    worded = [replace(hit, score=hit.score + gain(hit.payload, query.written)) for hit in hits]
    return sorted(worded, key=lambda hit: -hit.score)


def _finer(plan: Plan, blocks: Sequence[list[Hit]]) -> Iterable[Hit]:
    """The hits whose patches are read."""
    finer = plan.window.finer
    return [] if finer is None else chain.from_iterable(block[: finer.hits] for block in blocks)


def _finely(
    query: SearchQuery, block: list[Hit], finer: FinerOrder | None, patches: Patches
) -> list[list[Hit]]:
    """The first of a block in the finer order, without those that are gone since, and the others."""
    if finer is None:
        return [block]
    first = [_with_patches(hit, patches[hit.id]) for hit in block[: finer.hits] if hit.id in patches]
    return [finer.rerank(query, first), block[finer.hits :]]


def _with_patches(hit: Hit, stored: dict[str, object]) -> Hit:
    """The hit with its patches, where it has some and was not made anew since."""
    soir = hit.payload.get(KEY) or {}
    if PATCHES not in stored or any(soir.get(key) != stored.get(key) for key in ("sha256", "recipe")):
        return hit
    return replace(hit, payload={**hit.payload, KEY: {**soir, PATCHES: stored[PATCHES]}})


def _descending(blocks: Iterable[list[list[Hit]]]) -> list[Hit]:
    """The hits of all parts of all blocks: by how much the first of a part is better than the last one before it is
    taken off all of that part, since the scores of two parts are not of the same kind."""
    hits: list[Hit] = []
    for part in filter(None, chain.from_iterable(blocks)):
        last = hits[-1].score if hits else part[0].score
        over = max(part[0].score - last, 0.0)
        hits += [replace(hit, score=min(hit.score - over, last)) for hit in part] if over else part
    return hits
