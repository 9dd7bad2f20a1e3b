"""A picture of one thing -> the images that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from qdrant_client import QdrantClient, models

from soir_qdrant.errors import CollectionError, ConfigError, ImageError, ObjectsError
from soir_qdrant.images import MAX_PIXELS, SUFFIXES, Source, load
from soir_qdrant.objects import clip_box
from soir_qdrant.payload import KEY, match_box, shown
from soir_qdrant.schema import OBJECTS
from soir_qdrant.store import Store
from soir_qdrant.transport import Retry
from soir_qdrant.types import Box, Hit, LoadedImage, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.rerank.candidates import QPerturbation
    from soir_qdrant.serving.runtime import Runtime

Query: TypeAlias = Source | Sequence[float]
Rerank: TypeAlias = Literal["objects", "q-perturbation"]


class SoirSearcher:
    """Searches one collection that SoirIngestor filled.

    A hit's `box` is the object that matched: of the object vectors, where the collection keeps them, the one
    with the largest dot product with the query; else, of the codes in the payload, the one with the
    largest cosine with the query's first numbers; None where there are neither.

    client: of qdrant_client, for `:memory:`, a path or a server. pipeline: encodes the query; None makes that
    of `profile` when the first image is asked for. runtime, vector_name: as given to the ingestor.
    exact_boxes: where the collection keeps the vectors of objects, fetch those of the hits to tell which
    object matched (ten hits with 25 objects of 1920 numbers are 8 MB); False leaves them there and takes the
    codes. timeout: seconds for one request. retry: for lost connections, timeouts, 429 and 5xx.
    perturbation: what rerank="q-perturbation" uses; None makes one on this pipeline.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str = "images",
        *,
        pipeline: Pipeline | None = None,
        profile: str = "embedded",
        runtime: Runtime | None = None,
        vector_name: str | None = None,
        exact_boxes: bool = True,
        max_pixels: int = MAX_PIXELS,
        timeout: int = 30,
        retry: Retry | None = None,
        perturbation: QPerturbation | None = None,
    ) -> None:
        retry = retry or Retry(attempts=3)
        self.store = Store(client, collection, vector_name=vector_name, timeout=timeout, retry=retry)
        self.profile = profile
        self.exact_boxes = exact_boxes
        self.max_pixels = max_pixels
        self._pipeline = served_pipeline(pipeline, profile, runtime)
        self._perturbation = perturbation
        self._compared = False

    @property
    def pipeline(self) -> Pipeline:
        """What encodes the queries; made on first use."""
        if self._pipeline is None:
            self._pipeline = make_pipeline(self.profile)
        return self._pipeline

    def search(
        self,
        query: Query,
        *,
        box: Box | None = None,
        limit: int = 10,
        filter: models.Filter | None = None,
        rerank: Rerank | None = None,
        with_vectors: bool = False,
        offset: int = 0,
        score_threshold: float | None = None,
        search_params: models.SearchParams | None = None,
        prefetch: int | None = None,
        timeout: int | None = None,
    ) -> list[Hit]:
        """The images most likely to hold what the query shows, best first.

        query: an image in any form that the ingestor takes (of an image with transparency, the opaque pixels
        are the object), or a vector of the encoder, [D]. box: x0, y0, x1, y1 in pixels, the object in the
        query image; what reaches out of the image is cut off. filter: Qdrant's; soir_qdrant.filters has some
        conditions ready. rerank: "objects" takes `prefetch` candidates (100, or ten times the limit) by the
        images' vectors, and orders them by their most similar object; the collection must keep the
        vectors of objects. "q-perturbation" takes `prefetch` candidates (50, or the limit), opens their
        pictures again and orders them by what the query's attention reads there (docs/q-perturbation.md);
        the score_threshold is for the first pass, and a picture that cannot be opened keeps its place and
        score. with_vectors: put the image's vector into each hit.

        Raises ImageError or ObjectsError for a query that cannot be read, ConfigError for a setting out of
        range or a text, CollectionError where the collection is missing or of another kind, and ServerError
        when Qdrant does not answer.
        """
        (hits,) = self.search_many(
            [query],
            boxes=None if box is None else [box],
            limit=limit,
            filter=filter,
            rerank=rerank,
            with_vectors=with_vectors,
            offset=offset,
            score_threshold=score_threshold,
            search_params=search_params,
            prefetch=prefetch,
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
        rerank: Rerank | None = None,
        with_vectors: bool = False,
        offset: int = 0,
        score_threshold: float | None = None,
        search_params: models.SearchParams | None = None,
        prefetch: int | None = None,
        timeout: int | None = None,
    ) -> list[list[Hit]]:
        """Several searches in one request to Qdrant; hits per query, in order. boxes: one per query, or
        None. The rest is as in `search`."""
        if limit < 1 or offset < 0:
            raise ConfigError(f"limit {limit}, offset {offset}: at least 1 and 0 are needed")
        queries = list(queries)
        places = [None] * len(queries) if boxes is None else list(boxes)
        if len(places) != len(queries):
            raise ConfigError(f"{len(places)} boxes for {len(queries)} queries: give one, or None, per query")
        self._open()
        reread = rerank == "q-perturbation"
        candidates = 0 if reread else self._candidates(rerank, prefetch, limit + offset)
        first = max(prefetch or 50, limit + offset) if reread else limit
        vectors = [self._vector(query, box) for query, box in zip(queries, places, strict=True)]
        requests = [
            self.store.request(
                vector,
                limit=first,
                offset=0 if reread else offset,
                filter=filter,
                prefetch=candidates,
                with_vectors=with_vectors,
                with_objects=self.exact_boxes and not reread,
                score_threshold=score_threshold,
                params=search_params,
            )
            for vector in vectors
        ]
        found = self.store.query(requests, timeout) if requests else []
        hits = [
            [self._hit(point, vector, with_vectors) for point in points]
            for points, vector in zip(found, vectors, strict=True)
        ]
        if not reread:
            return hits
        return [
            self._reread(query, box, list_)[offset : offset + limit]
            for query, box, list_ in zip(queries, places, hits, strict=True)
        ]

    def _reread(self, query: Query, box: Box | None, hits: list[Hit]) -> list[Hit]:
        if _as_vector(query) is not None:
            raise ConfigError('rerank="q-perturbation" reads pictures with a picture: this query is a vector')
        if self._perturbation is None:
            from soir_qdrant.rerank.candidates import QPerturbation

            self._perturbation = QPerturbation(self.pipeline, max_pixels=self.max_pixels)
        image, box = self._picture(query, box)
        return self._perturbation.rerank(image.rgb, hits, box=box, mask=image.alpha)

    def _open(self) -> None:
        if not self.store.dim:
            self.store.open()

    def _candidates(self, rerank: str | None, prefetch: int | None, wanted: int) -> int:
        """How many candidates to rescore, 0 for none."""
        if rerank is None:
            return 0
        if rerank != "objects":
            raise ConfigError(f'rerank={rerank!r} is unknown: choose "objects", "q-perturbation" or None')
        if not self.store.has_objects:
            raise CollectionError(
                f'rerank="objects": collection {self.store.collection!r} keeps no vectors of single objects; '
                "ingest into a new collection with keep_objects=True"
            )
        return max(prefetch or max(100, 10 * wanted), wanted)

    def _vector(self, query: Query, box: Box | None) -> Vector:
        """float32 [D], unit length."""
        given = _as_vector(query)
        if given is not None:
            if box is not None:
                raise ConfigError("box is for a query image; this query is a vector")
            return self._checked(given)
        if not self._compared:
            self.store.open(self.pipeline.dim, self.pipeline.fingerprint)
            self._compared = True
        image, box = self._picture(query, box)
        return self.pipeline.query(image.rgb, box=box, mask=image.alpha)

    def _picture(self, query: Query, box: Box | None) -> tuple[LoadedImage, Box | None]:
        """The query image, and its box clipped to it."""
        image = load(_not_text(query), max_pixels=self.max_pixels)
        if box is not None:
            try:
                box = clip_box(box, image.width, image.height)
            except ObjectsError as error:
                raise ObjectsError(f"{image.name}: {error}") from error
        return image, box

    def _checked(self, vector: Vector) -> Vector:
        if vector.shape != (self.store.dim,):
            raise ConfigError(
                f"the query vector has {len(vector)} numbers, those of collection {self.store.collection!r} "
                f"have {self.store.dim}: take the encoder it was filled with"
            )
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or norm == 0:
            raise ConfigError("the query vector is all zeros, or not finite: nothing can be compared with it")
        return vector / np.float32(norm)

    def _hit(self, point: models.ScoredPoint, query: Vector, with_vectors: bool) -> Hit:
        payload = point.payload or {}
        soir = payload.get(KEY)
        rows: Any = point.vector.get(OBJECTS) if isinstance(point.vector, Mapping) else None
        return Hit(
            id=point.id if isinstance(point.id, int) else str(point.id),
            score=float(point.score),
            uri=soir.get("uri") if isinstance(soir, Mapping) else None,
            box=match_box(payload, query, rows),
            payload=shown(payload),
            vector=self.store.dense(point.vector) if with_vectors else None,
        )


def make_pipeline(profile: str, runtime: Runtime | None = None) -> Pipeline:
    """The pipeline of a profile, on the models of a runtime. Loads the model library, so only when needed."""
    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline

    settings = Settings.for_profile(profile)
    return runtime.pipeline(settings) if runtime else Pipeline(settings)


def served_pipeline(pipeline: Pipeline | None, profile: str, runtime: Runtime | None) -> Pipeline | None:
    """The pipeline that is there from the start: one that was given, or one on a runtime, which is to say at
    once what it lacks. Raises ConfigError where both are given."""
    if pipeline is not None and runtime is not None:
        raise ConfigError("give a pipeline or a runtime: `runtime.pipeline(settings)` is a pipeline")
    return make_pipeline(profile, runtime) if runtime else pipeline


def _as_vector(query: Query) -> Vector | None:
    """float32 [D] where the query is a list of numbers or a one-dimensional array, else None."""
    if isinstance(query, np.ndarray):
        if query.ndim != 1:
            return None
    elif not isinstance(query, (list, tuple)):
        return None
    try:
        vector = np.asarray(query, np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError("the query is a list, but not one of numbers") from error
    if vector.ndim != 1 or not len(vector):
        raise ConfigError(f"the query vector has shape {vector.shape}: give [D], or use search_many")
    return vector


def _not_text(query: Query) -> Source:
    """The query, unless it reads like words rather than like a file's name."""
    if isinstance(query, str) and not query.lower().endswith(SUFFIXES):
        try:
            there = Path(query).exists()
        except (OSError, ValueError):
            there = False
        if not there:
            raise ConfigError(
                f"query {query!r} is no file, and this encoder reads no text: give a picture of the thing"
            )
    if isinstance(query, Sequence) and not isinstance(query, (str, bytes, bytearray, memoryview)):
        raise ImageError("the query is a list: give one image or vector, or use search_many")
    return query
