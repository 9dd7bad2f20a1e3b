"""One collection: opening and asking. All knowledge of Qdrant is in this room: points.py (writing), schema.py
(what a collection looks like), payload.py (what lies beside a vector), filters.py, transport.py."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from qdrant_client import models
from qdrant_client.client_base import QdrantBase

from soir_qdrant.errors import CollectionError, ConfigError
from soir_qdrant.qdrant.arguments import arguments_of, without_none
from soir_qdrant.qdrant.calls import Caller
from soir_qdrant.qdrant.faults import Gone, Refused, is_missing
from soir_qdrant.qdrant.identity import check_namespace, visible
from soir_qdrant.qdrant.ordering import ByCodes, ordered_by_codes
from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.qdrant.schema import (
    CODES,
    INDEXES,
    OBJECTS,
    Quantization,
    check_fingerprint,
    check_point,
    check_vectors,
    code_numbers,
    is_quantized,
    metadata_of,
    quantization_of,
    stored_details,
    stored_fingerprint,
    vectors_config,
)
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.timing import stage
from soir_qdrant.types import Vector

T = TypeVar("T")
RESCORED = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0))
WITHOUT_PATCHES = models.PayloadSelectorExclude(exclude=[f"{KEY}.{PATCHES}"])
DIGITS = 6  # of a query's numbers after the point: half the bytes of float32 written out in full
TOGETHER = 32  # searches in one request, at most: a vector is 22 kB of JSON


class Store(Caller):
    """One collection of one client.

    vector_name: of the dense vector; None is Qdrant's unnamed one. namespace: searches see its points alone,
    and what is written belongs to it; see identity.py. shard_key: of what is written. timeout: seconds for
    one request.
    Made by `create` or `open`; nothing is asked of the server before.
    """

    def __init__(
        self,
        client: QdrantBase,
        collection: str,
        *,
        vector_name: str | None = None,
        namespace: str | None = None,
        shard_key: models.ShardKeySelector | None = None,
        timeout: int = 60,
        retry: Retry | None = None,
        code_vectors: Quantization | None = None,
    ) -> None:
        if vector_name in (OBJECTS, CODES):
            raise ConfigError(f'vector_name "{vector_name}" is kept for single objects: choose another')
        super().__init__(client, collection, timeout, retry)
        self.vector_name = vector_name or ""
        self.namespace = check_namespace(namespace)
        self.shard_key = shard_key
        self.dim = 0
        self.has_objects = False
        self.quantized = False
        quantization_of(code_vectors)  # refused here rather than after the first images
        self.code_vectors = code_vectors
        self.code_numbers = 0
        self.details: Mapping[str, Any] = {}  # what was chosen when the collection was made
        self.info: models.CollectionInfo | None = None  # what `open` saw

    @property
    def form(self) -> tuple[int, bool, bool, int]:
        """What requests and their answers depend on: dim, has_objects, quantized, code_numbers."""
        return self.dim, self.has_objects, self.quantized, self.code_numbers

    # -- the collection ------------------------------------------------------------------------------------

    def create(
        self,
        dim: int,
        fingerprint: Mapping[str, Any],
        *,
        keep_objects: bool = False,
        quantization: Quantization | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the collection if there is none, then `open` it. keep_objects: with the multivector.
        quantization: see `schema.vectors_config`; an existing collection has its own. details: chosen for it.

        An existing collection decides for itself whether it keeps object vectors. Raises CollectionError
        as `open` does, and where keep_objects is asked of a collection made without.
        """
        if not self.exists():
            self._create(self._vectors(dim, keep_objects, quantization), metadata_of(fingerprint, details))
        info = self.open(dim, fingerprint)
        self._check_sharding(info)
        if keep_objects and not self.has_objects:
            raise CollectionError(
                f"collection {self.collection!r} was made without vectors of objects: leave keep_objects "
                "out, or ingest into a new collection"
            )
        self._index(info)

    def _vectors(self, dim: int, keep_objects: bool, quantization: Quantization | None) -> Any:
        return vectors_config(dim, self.vector_name, keep_objects, quantization, self.code_vectors)

    def _check_sharding(self, info: models.CollectionInfo) -> None:
        """Raises CollectionError where what is written needs a shard key, and none is there: before models
        run for what would be refused."""
        if info.config.params.sharding_method == models.ShardingMethod.CUSTOM and self.shard_key is None:
            raise CollectionError(
                f"collection {self.collection!r} has shards by key: say which one the pictures go to, as in "
                'SoirIngestor(..., shard_key="europe")'
            )

    def exists(self) -> bool:
        return self.call("look for", self.client.collection_exists)

    def _create(self, vectors: Any, metadata: Mapping[str, Any]) -> None:
        extra = {}
        if "metadata" in inspect.signature(self.client.create_collection).parameters:
            extra["metadata"] = metadata
        try:
            self.call("create", self.client.create_collection, vectors_config=vectors, **extra)
        except Refused:
            if not self.exists():  # else another process was faster, and `open` will judge what it made
                raise

    def _index(self, info: models.CollectionInfo) -> None:
        """Payload indexes, those that are missing. Embedded Qdrant has none."""
        if self.is_local:
            return
        for field, kind in INDEXES.items():
            if field not in info.payload_schema:
                self.call("index", self.client.create_payload_index, field_name=field, field_schema=kind)

    def open(
        self,
        dim: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> models.CollectionInfo:
        """Check the collection: vector, length, distance, and who filled it. Returns what it is like.

        dim: None takes that of the collection. fingerprint: of the pipeline, None where no image is
        encoded. timeout: seconds to look into it, all tries together; None is the store's. Raises
        CollectionError with what differs and what to do.
        """
        info = self.look(timeout)
        self.accept(info, dim, fingerprint)
        return info

    def look(self, timeout: float | None = None) -> models.CollectionInfo:
        """What the collection is like now. Raises CollectionError where there is none."""
        try:
            return self.call("look into", self.client.get_collection, **without_none({"timeout": timeout}))
        except (Refused, Gone) as error:
            if isinstance(error, Refused) and not is_missing(error):
                raise
            raise CollectionError(
                f"there is no collection {self.collection!r}: ingest pictures into it first"
            ) from error

    def existing(self) -> models.CollectionInfo | None:
        """What the collection is like now; None where there is none."""
        try:
            return self.look()
        except CollectionError:
            return None

    def accept(
        self, info: models.CollectionInfo, dim: int | None, fingerprint: Mapping[str, Any] | None
    ) -> None:
        """`open` without a request: the collection was looked into already."""
        self.dim, self.has_objects = check_vectors(info, self.collection, self.vector_name, dim)
        self.quantized = is_quantized(info, self.vector_name)
        self.code_numbers = code_numbers(info)
        self.details = stored_details(info)
        if fingerprint is not None:
            self._check_origin(info, fingerprint)
        self.info = info

    def _check_origin(self, info: models.CollectionInfo, fingerprint: Mapping[str, Any]) -> None:
        """Raises CollectionError for a collection that another pipeline filled."""
        theirs = stored_fingerprint(info)
        if theirs is not None:
            check_fingerprint(theirs, fingerprint, self.collection)
            return
        points, _ = self.call("look into", self.client.scroll, limit=1, with_payload=["soir.encoder"])
        if points:
            check_point(points[0].payload, fingerprint, self.collection)

    # -- asking --------------------------------------------------------------------------------------------

    def request(
        self,
        vector: Vector,
        *,
        limit: int,
        offset: int = 0,
        filter: models.Filter | None = None,
        prefetch: int = 0,
        with_vectors: bool = False,
        with_objects: bool = False,
        with_patches: bool = False,
        score_threshold: float | None = None,
        params: models.SearchParams | None = None,
        shard_key: models.ShardKeySelector | None = None,
        by_codes: ByCodes | None = None,
    ) -> models.QueryRequest:
        """A search by one vector, float32 [D]. prefetch: above 0, so many candidates are taken by the image's
        vector and ordered by their best object's (MaxSim over the multivector). with_vectors,
        with_objects: the image's vector, and those of its objects where there are any, come along.
        with_patches: so do the patches in the payload. params: None rescores, where vectors are quantized.
        by_codes: candidates are taken by the image's vector and ordered by the codes of their objects too."""
        if params is None and self.quantized:
            params = RESCORED
        names = [self.vector_name] * with_vectors + [OBJECTS] * (with_objects and self.has_objects)
        plain = with_vectors and names == [""]
        numbers = [round(value, DIGITS) for value in vector.tolist()]
        request = models.QueryRequest(
            query=numbers,
            using=self.vector_name or None,
            shard_key=shard_key,
            filter=(condition := visible(self.namespace, filter)),
            params=params,
            limit=limit,
            offset=offset,
            score_threshold=score_threshold,
            with_payload=True if with_patches else WITHOUT_PATCHES,
            with_vector=True if plain else names or False,
        )
        if prefetch:
            request.prefetch = models.Prefetch(
                query=request.query, using=request.using, filter=condition, params=params, limit=prefetch
            )
            request.query, request.using, request.params = [numbers], OBJECTS, None
        if by_codes:
            ordered_by_codes(request, by_codes, self.code_numbers)
        return request

    @stage("qdrant")
    def query(
        self, requests: Sequence[models.QueryRequest], **options: Any
    ) -> list[list[models.ScoredPoint]]:
        """The points of up to TOGETHER requests. options: consistency, timeout; None is the client's own."""
        options = without_none(options)
        if len(requests) == 1:
            arguments = arguments_of(requests[0])
            return [self.call("search", self.client.query_points, **arguments, **options).points]
        batch = self.call("search", self.client.query_batch_points, requests=list(requests), **options)
        return [answer.points for answer in batch]

    def matching(self, condition: models.Filter, limit: int) -> list[models.Record]:
        """Points that a filter holds for, without vectors and codes of patches, in no order of worth."""
        points, _ = self.call(
            "search",
            self.client.scroll,
            scroll_filter=visible(self.namespace, condition),
            limit=limit,
            with_payload=WITHOUT_PATCHES,
        )
        return points

    @stage("qdrant")
    def groups(
        self, request: models.QueryRequest, group_by: str, size: int, **options: Any
    ) -> list[models.PointGroup]:
        """The points found, by the value of a payload key, up to `size` for each. options: as in `query`."""
        arguments = {name: value for name, value in arguments_of(request).items() if name != "offset"}
        method = self.client.query_points_groups
        options = without_none(options) | {"group_by": group_by, "group_size": size}
        return self.call("search", method, **arguments, **options).groups

    def dense(self, vector: Any) -> Vector | None:
        """The image's vector, float32 [D], out of what a search returned with the points."""
        if isinstance(vector, Mapping):
            vector = vector.get(self.vector_name)
        return None if vector is None else np.asarray(vector, np.float32)
