"""A query object as a camera held askew would show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from soir_qdrant.geometry.crops import full_mask
from soir_qdrant.geometry.plain_background import box_of_query
from soir_qdrant.geometry.resize import resized
from soir_qdrant.types import RGB, SceneObject

AROUND = 1.1  # side of what is turned, in diagonals of the box
SHOWN = 3  # times the pixels of a crop's side that it is turned with at most


def turned(image: RGB, item: SceneObject, degrees: float, size: int) -> tuple[RGB, SceneObject]:
    """An object and what is around it, turned about the middle of its box.

    Args:
        image: uint8 [H, W, 3].
        item: one object of it.
        degrees: counter-clockwise.
        size: of the crop that will be cut, in pixels of its side.

    Returns:
        Another image, uint8 [S, S, 3], beyond the edge of the first as at it, and the object there: its mask turned
        with it, its box around that. As they were where nothing of the mask is left.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = item.box
    side = max(round(AROUND * float(np.hypot(x1 - x0, y1 - y0))), 2)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    beyond = max(-top, 0), max(top + side - height, 0), max(-left, 0), max(left + side - width, 0)
    pixels = cv2.copyMakeBorder(image[rows, columns], *beyond, cv2.BORDER_REPLICATE)
    inside = full_mask(item, width, height)[rows, columns].astype(np.uint8) * 255
    inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT, value=(0,))
    shown = min(side, SHOWN * size)
    turn = cv2.getRotationMatrix2D(((shown - 1) / 2, (shown - 1) / 2), degrees, 1)
    view = cv2.warpAffine(
        resized(pixels, shown, shown), turn, (shown, shown), borderMode=cv2.BORDER_REPLICATE
    )
    mask = cv2.warpAffine(resized(inside, shown, shown), turn, (shown, shown)) > 127
    if not mask.any():
        return image, item
    rgb = np.asarray(view, np.uint8)
    return rgb, replace(item, box=box_of_query(rgb, mask), mask=mask)


def both_ways(
    image: RGB, item: SceneObject, turns: Sequence[float], size: int
) -> tuple[list[RGB], list[list[SceneObject]]]:
    """An object as it is, and turned by each of `turns` degrees to one side and to the other: images, and what of each
    is looked at. size: see `turned`."""
    views = [turned(image, item, side * degrees, size) for degrees in turns for side in (-1, 1)]
    return [image, *(rgb for rgb, _ in views)], [[item], *([view] for _, view in views)]
