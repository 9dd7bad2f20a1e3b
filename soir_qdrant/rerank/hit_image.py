"""A hit's image, opened again, and what was stored of its objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from soir_qdrant.errors import ImageError, SoirError
from soir_qdrant.geometry.crops import Crops
from soir_qdrant.images import MAX_PIXELS, load
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.types import Box, Hit, LoadedImage, SceneObject

VERSION = 2  # of the code behind what is kept: raise it where the same pipeline computes something else


def open_image(hit: Hit, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """The hit's image, opened again: at the first of its places where it still is. One of more than max_pixels is
    decoded at a reduced size, if its format can do that; boxes are of the whole one: see `LoadedImage.here`.

    Raises:
        ImageError: where it is missing, or not what was ingested: what holds of the first place.
        ConfigError: likewise where a package is missing that reads it.
    """
    stored = _stored(hit)
    if hit.uri is None:
        raise ImageError(f"hit {hit.id}: no uri was stored with it; ingest files, not arrays")
    refused: SoirError | None = None
    for uri in dict.fromkeys([hit.uri, *(stored.get("uris") or [])]):
        try:
            image = load(uri, max_pixels=max_pixels, reduce=True)
        except SoirError as error:
            refused = refused or error
            continue
        if image.sha256 == stored["sha256"]:
            return image
        message = f"{uri}: another image than was ingested; ingest it, and delete point {hit.id}"
        refused = refused or ImageError(message)
    raise refused or ImageError(f"hit {hit.id}: no file of its image is known")


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


def object_crops(pipeline: Pipeline, image: LoadedImage, boxes: list[Box]) -> tuple[list[Box], Crops]:
    """The objects of an opened image as the pipeline cut them: boxes and crops.

    Args:
        pipeline: that the collection was filled with.
        image: that of a hit.
        boxes: the stored ones; none are the whole image.
    """
    width, height = image.whole
    boxes = boxes or [(0.0, 0.0, float(width), float(height))]
    objects = pipeline.segment(image.rgb, [SceneObject(image.here(box)) for box in boxes])
    return boxes, pipeline.crops([image.rgb], [objects])


def key(pipeline: Pipeline, hit: Hit, boxes: list[Box], *contents: Any) -> str:
    """Of what is computed of a hit's objects, for `TokenCache`.

    Args:
        pipeline: that computes it.
        hit: whose image.
        boxes: of its objects.
        contents: what it is, and what else it depends on, JSON-able.

    Raises:
        ImageError: where nothing is stored of the hit.
    """
    masks = {part: pipeline.recipe[part] for part in ("segmenter", "replaced")}
    identity = [VERSION, sha256(hit), boxes, pipeline.fingerprint, masks, *contents]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


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
