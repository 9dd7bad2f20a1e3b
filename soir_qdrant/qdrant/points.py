"""The points of one collection: what is stored of an image, written, renewed and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models

from soir_qdrant.errors import ObjectsError, SoirError
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.payload import KEY, PointId
from soir_qdrant.qdrant.schema import OBJECTS
from soir_qdrant.qdrant.transport import Refused, split
from soir_qdrant.types import Scene

ORIGIN = ("sha256", "recipe")  # of payload["soir"]: what tells where a point came from
_MULTIVECTOR_NUMBERS = 1_048_576  # Qdrant's limit for one multivector


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """What a point says of its image. Empty strings where it does not, as points of version 0.1 do not of
    their recipe."""

    id: PointId
    sha256: str
    recipe: str


class Points:
    """Reads and writes the points of a collection that is open."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def stored(self, ids: Sequence[PointId]) -> dict[PointId, StoredPoint]:
        """Those of the ids that are in the collection, by id."""
        if not ids:
            return {}
        records = self.store.call(
            "look into",
            self.store.client.retrieve,
            ids=list(ids),
            with_payload=[f"{KEY}.{name}" for name in ORIGIN],
            with_vectors=False,
        )
        return {point.id: point for point in map(_stored, records)}

    def point(self, id_: PointId, scene: Scene, payload: dict[str, Any]) -> models.PointStruct:
        """A point as the collection wants it. Raises SoirError for vectors that it cannot hold."""
        rows, dim = scene.object_vectors, self.store.dim
        if scene.vector.shape != (dim,) or not (np.isfinite(scene.vector).all() and np.isfinite(rows).all()):
            raise SoirError(
                f"the pipeline made a vector of shape {scene.vector.shape}, or one that is not finite; "
                f"{dim} finite numbers are wanted"
            )
        vector: Any = scene.vector.tolist()
        if self.store.has_objects and len(rows):
            if rows.size >= _MULTIVECTOR_NUMBERS:
                raise ObjectsError(
                    f"{len(rows)} objects are more than one multivector holds: give fewer than "
                    f"{_MULTIVECTOR_NUMBERS // dim}, or leave keep_objects out"
                )
            vector = {self.store.vector_name: vector, OBJECTS: rows.tolist()}
        elif self.store.vector_name:
            vector = {self.store.vector_name: vector}
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
            ServerError: when the server is lost: what has come out by then is in.
        """
        existing = existing or {}
        for batch in split(points):
            try:
                self._write(batch, existing)
            except Refused as error:
                if error.status == 404:  # the collection is gone
                    raise
                yield from self._one_by_one(batch, existing, error)
            else:
                yield from ((point, None) for point in batch)

    def _write(self, points: Sequence[models.PointStruct], existing: Mapping[PointId, Any]) -> None:
        new = [point for point in points if point_id_of(point) not in existing]
        if new:
            self.store.call("write to", self.store.client.upsert, points=new, wait=True)
        old = [point for point in points if point_id_of(point) in existing]
        if not old:
            return
        vectors = models.UpdateVectors(
            points=[models.PointVectors(id=point.id, vector=point.vector) for point in old]
        )
        payloads = [
            models.SetPayloadOperation(
                set_payload=models.SetPayload(payload=point.payload or {}, points=[point.id])
            )
            for point in old
        ]
        self.store.call(
            "write to",
            self.store.client.batch_update_points,
            update_operations=[models.UpdateVectorsOperation(update_vectors=vectors), *payloads],
            wait=True,
        )

    def _one_by_one(
        self, points: Sequence[models.PointStruct], existing: Mapping[PointId, Any], error: Refused
    ) -> Iterator[tuple[models.PointStruct, str | None]]:
        if len(points) == 1:
            yield points[0], str(error)
            return
        for point in points:
            try:
                self._write([point], existing)
            except Refused as own:
                yield point, str(own)
            else:
                yield point, None


def point_id_of(point: models.PointStruct | models.Record) -> PointId:
    """The id as this package writes it: a whole number, or a UUID as text."""
    return point.id if isinstance(point.id, int) else str(point.id)


def _stored(record: models.Record) -> StoredPoint:
    soir = (record.payload or {}).get(KEY)
    origin = soir if isinstance(soir, Mapping) else {}
    return StoredPoint(point_id_of(record), str(origin.get("sha256") or ""), str(origin.get("recipe") or ""))
