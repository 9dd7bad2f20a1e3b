"""Late interaction with what is stored of a hit: its patches in the payload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from soir_qdrant.pooling.patches import late_interaction
from soir_qdrant.qdrant.detail import missing_detail
from soir_qdrant.qdrant.payload import KEY, PATCHES, code_cosines, likeliest, unpack_patches
from soir_qdrant.qdrant.written import gain
from soir_qdrant.rerank import hit_image
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.types import Hit, Vector

WEIGHT = 0.5  # of the patches in the score; see docs/concepts/search.md


def stored_patches(hit: Hit, dim: int) -> list[Vector] | None:
    """The patches of each object of a hit as they are stored, float32 [n, dim], unit rows; None where they are not."""
    packed = hit.payload.get(KEY, {}).get(PATCHES)
    return None if packed is None else [unpack_patches(one, dim) for one in packed]


def by_patches(
    hit: Hit, query: SearchQuery, patches: Vector, objects: Sequence[Vector], weight: float
) -> Hit:
    """A hit with its score by codes and patches, and the box of the object that both like best, the surer one of those
    that they like about as much (`payload.likeliest`).

    Args:
        hit: with the score that it has by codes.
        query: its looks, its pixels, its aspect and what is written on it are read.
        patches: the query's, float32 [n, d], unit rows.
        objects: those of each of the hit's objects, likewise.
        weight: of late interaction, less what an object lacks in pixels (`detail.missing_detail`), in the score, 0..1.
    """
    boxes = hit_image.boxes(hit)
    lost = missing_detail(hit.payload[KEY], query.pixels)
    late = late_interaction(patches, objects) - lost
    by_code = code_cosines(hit.payload, query.rows)
    likeness = late if by_code is None or len(by_code) != len(late) else (late + by_code - lost) / 2
    best = likeliest(hit.payload, likeness, query.aspect)
    score = (1 - weight) * hit.score + weight * (float(late.max()) + gain(hit.payload, query.written))
    return replace(hit, score=score, box=boxes[best] if boxes else None, object=best if boxes else None)
