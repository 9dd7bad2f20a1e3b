"""Arithmetic of boxes, [n, 4] arrays of x0 y0 x1 y1, and the choice among overlapping ones. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.types import Detections

Floats = NDArray[np.floating]
MIN_SIDE = 1.0  # pixels; smaller boxes are dropped


def areas(boxes: Floats) -> Floats:
    """boxes: [n, 4]. Floats [n], 0 for an inverted box."""
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.asarray(sides[:, 0] * sides[:, 1])


def overlap(one: Floats, other: Floats) -> Floats:
    """Common area of each pair. one: [n, 4]; other: [m, 4]. Floats [n, m]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def intersection_over_union(one: Floats, other: Floats) -> Floats:
    """one: [n, 4]; other: [m, 4]. Floats [n, m]."""
    common = overlap(one, other)
    union = areas(one)[:, None] + areas(other)[None] - common
    return np.asarray(common / np.maximum(union, 1e-9))


def pick(
    boxes: Floats, scores: Floats, *, iou: float, max_count: int, decay: float = 0.0
) -> tuple[NDArray[np.int64], Floats]:
    """Greedy non-maximum suppression: indices of the kept boxes, best first, and their scores, descending.

    boxes: [n, 4]; scores: [n]. A box that overlaps a kept one by more than `iou` is dropped. decay: the
    others lose this share of their score times how far the one lies in the other (common area over that
    of the smaller one): so parts of a kept whole, and wholes around a kept part, come later.
    """
    left = np.asarray(scores, np.float64).copy()
    size = np.maximum(areas(boxes), 1e-9)
    chosen: list[int] = []
    values: list[float] = []
    while len(chosen) < max_count and len(left):
        best = int(np.argmax(left))
        if left[best] < 0:
            break
        chosen.append(best)
        values.append(float(left[best]))
        common = overlap(boxes[best][None], boxes)[0]
        left *= 1 - decay * common / np.minimum(size, size[best])
        left[common / np.maximum(size + size[best] - common, 1e-9) > iou] = -1
        left[best] = -1
    return np.array(chosen, np.int64), np.array(values, np.float64)


def finish(boxes: Floats, scores: Floats, shape: tuple[int, ...], *, threshold: float) -> Detections:
    """Detections of boxes that were picked: cut to the image, at or above the threshold, in descending order.

    boxes: [n, 4] in pixels; scores: [n], 0..1; shape: H, W, ... of the image.
    """
    limits = np.array([shape[1], shape[0]] * 2, np.float32)
    boxes = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), 0, limits)
    scores = np.clip(np.asarray(scores, np.float32).reshape(-1), 0, 1)
    sound = (scores >= threshold) & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= MIN_SIDE)
    order = np.flatnonzero(sound)[np.argsort(-scores[sound], kind="stable")]
    return Detections(np.ascontiguousarray(boxes[order]), np.ascontiguousarray(scores[order]))


def suppressed(
    boxes: Floats, scores: Floats, shape: tuple[int, ...], *, threshold: float, iou: float, max_objects: int
) -> Detections:
    """The detections among what a model proposed: the best at or above the threshold, suppressed.

    boxes: [n, 4] in pixels; scores: [n], 0..1; shape: H, W, ... of the image.
    """
    above = scores >= threshold
    rows, values = pick(boxes[above], scores[above], iou=iou, max_count=max_objects)
    return finish(boxes[above][rows], values, shape, threshold=threshold)


def from_square(
    boxes: Floats,
    scores: Floats,
    shape: tuple[int, ...],
    *,
    threshold: float = 0.2,
    iou: float = 0.4,
    max_objects: int = 25,
) -> Detections:
    """The detections among what a model proposed on an image padded to a square at the right and bottom.

    boxes: [n, 4], in shares of the square; scores: [n], 0..1; shape: H, W, ... of the image.
    """
    height, width = shape[:2]
    corners = np.clip(boxes * max(height, width), 0, [width, height, width, height])
    sound = (corners[:, 2:] - corners[:, :2]).min(axis=1, initial=np.inf) >= MIN_SIDE
    return suppressed(
        corners[sound], scores[sound], shape, threshold=threshold, iou=iou, max_objects=max_objects
    )
