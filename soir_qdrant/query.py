"""What a user searches with: an image, a crop of one, a vector, or words; told apart and checked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from soir_qdrant.errors import ConfigError, ImageError, ObjectsError
from soir_qdrant.geometry.user_objects import clip_box
from soir_qdrant.images import SUFFIXES, Source, load
from soir_qdrant.types import Box, Crop, LoadedImage, Vector

Query: TypeAlias = Source | Crop | Sequence[float]


def as_vector(query: Query) -> Vector | None:
    """float32 [D] where the query is a list of numbers or a one-dimensional array, else None."""
    if isinstance(query, np.ndarray):
        if query.ndim != 1:
            return None
    elif not isinstance(query, (list, tuple)):
        return None
    try:
        vector = np.asarray(query, np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError("the query is a list, but not one of numbers") from error
    if vector.ndim != 1 or not len(vector):
        raise ConfigError(f"the query vector has shape {vector.shape}: give [D], or use search_many")
    return vector


def as_text(query: Query) -> str | None:
    """The query where it reads like words rather than like a file's name, else None."""
    if not isinstance(query, str) or query.lower().endswith(SUFFIXES):
        return None
    try:
        there = Path(query).exists()
    except (OSError, ValueError):
        there = False
    return None if there else query


def open_query(query: Query, box: Box | None, max_pixels: int) -> tuple[LoadedImage, Box | None]:
    """The query image, and the box in it, clipped. Raises ImageError, ObjectsError, and ConfigError for two
    boxes."""
    if isinstance(query, Crop):
        if box is not None:
            raise ConfigError("the query is a Crop, which has a box: leave `box` out")
        return open_query(query.image, query.box, max_pixels)
    if isinstance(query, Sequence) and not isinstance(query, (str, bytes, bytearray, memoryview)):
        raise ImageError("the query is a list: give one image or vector, or use search_many")
    image = load(query, max_pixels=max_pixels)
    if box is not None:
        try:
            box = clip_box(box, image.width, image.height)
        except ObjectsError as error:
            raise ObjectsError(f"{image.name}: {error}") from error
    return image, box


def checked(vector: Vector, dim: int, collection: str) -> Vector:
    """Of unit length. Raises ConfigError for a vector of another length than the collection's, of zeros, or
    not finite."""
    if vector.shape != (dim,):
        raise ConfigError(
            f"the query vector has {len(vector)} numbers, those of collection {collection!r} have {dim}: "
            "take the encoder it was filled with"
        )
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise ConfigError("the query vector is all zeros, or not finite: nothing can be compared with it")
    return vector / np.float32(norm)
