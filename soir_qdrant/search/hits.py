"""From Qdrant's points to hits: as rerankers read them, then as a user gets them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from qdrant_client import models

from soir_qdrant.errors import SoirError
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.identity import point_id_of
from soir_qdrant.qdrant.payload import KEY, best_object, shown
from soir_qdrant.qdrant.schema import OBJECTS
from soir_qdrant.rerank import hit_image
from soir_qdrant.search import localization
from soir_qdrant.types import Hit, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline

log = logging.getLogger(__name__)


def candidate(store: Store, point: models.ScoredPoint, *, with_vectors: bool) -> Hit:
    """A point as a reranker reads it: the payload as it is stored, no box yet."""
    payload = point.payload or {}
    soir = payload.get(KEY)
    rows = point.vector.get(OBJECTS) if isinstance(point.vector, Mapping) else None
    return Hit(
        id=point_id_of(point),
        score=float(point.score),
        uri=soir.get("uri") if isinstance(soir, Mapping) else None,
        box=None,
        payload=payload,
        vector=store.dense(point.vector) if with_vectors else None,
        object_vectors=None if rows is None else np.asarray(rows, np.float32),
    )


def points_of(groups: Sequence[models.PointGroup]) -> list[models.ScoredPoint]:
    """The points of all groups, each once, best first."""
    points = {point.id: point for group in groups for point in group.hits}
    return sorted(points.values(), key=lambda point: -point.score)


def grouped(hits: Sequence[Hit], groups: Sequence[models.PointGroup]) -> list[tuple[str | int, list[Hit]]]:
    """Keys of groups, and the hits whose points are in them, in the order of the hits."""
    keys: dict[str, list[str | int]] = {}
    for group in groups:
        for point in group.hits:
            keys.setdefault(str(point.id), []).append(group.id)
    by_key: dict[str | int, list[Hit]] = {}
    for hit in hits:
        for key in keys[str(hit.id)]:
            by_key.setdefault(key, []).append(hit)
    return list(by_key.items())


def finished(hit: Hit, query: Vector) -> Hit:
    """A hit as a user gets it: with a box, where the reranker gave none, and without what was for rerankers.

    The box is that of the object vector with the largest dot product with the query, where they were fetched;
    else the one that `best_object` chooses by codes.
    """
    if hit.box is None:
        match = best_object(hit.payload, query, hit.object_vectors)
        if match is not None:
            hit = replace(hit, box=match.box, object=match.index)
    return replace(hit, payload=shown(hit.payload), object_vectors=None)


def masked(hit: Hit, pipeline: Pipeline, max_pixels: int) -> Hit:
    """A hit with the mask of its box, where there is one and the image can be opened."""
    if hit.box is None:
        return hit
    try:
        image = hit_image.open_image(hit, max_pixels)
    except SoirError as error:  # such as of a video, where no package reads them
        log.warning("hit %s has no mask: %s", hit.id, error)
        return hit
    return replace(hit, mask=localization.mask(pipeline, image, hit.box))
