"""An image of one thing -> the images that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models
from qdrant_client.client_base import QdrantBase

from soir_qdrant.assembly import served_pipeline
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.qdrant.arguments import check_minimum
from soir_qdrant.qdrant.calls import SharedTimeout
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.query import Query, as_vector, listed, one_query, open_query
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import MODELS, Reranker, SearchQuery, checked_reranker
from soir_qdrant.rerank.kinds import make_reranker
from soir_qdrant.search import localization
from soir_qdrant.search.encoding import Boxed, QueryEncoder
from soir_qdrant.search.hits import finished, grouped, masked, points_of
from soir_qdrant.search.options import SearchKeywords, SearchOptions, merged
from soir_qdrant.search.ranking import Ranked, ranked
from soir_qdrant.search.requests import Plan, Planned, candidates, make_plan, query_request
from soir_qdrant.types import Box, Hit, HitGroup, Text, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime


class SoirSearcher:
    """Searches one collection that SoirIngestor filled. May be shared by threads: queries are encoded one
    after the other.

    A hit's `box` is the object that matched: of the object vectors, where the collection keeps them, the one
    with the largest dot product with the query; else, of the codes in the payload, the one with the
    largest cosine with the query's first numbers; None where there are neither.

    Args:
        client: a QdrantClient or an EdgeClient (AsyncSoirSearcher is for an AsyncQdrantClient).
        collection: its name.
        pipeline: encodes the queries; None makes that of `profile` for the first image.
        profile: a name or a file of settings; None goes on with the collection: "embedded-0.1" where version 0.1 filled
            it, else the default one.
        runtime, vector_name: as the ingestor's.
        namespace: its images alone are seen; None: the whole collection.
        exact_boxes: where the collection keeps the vectors of objects, fetch those of the hits to tell which
            object matched (ten hits with 25 objects of 1024 numbers are 5 MB); False leaves them there and
            takes the codes.
        max_pixels: of the largest image that is decoded.
        timeout: seconds for one request, and unless `retry` says so, for all its tries.
        retry: how long a request is tried again.
        bank: float [n, D], vectors of other queries: every image's mean similarity to them is taken off its
            score, in part (docs/concepts/search.md: it made no difference here).
    """

    def __init__(
        self,
        client: QdrantBase,
        collection: str = "images",
        *,
        pipeline: Pipeline | None = None,
        profile: str | None = None,
        runtime: Runtime | None = None,
        vector_name: str | None = None,
        namespace: str | None = None,
        exact_boxes: bool = True,
        max_pixels: int = MAX_PIXELS,
        timeout: int = 30,
        retry: Retry | None = None,
        bank: NDArray[np.floating] | None = None,
    ) -> None:
        retry, place = retry or Retry(total=float(timeout)), (client, collection)
        self.store = Store(*place, vector_name=vector_name, namespace=namespace, timeout=timeout, retry=retry)
        self.exact_boxes, self.max_pixels = exact_boxes, max_pixels
        served = served_pipeline(pipeline, profile, runtime)
        self._encoder = QueryEncoder(self.store, served, profile, max_pixels, bank)
        self._rerankers: dict[str, Reranker] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rerankers": {}}  # they are made again, for the searcher that asks for them

    @property
    def pipeline(self) -> Pipeline:
        """What encodes the queries; made on first use."""
        return self._encoder.pipeline

    def reranker(self, rerank: str | Reranker | None) -> Reranker:
        """What `search(rerank=...)` uses; that of a name is made once.

        Raises:
            ConfigError: for an unknown name, with those that are known, and for what is no reranker.
        """
        name = "none" if rerank is None else rerank
        if not isinstance(name, str):
            return checked_reranker(name, "rerank")
        with self._encoder.lock:
            if name not in self._rerankers:
                self._rerankers[name] = make_reranker(name, self)
            return self._rerankers[name]

    def search(
        self,
        query: Query | None = None,
        *,
        text: str | None = None,
        box: Box | None = None,
        examples: Iterable[Query] = (),
        negatives: Iterable[Query] = (),
        options: SearchOptions | None = None,
        **keywords: Unpack[SearchKeywords],
    ) -> list[Hit]:
        """The images most likely to hold what the query shows, best first.

        Args:
            query: an image in any form that the ingestor takes, a string being its path (of an image with
                transparency, the opaque pixels are the object); a `Crop`; a vector of the encoder, [D]; or a
                `Text`.
            text: words instead, where the encoder reads text: short for `Text(...)`.
            box: x0, y0, x1, y1 in pixels, the object in the query image; cut off where it reaches out of it.
            examples: more queries for the same thing, images as a rule; the vectors of all are averaged.
            negatives: of what is not meant; the vector is moved away from theirs, a little
                (docs/concepts/search.md has what both are worth).
            options: how to search; see SearchOptions.
            keywords: fields of SearchOptions (`limit`, `offset`, `filter`, `rerank`, `prefetch`,
                `score_threshold`, `with_vectors`, `with_masks`, `search_params`, `consistency`, `shard_key`,
                `timeout`), in place of what `options` says.

        Returns:
            Up to `limit` hits.

        Raises:
            ImageError: for an image that cannot be read, such as a missing file.
            ObjectsError: for a box outside the image.
            ConfigError: for a setting out of range, a query that the reranker cannot read, or words that the
                encoder cannot read.
            CollectionError: where the collection is missing or of another kind.
            ServerError: when Qdrant does not answer.
        """
        pair = one_query(query, text), box
        others = listed("examples", examples), listed("negatives", negatives)
        return self._search([pair], merged(options, **keywords), *others)[0]

    def search_many(
        self,
        queries: Iterable[Query],
        *,
        boxes: Iterable[Box | None] | None = None,
        options: SearchOptions | None = None,
        **keywords: Unpack[SearchKeywords],
    ) -> list[list[Hit]]:
        """Several searches, some together in a request to Qdrant (32 of few candidates, 10 of the default ones): these
        are done with before the next are encoded.

        Args:
            queries: each as in `search`.
            boxes: one per query, or None.
            options, keywords: as in `search`.

        Returns:
            Hits per query, in order.

        Raises:
            ConfigError: for boxes of another number than queries, and as `search` does.
        """
        queries = listed("queries", queries)
        places = [None] * len(queries) if boxes is None else list(boxes)
        if len(places) != len(queries):
            raise ConfigError(f"{len(places)} boxes for {len(queries)} queries: give one, or None, per query")
        return self._search(list(zip(queries, places, strict=True)), merged(options, **keywords))

    def search_groups(
        self,
        query: Query,
        group_by: str,
        *,
        group_size: int = 3,
        box: Box | None = None,
        examples: Iterable[Query] = (),
        negatives: Iterable[Query] = (),
        options: SearchOptions | None = None,
        **keywords: Unpack[SearchKeywords],
    ) -> list[HitGroup]:
        """The best images of each shelf, shop, day...: images that share the value of a payload key.

        Where the key holds a list, such as "soir.labels", an image is in several groups; images without the
        key are in none. Of twenty groups (or more, if asked for), five images (or more) are ordered anew.

        Args:
            query, box, examples, negatives: as in `search`.
            group_by: the payload key.
            group_size: images of each group, at most.
            options, keywords: as in `search`, without `offset`, and without rerankers that open images.

        Returns:
            Up to `limit` groups, the group of the best image first.

        Raises:
            ConfigError: for an offset, a reranker that cannot order groups, and as `search` does.
        """
        chosen = merged(options, **keywords)
        check_minimum("group_size", group_size, 1)
        if chosen.offset:
            raise ConfigError(f"offset {chosen.offset}: groups have no pages; give a larger limit")
        others = listed("examples", examples), listed("negatives", negatives)

        def search(left: SearchOptions) -> list[HitGroup]:
            encoded, plan = self._planned((query, box), self._plan(left, group_size), others)
            request = query_request(self.store, encoded, plan)
            timeout = SharedTimeout(left.timeout)
            with timeout.request() as seconds:
                limits = {"consistency": left.consistency, "timeout": seconds}
                answers = self.store.groups(request, group_by, plan.window.group_size, **limits)
            ((_, _, hits),) = self._ranked([(encoded, plan)], [points_of(answers)], timeout)
            return [
                HitGroup(key, self._finished(encoded, some[:group_size], plan))
                for key, some in grouped(hits, answers)[: left.limit]
            ]

        return self._encoder.on_current(chosen, search)

    def vector(self, query: Query, *, box: Box | None = None, examples: Iterable[Query] = ()) -> Vector:
        """What `search` with these looks for, float32 [D], unit length: for your own requests. Raises as `search`."""
        encoder, others = self._encoder, listed("examples", examples)
        return encoder.on_current(SearchOptions(), lambda _: encoder.query(query, box, others)).vector

    def heat(self, query: Query, hit: Hit, *, box: Box | None = None) -> NDArray[np.float32]:
        """Where in the hit's image the thing seems to be; see `localization.heat`.

        Args:
            query: an image or a Crop.
            hit: of a search for it.
            box: the object in the query image.

        Returns:
            float32 [H, W], 0..1, in the hit's image; of one of more than max_pixels, at a reduced size.

        Raises:
            ImageError: where the hit's image is gone or changed.
            ConfigError: for a query that is no image, or an encoder without tokens.
        """
        if as_vector(query) is not None or isinstance(query, Text):
            raise ConfigError("a heat map is made with an image: this query is none")
        image, place = open_query(query, box, self.max_pixels)
        opened_image = hit_image.open_image(hit, self.max_pixels)
        with self._encoder.lock:
            look = localization.look(self.pipeline, image, place)
            return localization.heat(self.pipeline, look, opened_image, hit_image.boxes(hit))

    def _plan(self, options: SearchOptions, group_size: int | None = None) -> Plan:
        reranker = self.reranker(options.rerank)
        return make_plan(self.store, options, reranker, group_size, exact_boxes=self.exact_boxes)

    def _search(
        self, pairs: Sequence[Boxed], options: SearchOptions, *others: Sequence[Query]
    ) -> list[list[Hit]]:
        def search(left: SearchOptions) -> list[list[Hit]]:
            plan, timeout = self._plan(left), SharedTimeout(left.timeout)
            parts = (pairs[i : i + plan.together] for i in range(0, len(pairs), plan.together))
            return [hits for some in parts for hits in self._together(some, plan, others, timeout)]

        return self._encoder.on_current(options, search)

    def _together(
        self, pairs: Sequence[Boxed], plan: Plan, others: Sequence[Sequence[Query]], timeout: SharedTimeout
    ) -> Iterator[list[Hit]]:
        planned, options = [self._planned(pair, plan, others) for pair in pairs], plan.options
        for query, own, hits in self._ranked(planned, candidates(self.store, planned, timeout), timeout):
            yield self._finished(query, hits[options.offset - own.window.offset :][: options.limit], own)

    def _planned(self, pair: Boxed, plan: Plan, others: Sequence[Sequence[Query]]) -> Planned:
        query = self._encoder.encode(pair, plan, *others)
        return query, plan.for_query(query)

    def _ranked(
        self,
        planned: Sequence[Planned],
        answers: Sequence[Sequence[models.ScoredPoint]],
        timeout: SharedTimeout,
    ) -> list[Ranked]:
        """All that was fetched for each query, in its reranker's order."""
        for points in answers:
            self._encoder.check_answer(points)
        lock = self._encoder.lock if MODELS & planned[0][1].reranker.needs else nullcontext()
        return ranked(self.store, planned, answers, timeout, lock)

    def _finished(self, query: SearchQuery, hits: Sequence[Hit], plan: Plan) -> list[Hit]:
        page = [finished(hit, query.vector) for hit in hits]
        if not plan.options.with_masks:
            return page
        with self._encoder.lock:
            return [masked(hit, self.pipeline, self.max_pixels) for hit in page]
