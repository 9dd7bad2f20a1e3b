"""Bytes that are images, opened with care, and what the page shows of them."""

from __future__ import annotations

import io
import math
import threading

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from soir_qdrant.errors import ImageError
from soir_qdrant.images import load
from soir_qdrant.images.colour import to_srgb
from soir_qdrant.images.formats import known_formats
from soir_qdrant.types import Box

_ORIENTATION = 0x0112  # EXIF's
HEAT_FLOOR = 0.2  # of the largest value: below it, the image is left as it is
QUALITY = 82  # of JPEG
_FEW = threading.Semaphore(4)  # images decoded at once for the page: a large one takes hundreds of megabytes


def opened(data: bytes, max_pixels: int, name: str = "the image") -> Image.Image:
    """An image whose header was read and whose size is allowed; no pixel is decoded yet.

    Raises ImageError for what is no image of a format that is read, damaged, or larger than max_pixels.
    """
    image = _head(data, name)
    _check_size(image, max_pixels, name)
    return image


def _head(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=known_formats())
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image of a known kind: give JPEG, PNG, WebP, AVIF or TIFF") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from error
    except Exception as error:  # readers let all sorts of errors out when a header is damaged
        raise ImageError(f"{name} is damaged: {error}") from error


def _check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels, more than the {max_pixels:,} that are decoded: "
            "make it smaller"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after EXIF rotation."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # its readers raise anything; then its rotation is not applied either
        turned = False
    return (image.height, image.width) if turned else (image.width, image.height)


def small_jpeg(data: bytes, side: int, max_pixels: int, box: Box | None = None) -> bytes:
    """An upright JPEG whose longer side is at most `side`, without any metadata.

    Args:
        data: the file.
        side: pixels.
        max_pixels: of what is decoded.
        box: x0, y0, x1, y1 in pixels of the upright image: only this part of it.

    Raises:
        ImageError: as `opened`, but for a larger image that is decoded at a reduced size, and where the pixels are
            damaged.
    """
    image = _head(data, "the image")
    with _FEW:
        if image.format == "JPEG" and box is None:
            upright = _upright_jpeg(image, side, max_pixels)
        else:
            loaded = load(data, name="the image", max_pixels=max_pixels, reduce=True)
            upright = Image.fromarray(loaded.rgb)
            upright = upright if box is None else _cut(upright, loaded.here(box))
        upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    upright.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """The part inside the box, at least one pixel; what reaches out of the image is cut off."""
    x0, y0 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    x1, y1 = min(math.ceil(box[2]), image.width), min(math.ceil(box[3]), image.height)
    if x1 <= x0 or y1 <= y0:
        raise ImageError(f"box {box} lies outside the image of {image.width}x{image.height} pixels")
    return image.crop((x0, y0, x1, y1))


def _upright_jpeg(image: Image.Image, side: int, max_pixels: int) -> Image.Image:
    """RGB pixels after EXIF rotation, decoded no larger than `side` needs."""
    if image.info.get("progressive"):  # held in memory whole, whatever it is decoded at
        _check_size(image, max_pixels, "the image")
    image.draft("RGB", (side, side))
    _check_size(image, max_pixels, "the image")
    try:
        image.load()
        return ImageOps.exif_transpose(to_srgb(image, "the image")).convert("RGB")
    except Exception as error:  # see `opened`
        raise ImageError(f"the image is damaged or cut off: {error}") from error


def heat_png(values: NDArray[np.float32], side: int) -> bytes:
    """A heat map, float32 [H, W], 0..1, as a transparent PNG to lay over the image; longer side `side`."""
    small = np.clip(_shrunk(values, side), 0, 1)
    scaled = small / max(float(small.max()), 1e-6)
    colours = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = (220 * np.clip((scaled - HEAT_FLOOR) / (1 - HEAT_FLOOR), 0, 1)).astype(np.uint8)
    return _png(np.dstack([colours, alpha]))


def mask_png(mask: NDArray[np.bool_], side: int) -> bytes:
    """A mask, bool [H, W], as a transparent PNG to lay over the image; longer side `side`."""
    inside = _shrunk(mask.astype(np.float32), side) >= 0.5
    edge = inside & ~cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    overlay = np.zeros((*inside.shape, 4), np.uint8)
    overlay[inside] = (94, 197, 34, 110)  # blue, green, red, alpha
    overlay[edge] = (94, 197, 34, 255)
    return _png(overlay)


def _shrunk(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    height, width = values.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _png(bgra: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", bgra)[1].tobytes())
