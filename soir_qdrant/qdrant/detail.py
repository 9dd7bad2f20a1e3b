"""What an object of far fewer pixels than the query cannot show.

A query of many pixels shows what its thing looks like; an object of a few is a blur that looks like much. So it counts
for less, the more so the fewer it has. How much was measured: docs/concepts/search.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from soir_qdrant.types import Vector

SHARE = 1 / 25  # of the query's pixels: an object that has so many lacks nothing
ENOUGH = 112**2  # pixels that are enough for any query, half of the side that encoders look at
LOSS = 0.1  # for each halving of its side below that


def missing_detail(soir: Mapping[str, Any], pixels: float) -> Vector:
    """What is taken off each object's likeness to a query, float32 [k], 0 or more.

    Args:
        soir: of a payload: the image's `width` and `height`, and `objects` with their `area`. Where one of them is not
            known, nothing is taken off.
        pixels: of the thing in the query; 0 where that is not known.
    """
    whole = soir.get("width", 0) * soir.get("height", 0)
    if not whole:
        return np.zeros(len(soir["objects"]), np.float32)
    each = np.array([item.get("area", 1.0) * whole for item in soir["objects"]], np.float32)
    lacking = np.maximum(min(pixels * SHARE, ENOUGH) / np.maximum(each, 1.0), 1.0)
    halvings = np.log2(lacking) / 2  # of the side
    loss: Vector = (LOSS * halvings).astype(np.float32)
    return loss
