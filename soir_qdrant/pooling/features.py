"""What describes a crop: the features that the settings name, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from soir_qdrant.errors import ConfigError
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.types import Encoding, Vector

if TYPE_CHECKING:
    from soir_qdrant.contracts import Encoder

TEXTURE = "texture"


def feature(encoding: Encoding, name: str) -> Vector:
    """ "cls": the descriptor; "patches": the patch mean after the last block; "patches-n": n earlier; "texture": of the
    object's surface, see `Encoder.texture`. Raises ConfigError for a texture that was not read."""
    if name == "cls":
        return encoding.descriptor
    if name == TEXTURE:
        if encoding.texture is None:
            raise ConfigError(
                'the feature "texture" is of crops with surfaces: cut them with `Pipeline.crops`'
            )
        return encoding.texture
    return encoding.layers[:, -1 - int(name.partition("-")[2] or 0)]


def side_by_side(encoding: Encoding, names: Sequence[str]) -> Vector:
    """Float32 [K, F], unit rows: the features in the order of their names, all of the same length; a feature that is
    zero, such as the texture of a faint object, stays so, and its row is as much shorter."""
    parts = [normalize(feature(encoding, name)) for name in names]
    read = np.mean([part.any(1) for part in parts], axis=0, dtype=np.float32)
    rows: Vector = normalize(np.concatenate(parts, axis=1)) * np.sqrt(read)[:, None]
    return rows


def features_of(fitted_for: str) -> list[str]:
    """The names of the features that a projection was fitted for; see `Components.whitened`."""
    return fitted_for.rpartition(" ")[2].split("+")


def sizes(names: Sequence[str], encoder: Encoder) -> list[int]:
    """How many numbers each feature has."""
    numbers: dict[str, Callable[[], int]] = {"cls": lambda: encoder.dim, TEXTURE: lambda: encoder.texture_dim}
    return [numbers.get(name, lambda: encoder.width)() for name in names]
