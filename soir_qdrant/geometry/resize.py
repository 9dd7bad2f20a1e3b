"""Pixels at another size."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MUCH = 4  # times as large as it is to be: such a plane is halved first, which OpenCV does many times as fast


def resized(
    plane: NDArray[Any], width: int, height: int, enlarged_by: int = cv2.INTER_LINEAR
) -> NDArray[Any]:
    """An image or mask at another size, of its dtype: means of areas where it becomes smaller.

    Args:
        plane: uint8 or float32 [H, W, ...].
        width: in pixels, as `height`, both 1 at least.
        height: likewise.
        enlarged_by: OpenCV's interpolation where one side or both become no smaller.

    Returns:
        [height, width, ...].
    """
    while plane.shape[0] >= MUCH * height and plane.shape[1] >= MUCH * width:
        plane = cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    smaller = plane.shape[0] > height and plane.shape[1] > width
    method = cv2.INTER_AREA if smaller else enlarged_by
    return np.asarray(cv2.resize(plane, (width, height), interpolation=method), plane.dtype)
