"""The learned segmenter: a small U-Net says of a box's pixels which are the object's.

It sees the pixels around the box, and the encoder's tokens of the same window. It is trained in torch (`soir
train segmenter`) and run in NumPy, beside any trunk, local or served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant import parts
from soir_qdrant.types import RGB, Box, Mask
from soir_qdrant.vision.boxes import intersection_over_union
from soir_qdrant.vision.crops import square, square_pixels, whole_box
from soir_qdrant.vision.embedded import SKIP, TokenSource
from soir_qdrant.vision.head import Floats, group_norm, linear, neighbours, silu, standardized
from soir_qdrant.vision.segmenter import ellipse

SIDE = 64  # of the mask, in pixels
CELLS = 8  # tokens along it
MARGIN = 0.25  # around the box, as a fraction of its longer side
FAR = 3.0  # distance from the box's middle, in half its sides, beyond which all is alike
LEAST = 0.05  # share of the box that a mask covers at least
ALIKE = 0.4  # IoU of a box with the one that its mask asks for, below which it stays
BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class MaskHead:
    """weights: of `train.mask_head.MaskHead`, float32, by name. fitted_for: whose tokens it reads, a
    fingerprint of the encoder without the size of its crops."""

    weights: dict[str, Floats]
    fitted_for: str

    def __call__(self, small: NDArray[np.uint8], planes: Floats, tokens: NDArray[np.floating]) -> Floats:
        """small: uint8 [SIDE, SIDE, 3]; planes: of `box_planes`; tokens: [CELLS^2, D]. The chance of each
        pixel to be the object's, float32 [SIDE, SIDE]."""
        pixels = (small.astype(np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(4)
        x0 = self._block(np.concatenate([pixels, planes], -1), "e0")
        x1 = self._block(self._block(x0, "e1.0", stride=2), "e1.1")
        x2 = self._block(self._block(x1, "e2.0", stride=2), "e2.1")
        added = linear(self.weights, "tokens", standardized(tokens)).reshape(CELLS, CELLS, -1)
        y: Floats = silu(self._block(x2, "e3", stride=2) + added)
        y = y + self._block(self._block(y, "middle.0"), "middle.1")
        y = self._block(self._block(np.concatenate([_doubled(y), x2], -1), "d2.0"), "d2.1")
        y = self._block(self._block(np.concatenate([_doubled(y), x1], -1), "d1.0"), "d1.1")
        y = self._block(np.concatenate([_doubled(y), x0], -1), "d0")
        logits = linear(self.weights, "out", y.reshape(SIDE * SIDE, -1)).reshape(SIDE, SIDE)
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    def _block(self, x: Floats, name: str, stride: int = 1) -> Floats:
        """Convolution of 3 x 3, normalisation, SiLU. x: [h, w, C]. [h / stride, w / stride, C_out]."""
        h, w = x.shape[0] // stride, x.shape[1] // stride
        near = neighbours(x, 1)
        if stride > 1:
            near = near.reshape(*x.shape[:2], -1)[::stride, ::stride].reshape(h * w, -1)
        y = linear(self.weights, f"{name}.0", near)
        return silu(group_norm(self.weights, f"{name}.1", y)).reshape(h, w, -1)

    @classmethod
    def load(cls, file: Path) -> MaskHead:
        """Raises ConfigError where the file is missing or no head."""
        held, about = parts.load(file, "segmenter", "soir train segmenter", "e0.0.weight", "out.weight")
        return cls({name: x.astype(np.float32) for name, x in held.items()}, about["fitted_for"])


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
        tokens = looked_at(self.source, [image] * len(corners), windows)
        for box, at, seen in zip(corners, windows, tokens, strict=True):
            chance = self.head(picture(image, at, SIDE), box_planes(box, at), seen)
            yield box, at, enlarged(chance, at[2])


def window(box: Box, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """x, y and side, in pixels, of what the head sees around a box. shape: H, W, ... of the image."""
    return square(box, shape[1], shape[0], margin=MARGIN)


def picture(image: RGB, at: tuple[int, int, int], size: int) -> RGB:
    """The pixels of a window, uint8 [size, size, 3], grey outside the image."""
    pixels = square_pixels(image, *at)
    method = cv2.INTER_AREA if at[2] > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=method), np.uint8)


def looked_at(source: TokenSource, images: Sequence[RGB], windows: Sequence[tuple[int, int, int]]) -> Floats:
    """The tokens of windows, one of each image, float32 [k, CELLS^2, D], as deep as the detector's."""
    side = CELLS * source.patch
    pictures = [picture(image, at, side) for image, at in zip(images, windows, strict=True)]
    parts = [
        np.asarray(source.tokens(np.stack(pictures[i : i + BATCH]), skip=SKIP), np.float32)
        for i in range(0, len(pictures), BATCH)
    ]
    return np.concatenate(parts)[:, -CELLS * CELLS :]


def box_planes(box: Box, at: tuple[int, int, int]) -> Floats:
    """What the head is told of the box, float32 [SIDE, SIDE, 2]: the share of each pixel inside it, and its
    distance from the middle, -1 there and 0 halfway along the sides."""
    x, y, side = at
    middles = np.arange(SIDE) + 0.5
    low = (np.array(box[:2]) - (x, y)) * SIDE / side
    high = (np.array(box[2:]) - (x, y)) * SIDE / side
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
