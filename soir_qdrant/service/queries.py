"""From what a request names to what the searcher takes: an image in memory, or a part of one."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from soir_qdrant.errors import ObjectsError
from soir_qdrant.images import load, read
from soir_qdrant.query import Query
from soir_qdrant.service.backend import Backend, Upload
from soir_qdrant.service.errors import Forgotten
from soir_qdrant.service.pictures import opened, upright_size
from soir_qdrant.service.schemas_search import ImageQuery
from soir_qdrant.types import Box, Crop

UPLOADED, STORED = "the uploaded image", "the stored image"  # as messages call them


def read_upload(data: bytes, mask: bytes | None, max_pixels: int) -> Upload:
    """An uploaded image, once it is known to be one. mask: an image of the same size, light where
    the thing is.

    Raises ImageError for what is no image, is too large, or where the mask has another size.
    """
    image = opened(data, max_pixels, UPLOADED)
    size = upright_size(image)
    if mask is None:
        return Upload(data, size)
    decoded = load(mask, name="the mask", max_pixels=max_pixels).rgb
    light = np.asarray(Image.fromarray(decoded).convert("L")) >= 128
    rgb = load(data, name=UPLOADED, max_pixels=max_pixels).rgb
    if light.shape != rgb.shape[:2]:
        raise ObjectsError(
            f"the mask is {light.shape[1]}x{light.shape[0]}, the image {rgb.shape[1]}x{rgb.shape[0]} pixels: "
            "give one of the same size"
        )
    stream = io.BytesIO()
    alpha = (light * 255).astype(np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(stream, "PNG", compress_level=1)
    return Upload(stream.getvalue(), size)


def image_query(backend: Backend, collection: str, query: ImageQuery) -> Query:
    """The image, or the part of it that is meant. Reads files; runs no model.

    Raises Forgotten for an upload that is no longer known, NoImage, NotServed, and ObjectsError for an
    object that the image does not have.
    """
    box: Box | None = tuple(query.box) if query.box else None  # type: ignore[assignment]
    if query.upload is not None:
        upload = backend.uploads.get(query.upload)
        if upload is None:
            raise Forgotten("the uploaded image is no longer in memory: send it again")
        return whole_or_part(upload.data, box, UPLOADED)
    assert query.id is not None
    data, payload = backend.image_bytes(collection, query.id)
    opened(data, backend.settings.max_pixels, STORED)
    if query.object is not None:
        box = object_box(payload, query.object)
    return whole_or_part(data, box, STORED)


def whole_or_part(data: bytes, box: Box | None, name: str) -> Query:
    """A query as the searcher takes it. name: what messages call the image."""
    image = read(data, name=name)
    return image if box is None else Crop(image, box)


def object_box(payload: dict[str, object], number: int) -> Box:
    """Of a stored object. Raises ObjectsError where the image has fewer."""
    soir = payload.get("soir")
    objects = soir.get("objects") or [] if isinstance(soir, dict) else []
    if number >= len(objects):
        raise ObjectsError(f"object {number}: this image has {len(objects)} objects, counted from 0")
    x0, y0, x1, y1 = (float(value) for value in objects[number]["box"])
    return x0, y0, x1, y1
