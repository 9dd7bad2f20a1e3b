"""What is read of points that a search has ranked already: by their ids, in a request of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from soir_qdrant.qdrant.arguments import without_none
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.timing import stage

OF_PATCHES = models.PayloadSelectorInclude(include=[f"{KEY}.{PATCHES}"])


def patches_of(
    store: Store, ids: Sequence[str | int], shard_key: models.ShardKeySelector | None, **options: Any
) -> dict[str | int, list[str]]:
    """The stored patches of points, as `pack_patches` wrote them, by id: of those that have some and are still there.
    options: consistency, timeout; None is the client's own."""
    records = _records(store, ids, shard_key, with_payload=OF_PATCHES, with_vectors=False, **options)
    return {
        point: record.payload[KEY][PATCHES]
        for point, record in records.items()
        if record.payload and PATCHES in record.payload.get(KEY, {})
    }


def filled(
    store: Store, points: Sequence[models.ScoredPoint], request: models.QueryRequest, **options: Any
) -> list[models.ScoredPoint]:
    """Points of which ids and scores are known, with the payload and the vectors that the request asks for, those that
    are still there. options: as in `patches_of`."""
    ids = [_plain(point.id) for point in points]
    what = {"with_payload": request.with_payload, "with_vectors": request.with_vector}
    records = _records(store, ids, request.shard_key, **what, **options)
    return [
        point.model_copy(update={"payload": records[i].payload, "vector": records[i].vector})
        for i, point in zip(ids, points, strict=True)
        if i in records
    ]


@stage("qdrant")
def _records(
    store: Store, ids: Sequence[str | int], shard_key: models.ShardKeySelector | None, **options: Any
) -> dict[str | int, models.Record]:
    if not ids:
        return {}
    arguments = without_none({**options, "shard_key_selector": shard_key})
    records = store.call("search", store.client.retrieve, ids=list(ids), **arguments)
    return {_plain(record.id): record for record in records}


def _plain(point: models.ExtendedPointId) -> str | int:
    return point if isinstance(point, int) else str(point)
