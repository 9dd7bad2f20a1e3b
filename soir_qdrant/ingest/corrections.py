"""Images removed and payloads corrected, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest.places import Places
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.identity import PointId, at, check_id
from soir_qdrant.qdrant.points import Points

T = TypeVar("T")


def remove(
    store: Store, ids: Iterable[PointId], uris: Iterable[str | Path], condition: models.Filter | None
) -> None:
    """See `SoirIngestor.remove`."""
    points = Points(store)
    places = Places(points)
    points.remove([check_id(id_) for id_ in _listed("ids", ids)])
    files = [str(uri) for uri in _listed("uris", uris)]
    for point in points.at(files):
        places.leave(point.id, *files)
    places.write()
    if condition is not None:
        points.remove_where(condition)


def update_payload(
    store: Store,
    payload: Mapping[str, Any],
    ids: Iterable[PointId],
    uris: Iterable[str | Path],
    condition: models.Filter | None,
) -> None:
    """See `SoirIngestor.update_payload`."""
    files = [str(uri) for uri in _listed("uris", uris)]
    listed = [check_id(id_) for id_ in _listed("ids", ids)]
    for chosen in (
        models.Filter(must=[models.HasIdCondition(has_id=listed)]) if listed else None,
        at(files) if files else None,
        condition,
    ):
        if chosen is not None:
            Points(store).set_payload(payload, chosen)


def _listed(name: str, values: Iterable[T]) -> list[T]:
    if isinstance(values, (str, bytes)):
        raise ConfigError(f"{name}: give a list, such as [{values!r}]")
    return list(values)
