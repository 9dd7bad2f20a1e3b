"""What is read of points that a search has ranked already: by their ids, in a request of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from qdrant_client import models

from soir_qdrant.qdrant.arguments import without_none
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.identity import PointId, point_id_of
from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.timing import stage

Patches: TypeAlias = dict[PointId, dict[str, Any]]
OF_PATCHES = models.PayloadSelectorInclude(
    include=[f"{KEY}.{name}" for name in (PATCHES, "sha256", "recipe")]
)


def patches_of(
    store: Store, ids: Sequence[PointId], shard_key: models.ShardKeySelector | None, **options: Any
) -> Patches:
    """Of each point that is still there, by id: its `patches`, as `pack_patches` wrote them, where it has some, and the
    `sha256` and `recipe` of which they are. options: consistency, timeout; None is the client's own."""
    records = _records(store, ids, shard_key, with_payload=OF_PATCHES, with_vectors=False, **options)
    return {point: (record.payload or {}).get(KEY) or {} for point, record in records.items()}


def with_payloads(
    store: Store,
    pages: Sequence[Sequence[models.ScoredPoint]],
    request: models.QueryRequest,
    **options: Any,
) -> list[list[models.ScoredPoint]]:
    """Pages of points of which ids and scores are known, with the payload and the vectors that the request asks for;
    those that are gone since are left out. options: as in `patches_of`."""
    ids = {point_id_of(point) for page in pages for point in page}
    what = {"with_payload": request.with_payload, "with_vectors": request.with_vector}
    records = _records(store, list(ids), request.shard_key, **what, **options)
    return [
        [
            point.model_copy(update={"payload": record.payload, "vector": record.vector})
            for point in page
            if (record := records.get(point_id_of(point))) is not None
        ]
        for page in pages
    ]


@stage("qdrant")
def _records(
    store: Store, ids: Sequence[PointId], shard_key: models.ShardKeySelector | None, **options: Any
) -> dict[PointId, models.Record]:
    if not ids:
        return {}
    arguments = without_none({**options, "shard_key_selector": shard_key})
    records = store.call("search", store.client.retrieve, ids=list(ids), **arguments)
    return {point_id_of(record): record for record in records}
