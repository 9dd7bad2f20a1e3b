"""A query object as a tilted camera would show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from soir_qdrant.geometry.crops import bordered, full_mask
from soir_qdrant.geometry.plain_background import box_of_query
from soir_qdrant.geometry.resize import resized
from soir_qdrant.types import RGB, SceneObject

AROUND = 1.1  # side of what is turned, in diagonals of the box
SHOWN = 3  # times the pixels of a crop's side that it is turned with at most


def turned(
    image: RGB, item: SceneObject, degrees: Sequence[float], size: int
) -> list[tuple[RGB, SceneObject]]:
    """An object and what is around it, turned about the middle of its box.

    Args:
        image: uint8 [H, W, 3].
        item: one object of it.
        degrees: counter-clockwise, of each view.
        size: of the crop that will be cut, in pixels of its side.

    Returns:
        For each view another image, uint8 [S, S, 3], beyond the edge of the first as at it, and the object there: its
        mask turned with it, its box around that. As they were where nothing of the mask is left.
    """
    if not degrees:
        return []
    height, width = image.shape[:2]
    x0, y0, x1, y1 = item.box
    side = max(round(AROUND * float(np.hypot(x1 - x0, y1 - y0))), 2)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    corners = left, top, left + side, top + side
    pixels = bordered(image, *corners, cv2.BORDER_REPLICATE)
    mask = full_mask(item, width, height).view(np.uint8) * np.uint8(255)
    inside = bordered(mask, *corners, cv2.BORDER_CONSTANT)
    shown = min(side, SHOWN * size)
    pixels, inside = resized(pixels, shown, shown), resized(inside, shown, shown)
    views = []
    for angle in degrees:
        turn = cv2.getRotationMatrix2D(((shown - 1) / 2, (shown - 1) / 2), angle, 1)
        visible = cv2.warpAffine(inside, turn, (shown, shown)) > 127
        if not visible.any():
            views.append((image, item))
            continue
        view = cv2.warpAffine(pixels, turn, (shown, shown), borderMode=cv2.BORDER_REPLICATE)
        rgb = np.asarray(view, np.uint8)
        views.append((rgb, replace(item, box=box_of_query(rgb, visible), mask=visible)))
    return views
