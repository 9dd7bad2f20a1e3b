"""An image as a square, padded at the right and bottom: what OWLv2 takes. NumPy and Pillow alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def padded(pixels: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    """Padded to a square at the right and bottom, then resized smoothly, [size, size] or [size, size, 3].

    Pillow's antialiased bilinear filter is that of torch. Only as much padding is laid out as the filter mixes with the
    image: a panorama takes little more memory than its own pixels.

    Args:
        pixels: uint8 [H, W, 3], or float32 [H, W].
        size: of the result, in pixels.
        fill: of the padding.
    """
    height, width = pixels.shape[:2]
    side = max(height, width)
    scale = side / size
    # Of the result, what shows any of the image; and what the filter reads for it.
    rows, columns = (min(size, math.ceil((n + max(scale, 1)) / scale)) for n in (height, width))
    bottom, right = (min(side, math.ceil(n * scale + max(scale, 1))) for n in (rows, columns))
    part = np.full((bottom, right, *pixels.shape[2:]), fill, pixels.dtype)
    part[:height, :width] = pixels
    box = (0, 0, min(columns * scale, right), min(rows * scale, bottom))
    shown = Image.fromarray(part).resize((columns, rows), Image.Resampling.BILINEAR, box)
    square = np.full((size, size, *pixels.shape[2:]), fill, pixels.dtype)
    square[:rows, :columns] = shown
    return square
