"""Stored images, opened with care, and what the page shows of them. No path comes from a client."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from soir_qdrant.errors import ImageError
from soir_qdrant.service.errors import NotServed
from soir_qdrant.types import Box

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
_ORIENTATION = 0x0112  # EXIF's
HEAT_FLOOR = 0.2  # of the largest value: below it, the image is left as it is
MAX_PLACES = 8  # of an image's equal files that are tried
QUALITY = 82  # of JPEG


def stored_file(soir: Mapping[str, Any], folders: Sequence[Path] | None, max_bytes: int) -> tuple[str, bytes]:
    """The file of a stored image, at the first of its places where it can be opened: the place, and its bytes.

    Args:
        soir: what the payload holds of it: `uris` (or `uri`) and `sha256`.
        folders: those that it must lie under, links resolved; None for any.
        max_bytes: the largest file that is read.

    Raises:
        NotServed: where there is no file, it is no regular one, lies elsewhere, is too large, or is not the
            image that was ingested: what holds of the first place.
    """
    uris, sha256 = soir.get("uris") or [soir.get("uri")], soir.get("sha256")
    if not isinstance(sha256, str) or not all(isinstance(uri, str) for uri in uris):
        raise NotServed("no file is known for this image: it was ingested from memory")
    refused: NotServed | None = None
    for uri in uris[:MAX_PLACES]:
        try:
            return uri, _bytes_at(uri, sha256, folders, max_bytes)
        except NotServed as error:
            refused = refused or error
    raise refused or NotServed("no file is known for this image")


def _bytes_at(uri: str, sha256: str, folders: Sequence[Path] | None, max_bytes: int) -> bytes:
    name = Path(uri).name
    if "\0" in uri or not Path(uri).is_absolute():
        raise NotServed(f"{name}: its uri is no absolute path of a file")
    path = Path(os.path.realpath(uri))
    if folders is not None and not any(path.is_relative_to(folder) for folder in folders):
        raise NotServed(f"{name} lies outside the folders of this service (--root)")
    data = _read_regular(path, name, max_bytes)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise NotServed(f"{name} is another image than was ingested: ingest it again")
    return data


def _read_regular(path: Path, name: str, max_bytes: int) -> bytes:
    """The bytes of a regular file; pipes and devices are not waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise NotServed(f"{name} cannot be opened ({error.strerror}): was it moved or deleted?") from error
    with os.fdopen(handle, "rb") as stream:
        info = os.fstat(stream.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise NotServed(f"{name} is no regular file")
        if info.st_size > max_bytes:
            raise NotServed(f"{name} has {info.st_size:,} bytes, more than the {max_bytes:,} that are read")
        try:
            return stream.read(max_bytes + 1)
        except OSError as error:
            raise NotServed(f"{name} cannot be read ({error.strerror})") from error


def opened(data: bytes, max_pixels: int, name: str = "the image") -> Image.Image:
    """An image whose header was read and whose size is allowed; no pixel is decoded yet.

    Raises ImageError for what is no image of one of FORMATS, damaged, or larger than max_pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image of a known kind: give JPEG, PNG, WebP, AVIF or TIFF") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from error
    except Exception as error:  # readers let all sorts of errors out when a header is damaged
        raise ImageError(f"{name} is damaged: {error}") from error
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels, more than the {max_pixels:,} that are decoded: "
            "make it smaller"
        )
    return image


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
        max_pixels: as in `opened`.
        box: x0, y0, x1, y1 in pixels of the upright image: only this part of it.

    Raises:
        ImageError: as `opened`, and where the pixels are damaged.
    """
    image = opened(data, max_pixels)
    if box is None:
        image.draft("RGB", (side, side))  # JPEG decodes smaller at once
    try:
        upright = _upright(image)
    except Exception as error:  # see `opened`
        raise ImageError(f"the image is damaged or cut off: {error}") from error
    if box is not None:
        upright = _cut(upright, box)
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


def _upright(image: Image.Image) -> Image.Image:
    """RGB pixels after EXIF rotation; transparent ones on grey, deep ones scaled."""
    from soir_qdrant.images import load

    if image.mode in ("RGB", "L", "CMYK", "YCbCr"):
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
    return Image.fromarray(load(image).rgb)


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
