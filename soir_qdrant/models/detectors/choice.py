"""Boxes out of what the cells of a detector's grid say of an image, wherever its network runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soir_qdrant.geometry.boxes import Floats, intersection_over_union, suppressed
from soir_qdrant.types import Detections

THRESHOLD, IOU = 0.25, 0.7  # see docs/concepts/detector.md; boxes are suppressed again once they are fitted
MAX_CELLS = 1000  # that may name a box
MAX_OF_LOOK = 400  # the same of each look, where there are several
SAME = 0.6  # IoU from which on two looks name the same thing
AGREEMENT = 0.15  # share of a box's score that the other looks say: so scores mean what those of one look do


def combined(
    looks: Sequence[tuple[Floats, Floats]], other: tuple[Floats, Floats] | None = None
) -> tuple[Floats, Floats]:
    """What several looks at one image say, each at another area of it, and then what another detector says.

    A box lies where those that name it say in the mean, by their scores, and counts for less where the others do not
    name it: boxes fused as in arXiv 1910.13302, before the best of them are chosen.

    Args:
        looks: of each its scores [n], 0..1, and boxes [n, 4] in pixels of the image. One alone stays as it is.
        other: the same of the other detector: one more look, beside what all of these say together.

    Returns:
        Scores and boxes of all looks, one after the other.
    """
    if other is not None:
        return combined([combined(looks), other])
    if len(looks) == 1:
        return looks[0]
    rows = [np.argsort(-scores, kind="stable")[:MAX_OF_LOOK] for scores, _ in looks]
    best = [(scores[some], boxes[some]) for (scores, boxes), some in zip(looks, rows, strict=True)]
    fused = [_fused(look, [other for other in best if other is not look]) for look in best]
    scores, boxes = (np.concatenate(part) for part in zip(*fused, strict=True))
    return scores, boxes


def _fused(look: tuple[Floats, Floats], others: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The scores and boxes of one look, as the others see them."""
    scores, boxes = look
    weight, corners, agreement = scores.copy(), boxes * scores[:, None], np.zeros_like(scores)
    for their_scores, their_boxes in others:
        same = np.where(intersection_over_union(boxes, their_boxes) >= SAME, their_scores, 0)
        nearest = same.argmax(1)
        theirs = same[np.arange(len(same)), nearest]
        weight += theirs
        corners += their_boxes[nearest] * theirs[:, None]
        agreement += theirs / len(others)
    return (1 - AGREEMENT) * scores + AGREEMENT * agreement, corners / np.maximum(weight, 1e-9)[:, None]


def chosen(
    scores: Floats,
    boxes: Floats,
    size: tuple[int, int],
    *,
    threshold: float,
    iou: float,
    max_objects: int = 25,
) -> Detections:
    """The best of what the cells say. scores: [n], 0..1; boxes: [n, 4] in pixels of an image of `size`
    (width, height)."""
    best = np.argsort(-scores, kind="stable")[:MAX_CELLS]
    corners = np.clip(boxes[best].astype(np.float64), 0, [*size, *size])
    shape, values = (size[1], size[0]), scores[best].astype(np.float64)
    return suppressed(corners, values, shape, threshold=threshold, iou=iou, max_objects=max_objects)
