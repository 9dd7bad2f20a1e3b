"""Pixels at another size."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SLIGHTLY = 4 / 3  # times as large as it is to be: up to that, four pixels tell the mean of an area
MUCH = 4  # times as large as it is to be: such a plane is halved first, which OpenCV does many times as fast


class Halves:
    """An image, and it at half its sides, at a quarter and so on, each made when it is first read: what is made small
    for many objects is so in part once for all of them.

    Args:
        image: uint8 or float32 [H, W, ...].
    """

    def __init__(self, image: NDArray[Any]) -> None:
        self.shape = image.shape
        self._planes = [image]

    @classmethod
    def of(cls, image: NDArray[Any] | Halves) -> Halves:
        """Of an image, or those that it has."""
        return image if isinstance(image, Halves) else cls(image)

    def showing(self, side: float, size: int) -> tuple[NDArray[Any], float]:
        """The smallest that shows `side` pixels of the image by twice `size` or more, else the image itself, and its
        scale, 1 or less."""
        level = 0
        while side >= MUCH * size * 2**level:
            level += 1
        while len(self._planes) <= level:
            half = cv2.resize(self._planes[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            self._planes.append(half)
        return self._planes[level], 0.5**level


def resized(
    plane: NDArray[Any], width: int, height: int, enlarged_by: int = cv2.INTER_LINEAR
) -> NDArray[Any]:
    """An image or mask at another size, of its dtype: about means of areas where it becomes smaller.

    OpenCV's own means of areas take several times as long, unless the area is four pixels.

    Args:
        plane: uint8 or float32 [H, W, ...].
        width: in pixels, as `height`, both 1 at least.
        height: likewise.
        enlarged_by: OpenCV's interpolation where one side or both become no smaller.

    Returns:
        [height, width, ...].
    """
    plane, _ = Halves(plane).showing(min(plane.shape[0] / height, plane.shape[1] / width), 1)
    ratios = plane.shape[0] / height, plane.shape[1] / width
    size, method = (width, height), enlarged_by
    if min(ratios) > 1:
        method = cv2.INTER_AREA if max(ratios) > MUCH else cv2.INTER_LINEAR
        if SLIGHTLY < max(ratios) <= MUCH:
            plane, method = cv2.resize(plane, (2 * width, 2 * height)), cv2.INTER_AREA
    return np.asarray(cv2.resize(plane, size, interpolation=method), plane.dtype)
