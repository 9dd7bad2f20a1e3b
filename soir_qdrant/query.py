"""What a user searches with: an image, a crop of one, a vector, or text; checked here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from soir_qdrant.errors import ConfigError, ImageError, ObjectsError, without_password
from soir_qdrant.geometry.user_objects import clip_box
from soir_qdrant.images import RawImage, Source, is_address, load
from soir_qdrant.images.addresses import split
from soir_qdrant.types import Box, Composed, Crop, LoadedImage, Text, Vector

Query: TypeAlias = Source | RawImage | Crop | Text | Composed | Sequence[float]


def one_query(query: Query | None, text: str | None) -> Query:
    """The one of the two that is there. Raises ConfigError for both or none."""
    if text is not None:
        if query is not None:
            raise ConfigError("a query and text=: give one of them; the other may be one of the examples")
        return Text(text)
    if query is None:
        raise ConfigError("nothing to search for: give an image, a vector, or words as text=")
    return query


def listed(name: str, queries: Iterable[Query]) -> list[Query]:
    """Several of them. Raises ConfigError for one. name: of the argument."""
    if isinstance(queries, (str, bytes)):
        raise ConfigError(f"{name}: give a list of images, such as [{queries!r}]")
    return list(queries)


def as_vector(query: Query) -> Vector | None:
    """float32 [D] where the query is a list of numbers or a one-dimensional array, else None.

    Raises:
        ConfigError: for a list of anything else.
    """
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


def open_query(query: Query, box: Box | None, max_pixels: int) -> tuple[LoadedImage, Box | None]:
    """Open an image that is searched with.

    Args:
        query: an image or a Crop.
        box: the object in it, x0, y0, x1, y1 in pixels; None for all of it, and for a Crop.
        max_pixels: of the largest image that is decoded.

    Returns:
        The image, and the box in it, clipped to the image.

    Raises:
        ImageError: for anything that cannot be read as an image, a string that is no file among them.
        ObjectsError: for a box outside the image, or none at all.
        ConfigError: for two boxes.
    """
    if isinstance(query, Crop):
        if box is not None:
            raise ConfigError("the query is a Crop, which has a box: leave `box` out")
        return open_query(query.image, query.box, max_pixels)
    if isinstance(query, Sequence) and not isinstance(query, (str, bytes, bytearray, memoryview)):
        raise ImageError("the query is a list: give one image or vector, or use search_many")
    if isinstance(query, Text | Composed):
        raise ImageError(f"the query is text, {query.words!r}, where an image is needed")
    if isinstance(query, str) and not is_address(query) and not _exists(split(query)[0]):
        raise ImageError(f"{query}: no such file; to search with words, give them as text={query!r}")
    if isinstance(query, str) and query.lower().startswith(("http://", "https://")):
        raise ImageError(f"{without_password(query)}: the web is not read for a query: download it first")
    if isinstance(query, (str, Path)) and Path(query).is_dir():
        raise ImageError(
            f"{query} is a folder: search with one image; several images of one thing are `examples`"
        )
    image = load(query, max_pixels=max_pixels)
    if box is not None:
        try:
            box = clip_box(box, image.width, image.height)
        except ObjectsError as error:
            raise ObjectsError(f"{image.name}: {error}") from error
    return image, box


def checked(vector: Vector, dim: int, collection: str) -> Vector:
    """The vector, of unit length.

    Raises:
        ConfigError: for a vector of another length than the collection's, of zeros, or not finite.
    """
    if vector.shape != (dim,):
        raise ConfigError(
            f"the query vector has {len(vector)} numbers, those of collection {collection!r} have {dim}: "
            "take the encoder it was filled with"
        )
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise ConfigError("the query vector is all zeros, or not finite: nothing can be compared with it")
    return vector / np.float32(norm)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False
