"""A hit's image, opened again, and what was stored of its objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soir_qdrant.errors import ImageError
from soir_qdrant.images import MAX_PIXELS, load
from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.types import Box, Hit, LoadedImage


def open_image(hit: Hit, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """The hit's image, opened again.

    Raises:
        ImageError: where it is missing, or not what was ingested.
    """
    stored = _stored(hit)
    if hit.uri is None:
        raise ImageError(f"hit {hit.id}: no uri was stored with it; ingest files, not arrays")
    image = load(hit.uri, max_pixels=max_pixels)
    if image.sha256 != stored["sha256"]:
        raise ImageError(f"{hit.uri}: another image than was ingested; ingest it, and delete point {hit.id}")
    return image


def boxes(hit: Hit) -> list[Box]:
    """The stored objects of a hit, x0, y0, x1, y1 in pixels.

    Raises:
        ImageError: where nothing is stored of it.
    """
    listed = []
    for item in _stored(hit).get("objects") or []:
        x0, y0, x1, y1 = (float(value) for value in item["box"])
        listed.append((x0, y0, x1, y1))
    return listed


def sha256(hit: Hit) -> str:
    """Of the image that was ingested.

    Raises:
        ImageError: where nothing is stored of it.
    """
    return str(_stored(hit)["sha256"])


def _stored(hit: Hit) -> Mapping[str, Any]:
    stored = hit.payload.get(KEY)
    if not isinstance(stored, Mapping) or "sha256" not in stored:
        raise ImageError(f"hit {hit.id}: its payload has no {KEY!r} part, so its image is unknown")
    return stored
