"""Masks without a model."""

from __future__ import annotations

import numpy as np

from soir_qdrant.types import Mask


def ellipse(shape: tuple[int, int]) -> Mask:
    """The ellipse inscribed in a box, bool [h, w]."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    u, v = (2 * x + 1) / shape[1] - 1, (2 * y + 1) / shape[0] - 1
    inside: Mask = u**2 + v**2 <= 1
    return inside
