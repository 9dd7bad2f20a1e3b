"""A picture of one thing -> the images that hold it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from soir_qdrant.assembly import make_pipeline, served_pipeline
from soir_qdrant.errors import CollectionError, ConfigError, ImageError
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.payload import KEY, best_object, short_hash, shown
from soir_qdrant.qdrant.schema import OBJECTS, as_json
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.query import Query, as_text, as_vector, checked, open_query
from soir_qdrant.types import Box, Hit, HitGroup, LoadedImage, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.rerank.candidates import QPerturbation
    from soir_qdrant.rerank.patches import PatchReranker
    from soir_qdrant.rerank.text_query import TextPerturbation
    from soir_qdrant.serving.runtime import Runtime

log = logging.getLogger(__name__)

Rerank: TypeAlias = Literal["objects", "codes", "patches", "q-perturbation"]
BEST_OBJECT = 0.7  # share of the best object's similarity in a score by codes; the rest is the image's
GROUPS = 20, 5  # groups, and images of each, that are ordered by codes
AWAY = 0.1  # of the negatives' mean that is taken off the query; see docs/concepts/search.md
OFF_BANK = 0.2  # the same of the query bank's mean
FIRST = {"objects": 100, "codes": 100, "patches": 100, "q-perturbation": 50}  # candidates that each rescores


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """One query. vector: float32 [D]. text: where it is words; image, box: where it is a picture."""

    vector: Vector
    text: str | None = None
    image: LoadedImage | None = None
    box: Box | None = None


class SoirSearcher:
    """Searches one collection that SoirIngestor filled.

    A hit's `box` is the object that matched: of the object vectors, where the collection keeps them, the one
    with the largest dot product with the query; else, of the codes in the payload, the one with the
    largest cosine with the query's first numbers; None where there are neither.

    client: of qdrant_client, for `:memory:`, a path or a server (`soir_qdrant.aio` has the searcher for an
    AsyncQdrantClient). pipeline: encodes the query; None makes that of `profile` when the first image is
    asked for. runtime, vector_name: as given to the ingestor. exact_boxes: where the collection keeps the
    vectors of objects, fetch those of the hits to tell which object matched (ten hits with 25 objects of 1024
    numbers are 5 MB); False leaves them there and takes the codes. timeout: seconds for one request. retry:
    for lost connections, timeouts, 429 and 5xx. perturbation: what rerank="q-perturbation" uses; None makes
    one on this pipeline. text_perturbation: what it uses for words, on BLIP-2. patches: what
    rerank="patches" uses; None makes one on this pipeline. bank: float [n, D], vectors of
    other queries: every image's mean similarity to them is taken off its score, in part, so that those that
    are like everything rank lower (docs/concepts/search.md: it made no difference here). May be shared by threads:
    queries are encoded one after the other.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str = "images",
        *,
        pipeline: Pipeline | None = None,
        profile: str | None = None,
        runtime: Runtime | None = None,
        vector_name: str | None = None,
        exact_boxes: bool = True,
        max_pixels: int = MAX_PIXELS,
        timeout: int = 30,
        retry: Retry | None = None,
        perturbation: QPerturbation | None = None,
        text_perturbation: TextPerturbation | None = None,
        patches: PatchReranker | None = None,
        bank: NDArray[np.floating] | None = None,
    ) -> None:
        retry = retry or Retry(attempts=3)
        self.store = Store(client, collection, vector_name=vector_name, timeout=timeout, retry=retry)
        self.profile = profile
        self.exact_boxes = exact_boxes
        self.max_pixels = max_pixels
        self._pipeline = served_pipeline(pipeline, profile, runtime)
        self.perturbation = perturbation
        self.text_perturbation = text_perturbation
        self.patches = patches
        self.bank = None if bank is None else np.asarray(bank, np.float32).mean(0)
        self._compared = ""  # the short hash of the pipeline's fingerprint, once the collection has it too
        self._encoding = RLock()

    @property
    def pipeline(self) -> Pipeline:
        """What encodes the queries; made on first use."""
        with self._encoding:
            if self._pipeline is None:
                self._pipeline = make_pipeline(self.profile)
            return self._pipeline

    def search(
        self,
        query: Query,
        *,
        box: Box | None = None,
        examples: Iterable[Query] = (),
        negatives: Iterable[Query] = (),
        limit: int = 10,
        filter: models.Filter | None = None,
        rerank: Rerank | None = "codes",
        with_vectors: bool = False,
        with_masks: bool = False,
        offset: int = 0,
        score_threshold: float | None = None,
        search_params: models.SearchParams | None = None,
        prefetch: int | None = None,
        consistency: models.ReadConsistency | None = None,
        shard_key: models.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> list[Hit]:
        """The images most likely to hold what the query shows, best first.

        query: an image in any form that the ingestor takes (of an image with transparency, the opaque pixels
        are the object), a `Crop`, or a vector of the encoder, [D]; words, where the encoder reads text.
        box: x0, y0, x1, y1 in pixels, the object in the query image; what reaches out of the image is cut
        off. examples: more pictures of the same thing; the vectors of all are averaged. negatives: of what
        is not meant; the vector is moved away from theirs, a little (docs/concepts/search.md has what both are
        worth). filter: Qdrant's; soir_qdrant.qdrant.filters has some conditions ready.

        rerank: orders `prefetch` candidates anew. "codes": each hundred (or as many as the limit, if more) by
        the image's score (0.3) and its best object's (0.7), as the codes in the payload tell it; images
        without codes keep their score. None: by the image's score, the dot product of the vectors, alone.
        "objects": the first 100 (or ten times limit and offset), by their most similar object, in the same
        request; the collection must keep the vectors of objects. "q-perturbation": the first 50 (or the
        limit), by opening their pictures again (docs/concepts/q-perturbation.md); one that cannot be opened keeps its
        place and score. "patches": the first 100 (or the limit), by codes and by their objects' patches,
        stored or, seconds a picture, computed again. score_threshold is for the image's score, but with
        "objects". docs/concepts/search.md compares them all. Pages of the last three fit together where one `prefetch`
        covers them.

        with_vectors, with_masks: put the image's vector, and the matched object's pixels, into each hit; for
        the masks the pictures are opened again. search_params, consistency, shard_key, timeout: Qdrant's.

        Raises ImageError or ObjectsError for a query that cannot be read, ConfigError for a setting out of
        range or words that this encoder cannot read, CollectionError where the collection is missing or of
        another kind, and ServerError when Qdrant does not answer.
        """
        self._check(limit, offset, rerank)
        (hits,) = self._search(
            [self._ask(query, box, examples, negatives)],
            limit=limit,
            filter=filter,
            rerank=rerank,
            with_vectors=with_vectors,
            with_masks=with_masks,
            offset=offset,
            score_threshold=score_threshold,
            search_params=search_params,
            prefetch=prefetch,
            consistency=consistency,
            shard_key=shard_key,
            timeout=timeout,
        )
        return hits

    def search_many(
        self,
        queries: Iterable[Query],
        *,
        boxes: Iterable[Box | None] | None = None,
        limit: int = 10,
        filter: models.Filter | None = None,
        rerank: Rerank | None = "codes",
        with_vectors: bool = False,
        with_masks: bool = False,
        offset: int = 0,
        score_threshold: float | None = None,
        search_params: models.SearchParams | None = None,
        prefetch: int | None = None,
        consistency: models.ReadConsistency | None = None,
        shard_key: models.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> list[list[Hit]]:
        """Several searches, 32 in a request to Qdrant; hits per query, in order. boxes: one per query, or
        None. The rest is as in `search`."""
        if isinstance(queries, (str, bytes)):
            raise ConfigError(f"queries: give a list of them, such as [{queries!r}], or use search")
        queries = list(queries)
        places = [None] * len(queries) if boxes is None else list(boxes)
        if len(places) != len(queries):
            raise ConfigError(f"{len(places)} boxes for {len(queries)} queries: give one, or None, per query")
        self._check(limit, offset, rerank)
        return self._search(
            [self._ask(query, box) for query, box in zip(queries, places, strict=True)],
            limit=limit,
            filter=filter,
            rerank=rerank,
            with_vectors=with_vectors,
            with_masks=with_masks,
            offset=offset,
            score_threshold=score_threshold,
            search_params=search_params,
            prefetch=prefetch,
            consistency=consistency,
            shard_key=shard_key,
            timeout=timeout,
        )

    def search_groups(
        self,
        query: Query,
        group_by: str,
        *,
        group_size: int = 3,
        box: Box | None = None,
        examples: Iterable[Query] = (),
        negatives: Iterable[Query] = (),
        limit: int = 10,
        filter: models.Filter | None = None,
        rerank: Literal["codes", "objects"] | None = "codes",
        with_vectors: bool = False,
        score_threshold: float | None = None,
        search_params: models.SearchParams | None = None,
        prefetch: int | None = None,
        consistency: models.ReadConsistency | None = None,
        shard_key: models.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> list[HitGroup]:
        """The best images of each shelf, shop, day...: `limit` groups of up to `group_size` images that share
        the value of the payload key `group_by`, the group of the best image first.

        Where the key holds a list, such as "soir.labels", an image is in several groups; images without the
        key are in none. rerank: "codes" orders twenty groups of five images (or as many as are asked for, if
        more), the images within and the groups by their best. The rest is as in `search`.
        """
        if limit < 1 or group_size < 1:
            raise ConfigError(f"limit {limit}, group_size {group_size}: at least 1 is needed")
        if rerank not in (None, "codes", "objects"):
            raise ConfigError(f'rerank={rerank!r}: groups can be reranked by "codes" or "objects"')
        self._check(limit, 0, rerank)
        asked, here = self._ask(query, box, examples, negatives), rerank == "codes"
        request = self._request(
            asked,
            max(limit, GROUPS[0]) if here else limit,
            with_objects=not here,
            filter=filter,
            prefetch=self._candidates(prefetch, limit * group_size) if rerank == "objects" else 0,
            with_vectors=with_vectors,
            score_threshold=score_threshold,
            params=search_params,
            shard_key=shard_key,
        )
        size = max(group_size, GROUPS[1]) if here else group_size
        found = self.store.groups(request, group_by, size, consistency=consistency, timeout=timeout)
        listed = [
            HitGroup(group.id, self._reranked(asked, group.hits, rerank, size, with_vectors)[:group_size])
            for group in found
        ]
        if here:
            listed.sort(key=lambda group: -group.hits[0].score)
        return listed[:limit]

    def vector(self, query: Query, *, box: Box | None = None, examples: Iterable[Query] = ()) -> Vector:
        """What `search` looks for, float32 [D], unit length: for requests of your own to the client."""
        self._open()
        return self._ask(query, box, examples).vector

    def heat(self, query: Query, hit: Hit, *, box: Box | None = None) -> NDArray[np.float32]:
        """Where in the hit's picture the thing seems to be, float32 [H, W], 0..1: see `localization.heat`.

        Raises ImageError where the hit's picture is gone or changed, ConfigError for a query that is no
        picture.
        """
        from soir_qdrant.rerank import hit_image
        from soir_qdrant.search import localization

        image, place = self._picture(query, box, "a heat map is made with a picture")
        with self._encoding:
            picture, look = (
                hit_image.picture(hit, self.max_pixels),
                localization.look(self.pipeline, image, place),
            )
            return localization.heat(self.pipeline, look, picture, hit_image.boxes(hit))

    # -- from queries to requests --------------------------------------------------------------------------

    def _check(self, limit: int, offset: int, rerank: str | None) -> None:
        if limit < 1 or offset < 0:
            raise ConfigError(f"limit {limit}, offset {offset}: at least 1 and 0 are needed")
        if rerank is not None and rerank not in FIRST:
            known = ", ".join(f'"{name}"' for name in FIRST)
            raise ConfigError(f"rerank={rerank!r} is unknown: choose {known} or None")
        self._open()
        if rerank == "objects" and not self.store.has_objects:
            raise CollectionError(
                f'rerank="objects": collection {self.store.collection!r} keeps no vectors of single objects; '
                'ingest into a new collection with keep_objects=True, or take rerank="codes"'
            )

    def _open(self) -> None:
        if not self.store.dim:
            self.store.open()

    def _ask(
        self, query: Query, box: Box | None, examples: Iterable[Query] = (), negatives: Iterable[Query] = ()
    ) -> _Asked:
        for name, given in (("examples", examples), ("negatives", negatives)):
            if isinstance(given, (str, bytes)):
                raise ConfigError(f"{name}: give a list of pictures, such as [{given!r}]")
        asked = self._read(query, box)
        more = [self._read(example, None).vector for example in examples]
        against = [self._read(one, None).vector for one in negatives]
        if not more and not against and self.bank is None:
            return asked
        vector: Vector = normalize(np.mean([asked.vector, *more], axis=0))
        if against:
            vector = vector - np.float32(AWAY) * np.mean(against, axis=0)
        if self.bank is not None:
            vector = vector - np.float32(OFF_BANK) * self.bank
        return replace(asked, vector=checked(vector, self.store.dim, self.store.collection))

    def _read(self, query: Query, box: Box | None) -> _Asked:
        given, text = as_vector(query), as_text(query)
        if box is not None and (given is not None or text is not None):
            raise ConfigError(
                f"box is for a query image; this query is {'a vector' if text is None else 'text'}"
            )
        if given is not None:
            return _Asked(checked(given, self.store.dim, self.store.collection))
        self._compare()
        if text is not None:
            with self._encoding:
                return _Asked(self.pipeline.text(text), text)
        image, box = open_query(query, box, self.max_pixels)
        with self._encoding:
            vector = self.pipeline.query(image.rgb, box=box, mask=image.alpha)
        return _Asked(vector, image=image, box=box)

    def _picture(self, query: Query, box: Box | None, why: str) -> tuple[LoadedImage, Box | None]:
        if as_vector(query) is not None or as_text(query) is not None:
            raise ConfigError(f"{why}: this query is none")
        return open_query(query, box, self.max_pixels)

    def _compare(self) -> None:
        """Once: whether the collection was filled by a pipeline like this."""
        with self._encoding:
            if not self._compared:
                fingerprint = as_json(self.pipeline.fingerprint)
                self.store.open(self.pipeline.dim, fingerprint)
                self._compared = short_hash(fingerprint)

    def _still(self, points: Sequence[models.ScoredPoint]) -> None:
        """Raises CollectionError where the name has since become that of a collection which another pipeline
        filled: an alias that was switched."""
        told = ((points[0].payload or {}).get(KEY) or {}).get("encoder") if points else None
        if self._compared and told and told != self._compared:
            self._compared = ""
            self._compare()

    def _candidates(self, prefetch: int | None, wanted: int) -> int:
        """How many candidates are rescored by the objects' vectors."""
        return max(prefetch or max(FIRST["objects"], 10 * wanted), wanted)

    def _request(
        self, asked: _Asked, limit: int, *, with_objects: bool = True, **options: Any
    ) -> models.QueryRequest:
        with_objects = with_objects and self.exact_boxes
        return self.store.request(asked.vector, limit=limit, with_objects=with_objects, **options)

    def _search(
        self,
        asked: Sequence[_Asked],
        *,
        limit: int,
        offset: int,
        rerank: Rerank | None,
        prefetch: int | None,
        with_vectors: bool,
        with_masks: bool,
        filter: models.Filter | None,
        score_threshold: float | None,
        search_params: models.SearchParams | None,
        consistency: models.ReadConsistency | None,
        shard_key: models.ShardKeySelector | None,
        timeout: int | None,
    ) -> list[list[Hit]]:
        window = _window(rerank, prefetch, offset, limit)
        requests = [
            self._request(
                one,
                window.limit,
                with_objects=rerank in (None, "objects"),
                with_patches=rerank == "patches",
                offset=window.first,
                filter=filter,
                prefetch=self._candidates(prefetch, limit + offset) if rerank == "objects" else 0,
                with_vectors=with_vectors,
                score_threshold=score_threshold,
                params=search_params,
                shard_key=shard_key,
            )
            for one in asked
        ]
        if rerank in ("patches", "q-perturbation"):
            for one in asked:
                self._readable(one, rerank)
        found = self.store.query(requests, consistency=consistency, timeout=timeout) if requests else []
        listed = [
            self._reranked(one, points, rerank, window.block, with_vectors)[offset - window.first :][:limit]
            for one, points in zip(asked, found, strict=True)
        ]
        return [[self._masked(hit) for hit in hits] for hits in listed] if with_masks else listed

    # -- from points to hits -------------------------------------------------------------------------------

    def _reranked(
        self,
        asked: _Asked,
        points: Sequence[models.ScoredPoint],
        rerank: str | None,
        block: int,
        with_vectors: bool,
    ) -> list[Hit]:
        self._still(points)
        by_object = rerank in ("codes", "patches")
        hits = [self._hit(point, asked.vector, with_vectors, by_object=by_object) for point in points]
        if rerank == "codes":
            blocks = (hits[i : i + block] for i in range(0, len(hits), block))
            return [hit for some in blocks for hit in sorted(some, key=lambda hit: -hit.score)]
        if rerank == "patches":
            return self._by_patches(asked, points, hits)
        if rerank != "q-perturbation":
            return hits
        with self._encoding:
            if asked.text is not None and self.text_perturbation is not None:
                return self.text_perturbation.rerank(asked.text, hits)
            if asked.image is None:
                return hits
            if self.perturbation is None:
                from soir_qdrant.rerank.candidates import QPerturbation

                self.perturbation = QPerturbation(self.pipeline, max_pixels=self.max_pixels)
            image = asked.image
            return self.perturbation.rerank(
                image.rgb, hits, box=asked.box, mask=image.alpha, vector=asked.vector
            )

    def _by_patches(
        self, asked: _Asked, points: Sequence[models.ScoredPoint], hits: Sequence[Hit]
    ) -> list[Hit]:
        """The hits, scored by codes, by `PatchReranker`, which reads payloads as they are stored."""
        with self._encoding:
            if self.patches is None:
                from soir_qdrant.rerank.patches import PatchReranker

                self.patches = PatchReranker(self.pipeline, max_pixels=self.max_pixels)
            stored = [
                replace(hit, payload=point.payload or {}) for hit, point in zip(hits, points, strict=True)
            ]
            listed = self.patches.rerank(asked, sorted(stored, key=lambda hit: -hit.score))
        return [replace(hit, payload=shown(hit.payload)) for hit in listed]

    def _readable(self, asked: _Asked, rerank: str) -> None:
        """Raises ConfigError for a query that this kind of reranking cannot read pictures with."""
        if rerank == "patches":
            if asked.image is None:
                raise ConfigError('rerank="patches" compares pictures: this query is none')
            return
        if asked.text is not None and self.text_perturbation is None:
            raise ConfigError(
                'rerank="q-perturbation" with words needs BLIP-2: give text_perturbation=TextPerturbation('
                'Matcher.load("Salesforce/blip2-itm-vit-g-coco")), of soir_qdrant.rerank'
            )
        if asked.text is None and asked.image is None:
            raise ConfigError('rerank="q-perturbation" reads pictures with a picture: this query is none')

    def _hit(
        self, point: models.ScoredPoint, query: Vector, with_vectors: bool, *, by_object: bool = False
    ) -> Hit:
        """by_object: the score is that of `search` by codes, the image's alone where no object's is known."""
        payload = point.payload or {}
        soir = payload.get(KEY)
        rows: Any = point.vector.get(OBJECTS) if isinstance(point.vector, Mapping) else None
        match = best_object(payload, query, rows)
        score = float(point.score)
        if by_object and match is not None and match.score is not None:
            score = (1 - BEST_OBJECT) * score + BEST_OBJECT * match.score
        return Hit(
            id=point.id if isinstance(point.id, int) else str(point.id),
            score=score,
            uri=soir.get("uri") if isinstance(soir, Mapping) else None,
            box=match.box if match else None,
            payload=shown(payload),
            vector=self.store.dense(point.vector) if with_vectors else None,
            object=match.index if match else None,
        )

    def _masked(self, hit: Hit) -> Hit:
        """With the mask of its box, where there is one and the picture can be opened."""
        if hit.box is None:
            return hit
        from soir_qdrant.rerank import hit_image
        from soir_qdrant.search import localization

        try:
            picture = hit_image.picture(hit, self.max_pixels)
        except ImageError as error:
            log.warning("hit %s has no mask: %s", hit.id, error)
            return hit
        with self._encoding:
            return replace(hit, mask=localization.mask(self.pipeline, picture, hit.box))


@dataclass(frozen=True, slots=True)
class _Window:
    """Which part of Qdrant's list is fetched, and in blocks of what size it is ordered anew."""

    first: int
    limit: int
    block: int


def _window(rerank: str | None, prefetch: int | None, offset: int, limit: int) -> _Window:
    """Of codes, blocks lie at the same places for every page, so that none repeats or leaves out a hit; the
    others do so where `prefetch` covers all the pages."""
    if rerank in ("patches", "q-perturbation"):
        return _Window(0, max(prefetch or FIRST[rerank], limit + offset), 0)
    if rerank != "codes":
        return _Window(offset, limit, 0)
    block = max(prefetch or FIRST[rerank], limit)
    first = offset // block * block
    return _Window(first, -(-(offset + limit) // block) * block - first, block)
