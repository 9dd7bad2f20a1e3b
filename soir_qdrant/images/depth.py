"""Greys of more than 8 bits to 8: cameras, microscopes and satellites write 10, 12 or 14 bits into files of 16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ImageError

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes
BITS = (8, 10, 12, 14, 16)
STRIP = 4_000_000  # pixels that are scaled at once


def to_8_bits(levels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Scale greys, [H, W], 0..65535, to uint8, 0..255.

    The range is the smallest one of 8, 10, 12, 14 or 16 bits that holds all of them: a file of 16 bits does
    not say how many of them its camera has. Raises ImageError for values beyond 16 bits.
    """
    if not levels.size:
        return np.zeros(levels.shape, np.uint8)
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > 65535:
        raise ImageError(f"{name} holds 32-bit integers: scale them to 0..255 and save it with 8 bits")
    top = next(2**bits - 1 for bits in BITS if highest < 2**bits)
    scaled = np.empty(levels.shape, np.uint8)
    rows = max(1, STRIP // levels.shape[1])
    for y in range(0, len(levels), rows):
        strip = levels[y : y + rows].astype(np.uint32)
        scaled[y : y + rows] = (strip * 255 + top // 2) // top
    return scaled
