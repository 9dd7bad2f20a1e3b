"""The learned detector: a light head on the encoder's tokens says of every cell what object it lies in.

It is trained in torch (`soir train detector`) and run in NumPy, beside any trunk, local or served.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant import parts
from soir_qdrant.types import RGB, Detections
from soir_qdrant.vision.boxes import finish, pick
from soir_qdrant.vision.embedded import GRID_AREA, TokenSource
from soir_qdrant.vision.layers import Floats, block, linear, silu, standardized
from soir_qdrant.vision.tiles import tiled_grid

PIXELS = 8  # side of a cell in the small picture that the head sees beside the tokens
AREA = 702 * 942  # pixels at which an image is looked at: objects a little larger than a head learnt them
THRESHOLD, IOU = 0.45, 0.7  # see docs/detector.md; boxes are suppressed again once they are fitted
MOST_CELLS = 400  # that may name a box


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """weights: of `train.head.Head`, float32, by name. depth: its 3 x 3 convolutions. fitted_for: whose
    tokens it reads, a fingerprint of the encoder without the size of its crops."""

    weights: dict[str, Floats]
    depth: int
    fitted_for: str

    def __call__(self, grid: NDArray[np.floating], small: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """grid, small: of `inputs`. Scores, 0..1, [h, w], the IoU that each cell expects of its box, and the
        boxes, [h, w, 4], x0, y0, x1, y1 in cells."""
        h, w, dim = grid.shape
        tokens = standardized(grid.reshape(h * w, dim))
        cells = small.reshape(h, PIXELS, w, PIXELS, 3).transpose(0, 2, 4, 1, 3).reshape(h * w, -1)
        pixels = (cells.astype(np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(4)
        x = silu(linear(self.weights, "tokens", tokens) + linear(self.weights, "pixels", pixels))
        x = x.reshape(h, w, -1)
        for i in range(self.depth):
            x = x + block(self.weights, f"blocks.{i}", x, apart=1 + i % 2)
        out = linear(self.weights, "out", x.reshape(h * w, -1)).reshape(h, w, 5)
        sides = np.exp(np.minimum(out[..., 1:], 4))
        middle = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1).astype(np.float32)
        boxes = np.concatenate([middle - sides[..., :2], middle + sides[..., 2:]], -1)
        scores = 1 / (1 + np.exp(-out[..., 0]))
        return scores.astype(np.float32), boxes.astype(np.float32)

    @classmethod
    def load(cls, file: Path) -> Head:
        """Raises ConfigError where the file is missing or no head."""
        held, about = parts.load(file, "detector", "soir train detector", "pixels.weight", "out.weight")
        weights = {name: x.astype(np.float32) for name, x in held.items()}
        return cls(weights, int(about["depth"]), about["fitted_for"])


def inputs(source: TokenSource, image: RGB, area: int = GRID_AREA) -> tuple[Floats, NDArray[np.uint8]]:
    """What a head sees of an image at about this area: tokens, float32 [h, w, D], and a small picture, uint8
    [8 h, 8 w, 3]."""
    grid = tiled_grid(source, image, area)
    h, w = grid.shape[:2]
    small = cv2.resize(image, (w * PIXELS, h * PIXELS), interpolation=cv2.INTER_AREA)
    return grid, np.asarray(small, np.uint8)


class LearnedDetector:
    """Class-agnostic. source: its tokens are read; head: trained on the same ones. threshold: least score, an
    expected IoU, 0..1; iou, most: see `DetectorSettings`."""

    name = "learned"

    def __init__(
        self,
        source: TokenSource,
        head: Head,
        *,
        threshold: float = THRESHOLD,
        iou: float = IOU,
        most: int = 25,
    ) -> None:
        self.source = source
        self.head = head
        self.threshold = threshold
        self.iou = iou
        self.most = most

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        scores, boxes = self.head(*inputs(self.source, image, AREA))
        size = (image.shape[1], image.shape[0])
        return chosen(scores, boxes, size, threshold=self.threshold, iou=self.iou, most=self.most)


def chosen(
    scores: Floats,
    boxes: Floats,
    size: tuple[int, int],
    *,
    threshold: float,
    iou: float,
    most: int = 25,
) -> Detections:
    """The best boxes of what the cells say, in pixels of an image of `size` (width, height)."""
    h, w = scores.shape
    scale = np.array([size[0] / w, size[1] / h] * 2)
    flat, corners = scores.ravel().astype(np.float64), boxes.reshape(-1, 4).astype(np.float64) * scale
    best = np.argsort(-flat, kind="stable")[:MOST_CELLS]
    kept, values = pick(corners[best], flat[best], iou=iou, most=most)
    return finish(corners[best][kept], values, (size[1], size[0]), threshold=threshold)
