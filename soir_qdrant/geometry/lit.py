"""A query object as a lamp on either side of it would show it."""

from __future__ import annotations

import numpy as np

from soir_qdrant.types import RGB, SceneObject

BRIGHT, DIM = 1.15, 0.5  # what the lamp's side is multiplied by, and the other


def lit(image: RGB, item: SceneObject) -> list[RGB]:
    """An object's image twice: lit from the left, and from the right.

    Args:
        image: uint8 [H, W, 3].
        item: one object of it.

    Returns:
        Two images of the same size. Light changes evenly from one side of the box to the other; beyond its longer side
        around it, where no crop reaches, they are the image.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = item.box
    around = max(x1 - x0, y1 - y0)
    left, right = max(int(x0 - around), 0), min(int(x1 + around) + 1, width)
    top, bottom = max(int(y0 - around), 0), min(int(y1 + around) + 1, height)
    across = np.clip((np.arange(left, right) + 0.5 - x0) / max(x1 - x0, 1.0), 0, 1).astype(np.float32)
    pixels = image[top:bottom, left:right].astype(np.float32)
    views = []
    for near, far in ((BRIGHT, DIM), (DIM, BRIGHT)):
        light = near + (far - near) * across
        view = image.copy()
        view[top:bottom, left:right] = np.rint(np.clip(pixels * light[None, :, None], 0, 255))
        views.append(view)
    return views
