"""The foreground of a picture taken on a background of one colour, such as a product shot on white."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.geometry.crops import whole_box
from soir_qdrant.geometry.masks import extent
from soir_qdrant.types import RGB, Box, Mask

SIDE = 400  # pixels of the longer side at which the background is filled
RING = 0.02  # width of the border that tells the background's colour, as a fraction of the shorter side
PLAIN_SHARE = 0.8  # of the border that must be of one colour: things may touch it
MAX_NOISE = 6.0  # CIELAB distance from that colour up to which it is one
MIN_TOLERANCE = 1.5, 4.0  # CIELAB distances, strict and loose, up to which a pixel is background
MIN_AREA, MAX_AREA = 0.03, 0.97  # of the foreground, as a share of the picture
MIN_CONTRAST = 10.0  # CIELAB distance of the foreground's median pixel from the background
MAX_LEAK = 0.3  # share of the strict foreground that the loose fill may take away
MIN_PART = 0.02  # smallest part of the foreground, as a share of the largest
QUERY_FRAME = 0.05  # of each side of a query image that is taken for background
BOX_MARGIN = 0.1  # of the longer side of a box that is looked at around it


def plain_foreground(image: RGB, box: Box | None = None) -> Mask | None:
    """The pixels that differ from a plain background, where there is one.

    The median colour of the border is the background's; all that is like it and connected to the border is
    background. Holes inside stay with the object: a white label is one, and so is the gap in a handle.

    Args:
        image: uint8 [H, W, 3].
        box: x0, y0, x1, y1 in pixels, where the object is in a larger picture; the border is then that of
            the box with a margin around it.

    Returns:
        bool [H, W], False outside the box; None where the border is not of one colour, the foreground is too
        small or too large, or it differs so little from the background that the cut cannot be trusted: a
        pale thing on a pale background.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (0, 0, width, height) if box is None else _around(box, width, height)
    part = image[y0:y1, x0:x1]
    if min(part.shape[:2]) < 8:
        return None
    shrink = min(1.0, SIDE / max(part.shape[:2]))
    size = max(round(part.shape[1] * shrink), 8), max(round(part.shape[0] * shrink), 8)
    small = part if shrink == 1 else cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    cut = _cut(small)
    if cut is None:
        return None
    full = np.zeros((height, width), np.bool_)
    shape = part.shape[1], part.shape[0]
    full[y0:y1, x0:x1] = cv2.resize(cut.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR) >= 0.5
    if box is not None:
        u0, v0, u1, v1 = whole_box(box, width, height)
        inside = np.zeros_like(full)
        inside[v0:v1, u0:u1] = full[v0:v1, u0:u1]
        full = inside
    return full if full.any() else None


def _around(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    margin = BOX_MARGIN * max(box[2] - box[0], box[3] - box[1])
    x0, y0, x1, y1 = box
    return whole_box((x0 - margin, y0 - margin, x1 + margin, y1 + margin), width, height)


def _cut(image: RGB) -> Mask | None:
    """The foreground of a whole picture, bool [H, W], or None."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    ring = _ring(*image.shape[:2])
    border = lab[ring]
    distances = np.linalg.norm(border - np.median(border, axis=0), axis=1)
    plain = distances <= MAX_NOISE
    if plain.mean() < PLAIN_SHARE:
        return None
    colour = border[plain].mean(0)
    noise = float(np.percentile(np.linalg.norm(border[plain] - colour, axis=1), 95))
    distance = np.linalg.norm(lab - colour, axis=2).astype(np.float32)
    strict, loose = (
        _without_specks(~_filled(distance <= max(tolerance, factor * noise), ring))
        for tolerance, factor in zip(MIN_TOLERANCE, (1.5, 2.5), strict=True)
    )
    if not MIN_AREA <= loose.mean() <= MAX_AREA:
        return None
    if np.median(distance[loose]) < MIN_CONTRAST or loose.sum() < (1 - MAX_LEAK) * strict.sum():
        return None
    return _without_rim(loose, distance)


def _ring(height: int, width: int) -> Mask:
    edge = max(1, round(RING * min(height, width)))
    ring = np.ones((height, width), np.bool_)
    ring[edge:-edge, edge:-edge] = False
    return ring


def _filled(alike: Mask, ring: Mask) -> Mask:
    """The part of `alike` that is connected to the border, bool [H, W]."""
    _, labels = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    reached = np.unique(labels[alike & ring])
    filled: Mask = np.isin(labels, reached[reached > 0])
    return filled


def _without_rim(mask: Mask, distance: NDArray[np.float32]) -> Mask:
    """The mask without the mixed pixels of its edge: those that are nearer to the background's colour than to
    what lies two pixels further in."""
    near = np.ones((5, 5), np.uint8)
    edge = mask & (cv2.erode(mask.astype(np.uint8), near, borderValue=1) == 0)
    inner: Mask = mask & ~(edge & (distance < cv2.dilate(distance, near) / 2))
    return inner if inner.any() else mask


def _without_specks(mask: Mask) -> Mask:
    """The mask without lines of noise and parts that are small beside the largest."""
    opened: NDArray[np.uint8] = cv2.morphologyEx(
        mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)
    )
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    if count < 2:
        return np.zeros_like(mask)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    large: Mask = (areas >= MIN_PART * areas.max())[labels] & (labels > 0)
    return large


def box_of_query(image: RGB, mask: Mask | None) -> Box:
    """Where the object of a query image [H, W, 3] is: round its mask, bool [H, W], where that shows one, else in all of
    it but a frame, which the segmenter learns the background from."""
    height, width = image.shape[:2]
    around = None if mask is None else extent(mask)
    if around is not None:
        x0, y0, x1, y1 = around
        return float(x0), float(y0), float(x1), float(y1)
    x, y = round(width * QUERY_FRAME), round(height * QUERY_FRAME)
    return float(x), float(y), float(width - x), float(height - y)
