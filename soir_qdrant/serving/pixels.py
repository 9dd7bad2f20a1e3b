"""Images as the served models of SAM take them, with NumPy and Pillow alone."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from soir_qdrant.types import RGB

MEAN_COLOUR = (124, 116, 104)  # zero after normalisation, which is what SAM was padded with


def shrunk(image: RGB, inner: tuple[int, int], size: int) -> RGB:
    """Resized to `inner` (height, width), then padded with the mean colour: uint8 [size, size, 3]."""
    square = np.empty((size, size, 3), np.uint8)
    square[:] = MEAN_COLOUR
    square[: inner[0], : inner[1]] = resized(image, inner)
    return square


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the image with its longest side at `size`."""
    scale = size / max(height, width)
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def resized(image: RGB, shape: tuple[int, int]) -> RGB:
    """Smoothly, to a shape (height, width). Pillow's antialiased bilinear filter is that of torch."""
    whole = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(whole.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
