"""Windows: the square around a box that the segmenter's network reads, and the way back to the image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import FeatureSource
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.geometry.crops import square, square_pixels, whole_box
from soir_qdrant.geometry.masks import ellipse
from soir_qdrant.geometry.resize import Halves, resized
from soir_qdrant.models.tokens import LAYER
from soir_qdrant.types import RGB, Box, Mask

MARGIN = 0.25  # around the box, as a fraction of its longer side
MAX_DISTANCE = 3.0  # from the box's middle, in half its sides, beyond which all is alike
MIN_SHARE = 0.05  # of the box that a mask covers
MIN_IOU = 0.4  # of a box with the one that its mask asks for, below which it stays
PIECES = 384  # pixels along a window, at most, at which a mask is cut
MAX_BATCH = 32  # windows that go through a network at once
FEW_CELLS = 8  # tokens along a window that is looked at alone

Window = tuple[int, int, int]  # x, y, side in pixels of the image
Array = NDArray[np.float32]


def window(box: Box, shape: tuple[int, ...]) -> Window:
    """x, y and side, in pixels, of what the network reads around a box. shape: H, W, ... of the image."""
    return square(box, shape[1], shape[0], margin=MARGIN)


def window_image(image: RGB | Halves, at: Window, size: int) -> RGB:
    """The pixels of a window, uint8 [size, size, 3], grey outside the image."""
    plane, scale = Halves.of(image).showing(at[2], size)
    x, y, side = (round(value * scale) for value in at)
    return resized(square_pixels(plane, x, y, side), size, size)


def box_planes(box: Box, at: Window, size: int) -> Array:
    """The box as the network reads it, float32 [size, size, 2]: the share of each pixel inside it, and the
    distance from its middle, -1 there and 0 halfway along the sides."""
    x, y, side = at
    middles = np.arange(size) + 0.5
    low = (np.array(box[:2]) - (x, y)) * size / side
    high = (np.array(box[2:]) - (x, y)) * size / side
    inside = (np.clip(middles[:, None] - low, -0.5, 0.5) + 0.5) * (
        np.clip(high - middles[:, None], -0.5, 0.5) + 0.5
    )
    offsets = (middles[:, None] - (low + high) / 2) / np.maximum((high - low) / 2, 1)
    squares = (offsets**2).astype(np.float32)
    distance = np.sqrt(squares[None, :, 0] + squares[:, None, 1])
    planes = np.empty((size, size, 2), np.float32)
    planes[..., 0] = inside[None, :, 0] * inside[:, None, 1]
    planes[..., 1] = np.minimum(distance, MAX_DISTANCE) - 1
    return planes


def window_tokens(
    source: FeatureSource, images: Sequence[RGB], windows: Sequence[Window], cells: int
) -> Array:
    """The tokens of windows that are looked at alone, one of each image, float32 [k, cells^2, D]."""
    side = cells * source.patch
    looks = [window_image(image, at, side) for image, at in zip(images, windows, strict=True)]
    grids = [
        source.features(np.stack(looks[i : i + MAX_BATCH]), [LAYER]) for i in range(0, len(looks), MAX_BATCH)
    ]
    return np.concatenate(grids).reshape(len(looks), cells**2, -1)


def resized_tokens(tokens: Array, cells: int) -> Array:
    """Tokens of square grids, [k, n^2, D], at another resolution: float32 [k, cells^2, D]."""
    import torch
    import torch.nn.functional as F

    n = round(tokens.shape[1] ** 0.5)
    if n == cells:
        return tokens
    planes = torch.from_numpy(tokens).unflatten(1, (n, n)).movedim(-1, 1)
    larger = F.interpolate(planes, size=(cells, cells), mode="bilinear", align_corners=False)
    return np.asarray(larger.movedim(1, -1).flatten(1, 2).numpy(), np.float32)


def sampled_tokens(grid: Array, shape: tuple[int, ...], windows: Sequence[Window], cells: int) -> Array:
    """The tokens of windows, out of those of their image, bilinear, those at the edge repeated outside.

    Args:
        grid: tokens of the whole image, float32 [h, w, D].
        shape: H, W, ... of the image.
        windows: k of them, in pixels of the image.
        cells: tokens along a window.

    Returns:
        float32 [k, cells^2, D].
    """
    import torch
    import torch.nn.functional as F

    places = (np.arange(cells) + 0.5) / cells
    corners = np.array(windows, np.float64)
    x, y = (corners[:, None, axis] + places * corners[:, 2:] for axis in (0, 1))
    at = np.empty((len(corners), cells, cells, 2), np.float32)
    at[..., 0] = (2 * x / shape[1] - 1)[:, None, :]
    at[..., 1] = (2 * y / shape[0] - 1)[:, :, None]
    tokens = F.grid_sample(
        torch.from_numpy(grid).movedim(-1, 0)[None],
        torch.from_numpy(at).flatten(0, 1)[None],
        padding_mode="border",
        align_corners=False,
    )
    count, dim = len(corners), grid.shape[2]
    return np.asarray(tokens[0].movedim(0, -1).reshape(count, cells**2, dim).numpy(), np.float32)


def likely(chances: Array, side: int) -> Mask:
    """What is likely the object's, bool [s, s]: at the size of its window, of a large one at `PIECES` pixels a side.
    chances: [n, n], 0..1."""
    small = min(side, PIECES)
    return np.asarray(cv2.resize(chances, (small, small), interpolation=cv2.INTER_LINEAR) >= 0.5)


def in_box(pieces: Mask, box: Box, at: Window, shape: tuple[int, ...]) -> Mask:
    """What `likely` returned as the mask of its box, bool [h, w]; the ellipse in it where hardly any is left."""
    x, y, side = at
    whole = pieces
    if len(pieces) < side:
        larger = cv2.resize(pieces.view(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        whole = np.asarray(larger).view(np.bool_)
    x0, y0, x1, y1 = whole_box(box, shape[1], shape[0])
    mask = np.zeros((y1 - y0, x1 - x0), np.bool_)
    part = whole[max(y0 - y, 0) : y1 - y, max(x0 - x, 0) : x1 - x]
    top, left = max(y - y0, 0), max(x - x0, 0)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask if mask.mean() >= MIN_SHARE else ellipse(mask.shape)


def around(pieces: Mask, box: Box, at: Window, shape: tuple[int, ...]) -> Box:
    """The box of the largest piece of what `likely` returned, inside the image; `box` where they have little in
    common."""
    outlines, _ = cv2.findContours(pieces.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return box
    largest = np.array(cv2.boundingRect(max(outlines, key=cv2.contourArea)))
    left, top, width, height = (largest * (at[2] / len(pieces))).round().astype(int).tolist()
    x0, y0 = max(at[0] + left, 0), max(at[1] + top, 0)
    x1, y1 = min(at[0] + left + width, shape[1]), min(at[1] + top + height, shape[0])
    moved = (float(x0), float(y0), float(x1), float(y1))
    if min(x1 - x0, y1 - y0) < 1:
        return box
    both = np.array([box, moved], np.float32)
    return moved if intersection_over_union(both[:1], both[1:])[0, 0] >= MIN_IOU else box
