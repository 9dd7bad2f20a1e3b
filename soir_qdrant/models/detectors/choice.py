"""Boxes out of what the cells of a detector's grid say, wherever its network runs."""

from __future__ import annotations

import numpy as np

from soir_qdrant.geometry.boxes import Floats, suppressed
from soir_qdrant.types import Detections

THRESHOLD, IOU = 0.25, 0.7  # see docs/concepts/detector.md; boxes are suppressed again once they are fitted
MAX_CELLS = 1000  # that may name a box


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
