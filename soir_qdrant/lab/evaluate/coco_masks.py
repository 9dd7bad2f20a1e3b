"""COCO's two ways to write a mask down, as one: polygons, and runs of pixels that are off and on in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from soir_qdrant.errors import DatasetError
from soir_qdrant.types import Mask

FINER = 8  # how many times finer than pixels a polygon is filled


@dataclass(frozen=True, slots=True)
class Outline:
    """An object's mask, not decoded yet.

    Attributes:
        segmentation: COCO's: polygons, `[[x0, y0, x1, y1, ...], ...]`, or runs, `{"size": [H, W], "counts":
            [off, on, off, ...]}`, column by column; None or empty where it is not known.
        height: of the image, in pixels; may be infinite for runs, which have their own.
        width: likewise.
    """

    segmentation: Any
    height: float
    width: float

    @property
    def known(self) -> bool:
        return bool(self.segmentation)

    def mask(self) -> Mask | None:
        """The object's pixels, bool [H, W]; None where they are not known.

        Raises:
            DatasetError: the segmentation is neither, or does not fit its image.
        """
        if not self.known:
            return None
        try:
            if isinstance(self.segmentation, dict):
                return _from_runs(self.segmentation)
            return _from_polygons(self.segmentation, int(self.height), int(self.width))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(
                f"segmentation {str(self.segmentation)[:60]}...: neither polygons nor runs ({error!r})"
            ) from error


def _from_runs(segmentation: dict[str, Any]) -> Mask:
    height, width = (int(side) for side in segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        raise ValueError("compressed runs; decode them with pycocotools")
    runs = np.array(counts, np.int64)
    if runs.sum() != height * width or runs.min() < 0:
        raise ValueError(f"runs of {runs.sum()} pixels for {height} x {width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _from_polygons(polygons: list[list[float]], height: int, width: int) -> Mask:
    """A pixel is the object's where at least half of it lies inside."""
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:  # each alone: where two overlap, cv2 leaves a hole
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        low = np.clip(np.floor(corners.min(0)).astype(int), 0, [width, height])
        high = np.clip(np.ceil(corners.max(0)).astype(int), low, [width, height])
        w, h = (high - low).tolist()
        if w and h:
            fine = np.zeros((h * FINER, w * FINER), np.uint8)
            points = np.round((corners - low) * FINER - 0.5).astype(np.int32)
            cv2.fillPoly(fine, [points], 255)
            share = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA)
            mask[low[1] : high[1], low[0] : high[0]] |= share >= 128
    return mask
