"""The learned segmenter: a small U-Net says of a box's pixels which are the object's.

It sees the pixels around the box, and the encoder's tokens of the same window. It is trained in torch (`soir
train segmenter`) and run in NumPy, beside any trunk, local or served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant import parts
from soir_qdrant.types import RGB, Box, Mask
from soir_qdrant.vision.boxes import intersection_over_union
from soir_qdrant.vision.crops import square, square_pixels, whole_box
from soir_qdrant.vision.embedded import TokenSource, tokens_of
from soir_qdrant.vision.layers import Floats, block, linear, silu, standardized
from soir_qdrant.vision.segmenter import ellipse

SIDE = 96  # of what a head sees and says of a window, in pixels; with 64 those were made that do not tell
CELL = 8  # pixels along a token: the U-Net halves three times
MARGIN = 0.25  # around the box, as a fraction of its longer side
FAR = 3.0  # distance from the box's middle, in half its sides, beyond which all is alike
LEAST = 0.05  # share of the box that a mask covers at least
ALIKE = 0.4  # IoU of a box with the one that its mask asks for, below which it stays
BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class MaskHead:
    """weights: of `train.mask_head.MaskHead`, float32, by name. fitted_for: whose tokens it reads, a
    fingerprint of the encoder without the size of its crops. side: of what it sees of a window and says of
    it, in pixels."""

    weights: dict[str, Floats]
    fitted_for: str
    side: int = SIDE

    @property
    def cells(self) -> int:
        """Tokens along a window."""
        return self.side // CELL

    def __call__(self, small: NDArray[np.uint8], planes: Floats, tokens: NDArray[np.floating]) -> Floats:
        """small: uint8 [side, side, 3]; planes: of `box_planes`; tokens: [cells^2, D]. The chance of each
        pixel to be the object's, float32 [side, side]."""
        pixels = (small.astype(np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(4)
        run = partial(block, self.weights)
        x0 = run("e0", np.concatenate([pixels, planes], -1))
        x1 = run("e1.1", run("e1.0", x0, stride=2))
        x2 = run("e2.1", run("e2.0", x1, stride=2))
        added = linear(self.weights, "tokens", standardized(tokens)).reshape(self.cells, self.cells, -1)
        y: Floats = silu(run("e3", x2, stride=2) + added)
        y = y + run("middle.1", run("middle.0", y))
        y = run("d2.1", run("d2.0", np.concatenate([_doubled(y), x2], -1)))
        y = run("d1.1", run("d1.0", np.concatenate([_doubled(y), x1], -1)))
        y = run("d0", np.concatenate([_doubled(y), x0], -1))
        logits = linear(self.weights, "out", y.reshape(self.side**2, -1)).reshape(self.side, self.side)
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    @classmethod
    def load(cls, file: Path) -> MaskHead:
        """Raises ConfigError where the file is missing or no head."""
        held, about = parts.load(file, "segmenter", "soir train segmenter", "e0.0.weight", "out.weight")
        weights = {name: x.astype(np.float32) for name, x in held.items()}
        return cls(weights, about["fitted_for"], int(about.get("side", 64)))


class LearnedSegmenter:
    """source: its tokens are read; head: trained on the same ones."""

    name = "learned"

    def __init__(self, source: TokenSource, head: MaskHead) -> None:
        self.source = source
        self.head = head

    @property
    def fingerprint(self) -> str:
        """Names what its masks depend on, but for the encoder."""
        made = hashlib.sha256()
        for name, weights in sorted(self.head.weights.items()):
            made.update(name.encode() + weights.tobytes())
        return f"{self.name} {made.hexdigest()[:8]}"

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        return [in_box(whole, box, at, image.shape) for box, at, whole in self._windows(image, boxes)]

    def fit(self, image: RGB, boxes: NDArray[np.floating]) -> list[tuple[Box, Mask]]:
        """image, boxes: as above. See `Fitting`."""
        found = []
        for box, at, whole in self._windows(image, boxes):
            moved = around(whole, box, at, image.shape)
            found.append((moved, in_box(whole, moved, at, image.shape)))
        return found

    def _windows(
        self, image: RGB, boxes: NDArray[np.floating]
    ) -> Iterator[tuple[Box, tuple[int, int, int], Mask]]:
        """Of each box: itself, its window, and what of that is its object's, bool [side, side]."""
        if not len(boxes):
            return
        corners = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]
        windows = [window(box, image.shape) for box in corners]
        side = self.head.side
        tokens = looked_at(self.source, [image] * len(corners), windows, self.head.cells)
        for box, at, seen in zip(corners, windows, tokens, strict=True):
            chance = self.head(picture(image, at, side), box_planes(box, at, side), seen)
            yield box, at, enlarged(chance, at[2])


def window(box: Box, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """x, y and side, in pixels, of what the head sees around a box. shape: H, W, ... of the image."""
    return square(box, shape[1], shape[0], margin=MARGIN)


def picture(image: RGB, at: tuple[int, int, int], size: int) -> RGB:
    """The pixels of a window, uint8 [size, size, 3], grey outside the image."""
    pixels = square_pixels(image, *at)
    method = cv2.INTER_AREA if at[2] > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=method), np.uint8)


def looked_at(
    source: TokenSource, images: Sequence[RGB], windows: Sequence[tuple[int, int, int]], cells: int
) -> Floats:
    """The tokens of windows, one of each image, float32 [k, cells^2, D], as deep as the detector's."""
    side = cells * source.patch
    pictures = [picture(image, at, side) for image, at in zip(images, windows, strict=True)]
    parts = [tokens_of(source, np.stack(pictures[i : i + BATCH])) for i in range(0, len(pictures), BATCH)]
    return np.concatenate(parts)[:, -(cells**2) :]


def box_planes(box: Box, at: tuple[int, int, int], size: int) -> Floats:
    """What the head is told of the box, float32 [size, size, 2]: the share of each pixel inside it, and its
    distance from the middle, -1 there and 0 halfway along the sides."""
    x, y, side = at
    middles = np.arange(size) + 0.5
    low = (np.array(box[:2]) - (x, y)) * size / side
    high = (np.array(box[2:]) - (x, y)) * size / side
    inside = (np.clip(middles[:, None] - low, -0.5, 0.5) + 0.5) * (
        np.clip(high - middles[:, None], -0.5, 0.5) + 0.5
    )
    apart = (middles[:, None] - (low + high) / 2) / np.maximum((high - low) / 2, 1)
    far = np.minimum(np.hypot(apart[None, :, 0], apart[:, None, 1]), FAR) - 1
    return np.stack([inside[None, :, 0] * inside[:, None, 1], far], -1).astype(np.float32)


def enlarged(chance: Floats, side: int) -> Mask:
    """What is likely the object's, at the window's own size, bool [side, side]."""
    return np.asarray(cv2.resize(chance, (side, side), interpolation=cv2.INTER_LINEAR) >= 0.5)


def in_box(whole: Mask, box: Box, at: tuple[int, int, int], shape: tuple[int, ...]) -> Mask:
    """A window's pixels, bool [side, side], as the mask of its box, bool [h, w]; the ellipse in it where
    hardly any is left."""
    x, y, _ = at
    x0, y0, x1, y1 = whole_box(box, shape[1], shape[0])
    mask = np.zeros((y1 - y0, x1 - x0), np.bool_)
    part = whole[max(y0 - y, 0) : y1 - y, max(x0 - x, 0) : x1 - x]
    top, left = max(y - y0, 0), max(x - x0, 0)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask if mask.mean() >= LEAST else ellipse(mask.shape)


def around(whole: Mask, box: Box, at: tuple[int, int, int], shape: tuple[int, ...]) -> Box:
    """The box of the largest piece in a window, inside the image; `box` where they have little in common."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(whole.astype(np.uint8))
    if count < 2:
        return box
    left, top, width, height, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    x0, y0 = max(at[0] + left, 0), max(at[1] + top, 0)
    x1, y1 = min(at[0] + left + width, shape[1]), min(at[1] + top + height, shape[0])
    moved = (float(x0), float(y0), float(x1), float(y1))
    if min(x1 - x0, y1 - y0) < 1:
        return box
    both = np.array([box, moved], np.float32)
    return moved if intersection_over_union(both[:1], both[1:])[0, 0] >= ALIKE else box


def _doubled(x: Floats) -> Floats:
    """[h, w, C] -> [2 h, 2 w, C], each value four times."""
    return x.repeat(2, 0).repeat(2, 1)
