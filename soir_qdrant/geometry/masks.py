"""Masks without a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.types import Mask


def ellipse(shape: tuple[int, int]) -> Mask:
    """The ellipse inscribed in a box, bool [h, w]."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    u, v = (2 * x + 1) / shape[1] - 1, (2 * y + 1) / shape[0] - 1
    inside: Mask = u**2 + v**2 <= 1
    return inside


def extent(mask: Mask) -> tuple[int, int, int, int] | None:
    """The tight box of a mask, bool [h, w]: x0, y0, x1, y1, the last two exclusive; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def checked_masks(
    crops: NDArray[np.uint8], masks: NDArray[np.float32] | None, size: int
) -> NDArray[np.float32]:
    """The masks of crops of `size` pixels, all ones where there are none.

    Raises:
        ConfigError: crops or masks of another shape.
    """
    if crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
        raise ConfigError(f"crops of shape {crops.shape}: expected [B, {size}, {size}, 3]")
    masks = np.ones(crops.shape[:3], np.float32) if masks is None else masks
    if masks.shape != crops.shape[:3]:
        raise ConfigError(f"masks of shape {masks.shape}: expected {crops.shape[:3]}")
    return masks.astype(np.float32, copy=False)
