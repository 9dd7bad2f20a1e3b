"""One search as Qdrant gets it: the options, the reranker, and the window that it wants of the ranking."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TypeAlias

from qdrant_client import models

from soir_qdrant.errors import CollectionError
from soir_qdrant.qdrant.calls import SharedTimeout
from soir_qdrant.qdrant.collection import TOGETHER, Store
from soir_qdrant.qdrant.fetching import with_payloads
from soir_qdrant.qdrant.identity import both
from soir_qdrant.qdrant.written import OF_TEXT, gain, has_some
from soir_qdrant.rerank.base import Reranker, SearchQuery, Window
from soir_qdrant.search.options import SearchOptions

HITS_TOGETHER = 3200  # in the answer to one request; a hit of 40 objects is 17 kB of JSON


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search goes: what a user wants, what orders it, and what is fetched for that. exact_boxes: with object
    vectors for the box, where the reranker leaves that to the searcher."""

    options: SearchOptions
    reranker: Reranker
    window: Window
    exact_boxes: bool

    @property
    def together(self) -> int:
        """How many searches go together: TOGETHER, fewer where their hits would be many."""
        return max(1, min(TOGETHER, HITS_TOGETHER // self.window.limit))

    def for_query(self, query: SearchQuery) -> Plan:
        """The plan for one query: without a finer order, where it has no patches."""
        finer = self.window.finer
        return self if finer is None or query.patches is not None else replace(self, window=finer.otherwise)

    @property
    def patches(self) -> bool:
        """Whether patches are read."""
        return "patches" in self.reranker.needs

    @property
    def written(self) -> bool:
        """Whether what is written on the thing in the query is read."""
        return "written" in self.reranker.needs and self.by_words

    @property
    def by_words(self) -> bool:
        """Whether words bring candidates: not where Qdrant's own order is the page."""
        return not self.window.by_objects and (self.window.by_codes is None or self.window.finer is not None)

    @property
    def query_image(self) -> bool:
        """Whether the query's image is read again."""
        return "query image" in self.reranker.needs


Planned: TypeAlias = tuple[SearchQuery, Plan]


def opened(store: Store, options: SearchOptions, *, again: bool = False) -> SearchOptions:
    """Looks into the collection, once, or `again`; that takes part of the search's timeout. Returns the options with
    what is left of it.

    Raises:
        CollectionError: where there is none.
        ServerError: where Qdrant does not answer in time.
    """
    if store.dim and not again:
        return options
    start = time.monotonic()
    store.open(timeout=options.timeout)
    if options.timeout is None:
        return options
    return replace(options, timeout=max(1, math.ceil(options.timeout - (time.monotonic() - start))))


def make_plan(
    store: Store,
    options: SearchOptions,
    reranker: Reranker,
    group_size: int | None = None,
    *,
    exact_boxes: bool,
) -> Plan:
    """The plan for a page of hits, or of groups of up to `group_size` hits.

    Raises:
        CollectionError: where the reranker orders by object vectors, and the collection keeps none.
        ConfigError: where it cannot order groups.
    """
    window = reranker.window(options.page(group_size, code_vectors=store.code_numbers > 0))
    if window.by_objects and not store.has_objects:
        raise CollectionError(
            f'rerank="{reranker.name}": collection {store.collection!r} keeps no vectors of single objects; '
            'ingest into a new collection with keep_objects=True, or take rerank="codes"'
        )
    if window.finer and store.details.get("patches") is False:  # none are stored
        window = window.finer.otherwise
    return Plan(options, reranker, window, exact_boxes)


def candidates(
    store: Store, planned: Sequence[Planned], timeout: SharedTimeout
) -> list[Sequence[models.ScoredPoint]]:
    """What Qdrant has in the window of each query's plan of its ranking. Up to TOGETHER rankings go into one request.

    Where something is written on the thing, images in which a word of it was read are candidates too (`_merged`). The
    ids of both rankings are fetched from their beginning, so that pages fit together, then the payload of the windows
    alone.
    """
    requests = [query_request(store, query, plan) for query, plan in planned]
    rankings = [_rankings(store, request, *pair) for request, pair in zip(requests, planned, strict=True)]
    flat, consistency = list(chain.from_iterable(rankings)), planned[0][1].options.consistency
    points: list[list[models.ScoredPoint]] = []
    for i in range(0, len(flat), TOGETHER):
        with timeout.request() as left:
            points += store.query(flat[i : i + TOGETHER], consistency=consistency, timeout=left)
    answers, pages = iter(points), list[Sequence[models.ScoredPoint]]()
    for some, pair in zip(rankings, planned, strict=True):
        page = next(answers)
        pages.append(page if len(some) == 1 else _merged(page, next(answers), *pair))
    worded = [i for i, some in enumerate(rankings) if len(some) > 1]
    if worded:
        with timeout.request() as left:
            limits = {"consistency": consistency, "timeout": left}
            filled = with_payloads(store, [pages[i] for i in worded], requests[worded[0]], **limits)
        for i, page in zip(worded, filled, strict=True):
            pages[i] = page
    return pages


def _rankings(
    store: Store, request: models.QueryRequest, query: SearchQuery, plan: Plan
) -> list[models.QueryRequest]:
    some = has_some(query.written) if plan.by_words else None
    if some is None:
        return [request]
    whole = plan.window.limit + plan.window.offset
    ids = {"limit": whole, "offset": 0, "with_payload": False, "with_vector": False}
    worded = query_request(store, query, plan, some).model_copy(update=ids)
    if plan.window.by_codes:
        worded.with_payload = OF_TEXT
    return [request.model_copy(update=ids), worded]


def _merged(
    whole: Sequence[models.ScoredPoint],
    worded: Sequence[models.ScoredPoint],
    query: SearchQuery,
    plan: Plan,
) -> list[models.ScoredPoint]:
    """The window of two rankings, each point once: of candidates, one of each in turn; of hits that Qdrant has ordered
    by codes, by their scores and what those with words gain by these."""
    points, window = {point.id: point for point in (*whole, *worded)}, plan.window
    if window.by_codes:
        gains = {point.id: gain(point.payload or {}, query.written) for point in worded}
        order = sorted(points, key=lambda i: -points[i].score - gains.get(i, 0.0))
    else:
        turns = chain.from_iterable(zip_longest(whole, worded))
        order = list(dict.fromkeys(point.id for point in turns if point is not None))
    return [points[i] for i in order[window.offset : window.offset + window.limit]]


def query_request(
    store: Store, query: SearchQuery, plan: Plan, among: models.Filter | None = None
) -> models.QueryRequest:
    """The request for one query: its vector is searched for, where `among` and the options' filter hold."""
    options, window, needs = plan.options, plan.window, plan.reranker.needs
    return store.request(
        query.vector,
        limit=window.limit,
        offset=window.offset,
        prefetch=window.by_objects,
        with_objects="object vectors" in needs or (plan.exact_boxes and "box" in needs),
        with_patches=plan.patches
        and (query.patches is not None or plan.query_image)
        and not (window.by_codes or window.finer),
        filter=options.filter if among is None else both(among, options.filter),
        with_vectors=options.with_vectors,
        score_threshold=options.score_threshold,
        params=options.search_params,
        shard_key=options.shard_key,
        by_codes=window.by_codes,
    )
