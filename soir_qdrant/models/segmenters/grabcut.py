"""A mask per box by GrabCut, which needs no training."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Segmenter
from soir_qdrant.geometry.crops import whole_box
from soir_qdrant.geometry.masks import ellipse
from soir_qdrant.kinds import Parts, SegmenterSettings
from soir_qdrant.types import RGB, Mask


class GrabCutSegmenter(Segmenter):
    """GrabCut on a bounded crop around each box: at first all of the box may be the object, and a margin
    around it surely is not.

    side: longest side of the box, in pixels, at which the cut is computed. iterations: of GrabCut.
    margin: as a fraction of the sides of the box. A result that covers too little or too much of the box
    is replaced by the ellipse in it.
    """

    name = "grabcut"

    def __init__(self, *, side: int = 96, iterations: int = 1, margin: float = 0.25) -> None:
        self.side = side
        self.iterations = iterations
        self.margin = margin

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        height, width = image.shape[:2]
        return [self._cut(image, whole_box(_box(row), width, height)) for row in boxes]

    def for_queries(self) -> GrabCutSegmenter:
        """A finer cut."""
        return GrabCutSegmenter(side=160, iterations=5, margin=self.margin)

    def _cut(self, image: RGB, frame: tuple[int, int, int, int]) -> Mask:
        x0, y0, x1, y1 = frame
        shape = (y1 - y0, x1 - x0)
        if min(shape) < 4:
            return np.ones(shape, np.bool_)
        crop, (left, top, right, bottom) = self._crop(image, frame)
        seed = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
        seed[top:bottom, left:right] = cv2.GC_PR_FGD
        if not (seed == cv2.GC_BGD).any():
            seed[[0, -1]] = seed[:, [0, -1]] = cv2.GC_BGD
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        try:
            cv2.grabCut(crop, seed, None, *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        except cv2.error:  # a crop with too few colours for its mixture models
            return ellipse(shape)
        mask = np.isin(seed[top:bottom, left:right], (cv2.GC_FGD, cv2.GC_PR_FGD))
        mask = _resized(mask, shape)
        return mask if 0.1 <= mask.mean() <= 0.98 else ellipse(shape)

    def _crop(self, image: RGB, frame: tuple[int, int, int, int]) -> tuple[RGB, tuple[int, int, int, int]]:
        """The surroundings of a box at bounded resolution, and the box in them."""
        x0, y0, x1, y1 = frame
        height, width = image.shape[:2]
        dx, dy = max(2, round((x1 - x0) * self.margin)), max(2, round((y1 - y0) * self.margin))
        u0, v0, u1, v1 = max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, width), min(y1 + dy, height)
        shrink = min(1.0, self.side / max(x1 - x0, y1 - y0))
        size = max(round((u1 - u0) * shrink), 4), max(round((v1 - v0) * shrink), 4)
        crop = cv2.resize(image[v0:v1, u0:u1], size, interpolation=cv2.INTER_AREA)
        sx, sy = size[0] / (u1 - u0), size[1] / (v1 - v0)
        left, top = round((x0 - u0) * sx), round((y0 - v0) * sy)
        right, bottom = max(round((x1 - u0) * sx), left + 1), max(round((y1 - v0) * sy), top + 1)
        return np.ascontiguousarray(crop), (left, top, min(right, size[0]), min(bottom, size[1]))


def make(settings: SegmenterSettings, parts: Parts) -> GrabCutSegmenter:  # noqa: ARG001
    """The kind `grabcut`."""
    return GrabCutSegmenter()


def _resized(mask: Mask, shape: tuple[int, int]) -> Mask:
    resized = cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR) >= 0.5
    return resized if resized.any() else np.ones(shape, np.bool_)


def _box(row: NDArray[np.floating]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in row)
    return x0, y0, x1, y1
