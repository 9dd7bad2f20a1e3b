"""What describes a crop: the features that the settings name, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soir_qdrant.pooling.pool import normalize
from soir_qdrant.types import Encoding, Vector


def feature(encoding: Encoding, name: str) -> Vector:
    """ "cls": the descriptor; "patches": the patch mean after the last block; "patches-n": n earlier."""
    if name == "cls":
        return encoding.descriptor
    return encoding.layers[:, -1 - int(name.partition("-")[2] or 0)]


def side_by_side(encoding: Encoding, names: Sequence[str]) -> Vector:
    """Float32 [K, F], unit rows: the features in the order of their names, all of the same length."""
    parts = [normalize(feature(encoding, name)) for name in names]
    return normalize(np.concatenate(parts, axis=1))
