"""One search as Qdrant gets it: the options, the reranker, and the window that it wants of the ranking."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from qdrant_client import models

from soir_qdrant.errors import CollectionError
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.rerank.base import Reranker, SearchQuery, Window
from soir_qdrant.search.options import SearchOptions


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search goes: what a user wants, what orders it, and what is fetched for that. exact_boxes: with object
    vectors for the box, where the reranker leaves that to the searcher."""

    options: SearchOptions
    reranker: Reranker
    window: Window
    exact_boxes: bool

    @property
    def patches(self) -> bool:
        """Whether patches are read."""
        return "patches" in self.reranker.needs

    @property
    def query_image(self) -> bool:
        """Whether the query's image is read again."""
        return "query image" in self.reranker.needs


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
    return Plan(options, reranker, window, exact_boxes)


def query_request(store: Store, query: SearchQuery, plan: Plan) -> models.QueryRequest:
    """The request for one query: its vector is searched for."""
    options, window, needs = plan.options, plan.window, plan.reranker.needs
    return store.request(
        query.vector,
        limit=window.limit,
        offset=window.offset,
        prefetch=window.by_objects,
        with_objects="object vectors" in needs or (plan.exact_boxes and "box" in needs),
        with_patches=plan.patches and (query.patches is not None or plan.query_image) and not window.by_codes,
        filter=options.filter,
        with_vectors=options.with_vectors,
        score_threshold=options.score_threshold,
        params=options.search_params,
        shard_key=options.shard_key,
        by_codes=window.by_codes,
    )
