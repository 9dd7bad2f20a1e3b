"""The points of one collection: what is stored of an image, written, renewed, moved, removed and read."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from qdrant_client import models

from soir_qdrant.errors import CollectionError, ObjectsError, SoirError
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.faults import Refused
from soir_qdrant.qdrant.identity import (
    KEY,
    PLACES,
    Place,
    PointId,
    as_payload,
    at,
    places_of,
    point_id_of,
    within,
)
from soir_qdrant.qdrant.schema import CODES, OBJECTS
from soir_qdrant.qdrant.transport import split
from soir_qdrant.types import Scene

TEXTS = ("sha256", "pixels", "recipe", "namespace")
ORIGIN = [f"{KEY}.{name}" for name in (*TEXTS, "by_user", "labels", *PLACES)]
T = TypeVar("T")
PAGE = 1000  # points in one request, where their vectors are not read
_MULTIVECTOR_NUMBERS = 1_048_576  # Qdrant's limit for one multivector


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """What a point says of its image. Empty where it does not, as points of version 0.1 do not of their
    recipe and pixels. by_user: the objects are the user's, none were detected.
    """

    id: PointId
    sha256: str
    pixels: str
    recipe: str
    namespace: str
    places: tuple[Place, ...]
    by_user: bool = False


class Points:
    """Reads and writes the points of a collection that is open, those of the store's namespace."""

    def __init__(self, store: Store) -> None:
        self.store, self.client = store, store.client
        self._shard = {} if store.shard_key is None else {"shard_key": store.shard_key}
        self._selector = {f"{name}_selector": value for name, value in self._shard.items()}
        self._refused_all = True  # until one is written
        known = "update_mode" in inspect.signature(self.client.upsert).parameters
        self._insert_only = {"update_mode": models.UpdateMode.INSERT_ONLY} if known else {}

    # -- reading -------------------------------------------------------------------------------------------

    def stored(self, ids: Sequence[PointId]) -> dict[PointId, StoredPoint]:
        """Those of the ids that are in the collection, in whatever namespace, by id."""
        if not ids:
            return {}
        read = {"with_payload": ORIGIN, "with_vectors": False}
        records = self.store.call("look into", self.client.retrieve, ids=list(ids), **read, **self._selector)
        return {point.id: point for point in map(_stored, records)}

    def at(self, uris: Iterable[str]) -> list[StoredPoint]:
        """Those with a file at one of these places."""
        return [point for some in _pages(uris) for point in self.scan(at(some))]

    def scan(self, condition: models.Filter | None = None) -> Iterator[StoredPoint]:
        """All of the namespace. condition: on top of that."""
        chosen, offset = within(self.store.namespace, condition), None
        while True:
            records, offset = self.store.call(
                "look into",
                self.client.scroll,
                scroll_filter=chosen,
                limit=PAGE,
                offset=offset,
                with_payload=ORIGIN,
                with_vectors=False,
            )
            yield from map(_stored, records)
            if offset is None:
                return

    # -- writing -------------------------------------------------------------------------------------------

    def point(self, id_: PointId, scene: Scene, payload: dict[str, Any]) -> models.PointStruct:
        """A point as the collection wants it. Raises SoirError for vectors that it cannot hold."""
        rows, dim = scene.object_vectors, self.store.dim
        if scene.vector.shape != (dim,) or not (np.isfinite(scene.vector).all() and np.isfinite(rows).all()):
            raise SoirError(
                f"the pipeline made a vector of shape {scene.vector.shape}, or one that is not finite; "
                f"{dim} finite numbers are wanted"
            )
        vectors: dict[str, Any] = {self.store.vector_name: scene.vector.tolist()}
        if self.store.has_objects and len(rows):
            if rows.size >= _MULTIVECTOR_NUMBERS:
                raise ObjectsError(
                    f"{len(rows)} objects are more than one multivector holds: give fewer than "
                    f"{_MULTIVECTOR_NUMBERS // dim}, or leave keep_objects out"
                )
            vectors[OBJECTS] = rows.tolist()
        if self.store.code_numbers and len(rows):
            vectors[CODES] = rows[:, : self.store.code_numbers].tolist()
        vector: Any = vectors[""] if list(vectors) == [""] else vectors
        return models.PointStruct(id=id_, vector=vector, payload=payload)

    def write(
        self, points: Sequence[models.PointStruct], existing: Mapping[PointId, Any] | None = None
    ) -> Iterator[tuple[models.PointStruct, str | None]]:
        """Write points, in requests of bounded size (see `split`); each is written through (`wait`) before
        its points come out, with None, or with the reason why that one was refused.

        Args:
            points: as `point` makes them.
            existing: those of their ids that are in the collection. Of such a point, our vectors and the
                keys of the new payload are written; other vectors and keys stay.

        Raises:
            CollectionError: where each of the first points, two or more, is refused: then it is not theirs.
            ServerError: when the server is lost: what has come out by then is in.
        """
        existing = existing or {}
        for batch in split(points):
            try:
                self._write(batch, existing)
            except Refused as error:
                yield from self._one_by_one(batch, existing, error)
            else:
                self._refused_all = False
                yield from ((point, None) for point in batch)

    def _write(self, points: Sequence[models.PointStruct], existing: Mapping[PointId, Any]) -> None:
        new = [point for point in points if point_id_of(point) not in existing]
        old = [point for point in points if point_id_of(point) in existing]
        if new:  # a point that another process wrote meanwhile is left as it is, where the server can do that
            self.store.write(self.client.upsert, points=new, wait=True, **self._selector, **self._insert_only)
        if old:
            vectors = [models.PointVectors(id=point.id, vector=point.vector) for point in old]
            update = models.UpdateVectors(points=vectors, **self._shard)
            payloads = [self._payload_operation(point.id, point.payload or {}) for point in old]
            self._update([models.UpdateVectorsOperation(update_vectors=update), *payloads])

    def _one_by_one(
        self, points: Sequence[models.PointStruct], existing: Mapping[PointId, Any], error: Refused
    ) -> Iterator[tuple[models.PointStruct, str | None]]:
        if len(points) == 1:
            yield points[0], str(error)
            return
        outcomes: list[tuple[models.PointStruct, str | None]] = []
        for point in points:
            try:
                self._write([point], existing)
            except Refused as own:
                outcomes.append((point, str(own)))
            else:
                self._refused_all = False
                outcomes.append((point, None))
        if self._refused_all:
            raise CollectionError(f"each of the first {len(points)} points was refused: {error}") from error
        yield from outcomes

    def set_places(self, places: Mapping[PointId, Iterable[Place]]) -> None:
        """Write where the files of images lie, and nothing else."""
        for some in _pages(places.items()):
            self._update([self._payload_operation(id_, as_payload(where), KEY) for id_, where in some])

    def set_soir(self, id_: PointId, changes: Mapping[str, Any]) -> None:
        """Write some keys of `payload["soir"]`."""
        self._update([self._payload_operation(id_, changes, KEY)])

    def rename(self, old: PointId, new: PointId, changes: Mapping[str, Any]) -> None:
        """Give a point another id, with all its vectors and payload. changes: to `payload["soir"]`."""
        (record,) = self.store.call(
            "look into", self.client.retrieve, ids=[old], with_payload=True, with_vectors=True
        )
        payload = dict(record.payload or {})
        payload[KEY] = {**payload.get(KEY, {}), **changes}
        point = models.PointStruct(id=new, vector=record.vector or {}, payload=payload)
        self.store.write(self.client.upsert, points=[point], wait=True, **self._selector)
        self.remove([old])

    def set_payload(self, payload: Mapping[str, Any], condition: models.Filter) -> None:
        """Write keys of the user's payload. condition: of which points of the namespace."""
        self.store.write(
            self.client.set_payload,
            payload=dict(payload),
            points=within(self.store.namespace, condition),
            wait=True,
            **self._selector,
        )

    def remove(self, ids: Iterable[PointId]) -> None:
        """Delete points of the namespace."""
        for some in _pages(ids):
            self.remove_where(models.Filter(must=[models.HasIdCondition(has_id=list(some))]))

    def remove_where(self, condition: models.Filter) -> None:
        """Delete the points of the namespace that a condition holds for."""
        chosen = models.FilterSelector(filter=within(self.store.namespace, condition))
        self.store.write(self.client.delete, points_selector=chosen, wait=True, **self._selector)

    def _payload_operation(self, id_: Any, payload: Mapping[str, Any], key: str | None = None) -> Any:
        change = models.SetPayload(payload=dict(payload), points=[id_], key=key, **self._shard)
        return models.SetPayloadOperation(set_payload=change)

    def _update(self, operations: Sequence[Any]) -> None:
        self.store.write(self.client.batch_update_points, update_operations=list(operations), wait=True)


def _stored(record: models.Record) -> StoredPoint:
    soir = (record.payload or {}).get(KEY)
    origin = soir if isinstance(soir, Mapping) else {}
    texts = {name: str(origin.get(name) or "") for name in TEXTS}
    by_user = bool(origin.get("by_user") or origin.get("labels"))  # no detector names labels
    return StoredPoint(id=point_id_of(record), places=places_of(origin), by_user=by_user, **texts)


def _pages(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while page := list(islice(rest, PAGE)):
        yield page
