"""Bytes, PIL images and arrays to pixels: upright, 8 bits, sRGB, with the opaque ones."""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from soir_qdrant.errors import ImageError
from soir_qdrant.images.colour import to_srgb
from soir_qdrant.images.depth import DEEP, declared_bits, eight_bits, is_deep_colour, to_8_bits
from soir_qdrant.images.formats import SEVERAL_FORMATS, known_formats, unknown
from soir_qdrant.types import RGB, Mask

log = logging.getLogger(__name__)
MIN_SIDE = 8
GREY = 124  # shows through transparent pixels; the grey that crops are padded with
STRIP = 4_000_000  # pixels that are blended at once


class Decoded(NamedTuple):
    """Of a file: uint8 [H, W, 3]; bool [H, W], the opaque pixels, or None; whether it holds further pages or frames;
    width and height of its image, upright, where that was decoded at a reduced size, else None."""

    rgb: RGB
    alpha: Mask | None
    further: bool
    full_size: tuple[int, int] | None


def size_of(data: bytes, enough: int | None = None) -> tuple[int, int] | None:
    """Width and height at which a file is decoded, as its head tells; None where it tells none. enough: see
    `from_bytes`."""
    try:
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            _reduce(image, enough)
            return image.size
    except Exception:  # whoever decodes it says what is wrong
        return None


def from_bytes(data: bytes, name: str, max_pixels: int, enough: int | None = None) -> Decoded:
    """Pixels of a file. Only known formats are tried, whatever the name says: none that starts another program.
    enough: JPEG files are decoded at a half, a quarter or an eighth of their sides where that leaves so many pixels
    or more. Raises ImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            full_size = image.size
            if full_size[0] * full_size[1] <= max_pixels or not image.info.get("progressive"):
                _reduce(image, enough)  # a progressive one is held in memory whole
            further = image.format in SEVERAL_FORMATS and bool(getattr(image, "is_animated", False))
            rgb, alpha = from_page(image, lambda: data, name, max_pixels)
            if full_size == image.size:
                return Decoded(rgb, alpha, further, None)
            if rgb.shape[:2] != (image.height, image.width):  # it was turned upright
                full_size = (full_size[1], full_size[0])
            return Decoded(rgb, alpha, further, full_size)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large: {error}; make it smaller (or raise PIL's limit and max_pixels)"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(unknown(data, name)) from error
    except Exception as error:  # Pillow's readers let all sorts of errors out when a header is damaged
        raise _damaged(name, error) from error


def _reduce(image: Image.Image, enough: int | None) -> None:
    """Have the image decoded at a smaller size, if its format can do that and enough pixels are left."""
    share = math.sqrt((enough or math.inf) / max(image.width * image.height, 1))
    if share < 1:
        image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged or cut off: {error}; copy or download it again")


def check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    """Raises ImageError for an opened image that is larger than what is decoded."""
    if image.width * image.height > max_pixels:
        raise too_many_pixels(name, image.width, image.height, max_pixels)


def too_many_pixels(name: str, width: int, height: int, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name} has {width}x{height} pixels, more than the {max_pixels:,} that are decoded: make it smaller or "
        "raise max_pixels (--max-pixels)"
    )


def from_page(
    image: Image.Image, read: Callable[[], bytes], name: str, max_pixels: int, page: int = 0
) -> tuple[RGB, Mask | None]:
    """Pixels of an opened file, of more than 8 bits too. read: gives the whole file, where it is needed; page: that is
    opened, counted from 0. Raises ImageError."""
    check_size(image, name, max_pixels)
    deep_colour = is_deep_colour(image)
    bits = declared_bits(image, read()) if deep_colour or image.mode in DEEP else None
    if deep_colour:
        scaled = eight_bits(image, read(), name, bits, page)
        if scaled is None and page:
            raise ImageError(
                f"{name} has colours of more than 8 bits, which are read of no further page of such a file: save the "
                "page as a file of its own, or with 8 bits"
            )
        image = scaled or image
    return from_pil(image, name, max_pixels, bits)


def from_pil(
    image: Image.Image, name: str, max_pixels: int, bits: int | None = None
) -> tuple[RGB, Mask | None]:
    """Pixels of an opened image. Its size is checked before it is decoded, which PIL does lazily. bits: those that
    greys of more than 8 are declared to have."""
    check_size(image, name, max_pixels)
    try:
        image.load()
    except Exception as error:  # see from_bytes
        raise _damaged(name, error) from error
    upright = _upright(image, name)
    if upright.mode in DEEP:
        return _deep(upright, image.info.get("transparency"), name, bits)
    if upright.mode == "F":
        raise ImageError(f"{name} holds 32-bit floats: scale them to 0..255 and save it with 8 bits")
    converted = to_srgb(upright, name)
    if converted.has_transparency_data:
        return _blended(converted)
    try:
        return _in_strips(converted, "RGB"), None
    except ValueError as error:
        raise ImageError(f"{name} has colour mode {image.mode}: convert it to RGB") from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are sound, only the EXIF block is not; its readers raise anything
        log.warning("%s: EXIF data unreadable, its rotation is not applied: %s", name, error)
        return image


def _deep(image: Image.Image, transparent: Any, name: str, bits: int | None) -> tuple[RGB, Mask | None]:
    """Greys of more than 8 bits; `transparent` is the value of the pixels that are."""
    levels = np.asarray(image)
    grey = to_8_bits(levels, name, bits)
    opaque = levels != transparent if isinstance(transparent, int) else None
    if opaque is None or opaque.all():
        return np.repeat(grey[:, :, None], 3, axis=2), None
    grey = np.where(opaque, grey, np.uint8(GREY))
    return np.repeat(grey[:, :, None], 3, axis=2), opaque


def _in_strips(image: Image.Image, mode: str, alpha: NDArray[np.uint8] | None = None) -> RGB:
    """The colours of an image, uint8 [H, W, 3]. mode: "RGB" or "RGBA"; alpha: [H, W], filled in where that is so.
    At full size a conversion would take ten times the pixels."""
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // max(width, 1))
    for y in range(0, height, rows):
        bottom = min(y + rows, height)
        strip = np.asarray(image.crop((0, y, width, bottom)).convert(mode))
        rgb[y:bottom] = strip[:, :, :3]
        if alpha is not None:
            alpha[y:bottom] = strip[:, :, 3]
    return rgb


def _blended(image: Image.Image) -> tuple[RGB, Mask | None]:
    alpha = np.empty((image.height, image.width), np.uint8)
    return _flattened(_in_strips(image, "RGBA", alpha), alpha)


def _flattened(rgb: RGB, alpha: NDArray[np.uint8]) -> tuple[RGB, Mask | None]:
    """Blends uint8 [H, W, 3] onto grey, in place, by alpha, uint8 [H, W]; with the opaque pixels, those of at
    least half of the largest alpha (None where all are fully opaque)."""
    if alpha.min(initial=255) == 255:
        return rgb, None
    largest = int(alpha.max(initial=0))
    rows = max(1, STRIP // max(alpha.shape[1], 1))
    for y in range(0, len(alpha), rows):
        strip = slice(y, y + rows)
        share = alpha[strip, :, None].astype(np.float32) / max(largest, 1)
        rgb[strip] = (rgb[strip] * share + GREY * (1 - share)).round()
    return rgb, (alpha >= largest / 2) & (alpha > 0)


def from_array(array: NDArray[Any], name: str) -> tuple[RGB, Mask | None]:
    """Pixels of an array in RGB order, uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Raises ImageError."""
    if array.dtype != np.uint8:
        if np.issubdtype(array.dtype, np.floating):
            if not np.isfinite(array).all():
                raise ImageError(f"{name}: the array holds NaN or infinite values; give uint8, 0..255")
            raise ImageError(
                f"{name}: the array is {array.dtype}; give uint8, 0..255: "
                "(x * 255).round().astype(np.uint8) where x is 0..1"
            )
        raise ImageError(f"{name}: the array is {array.dtype}; give uint8, 0..255")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2), None
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ImageError(f"{name}: the array has shape {array.shape}; give [H, W], [H, W, 3] or [H, W, 4]")
    if array.shape[2] == 4:
        return _flattened(array[:, :, :3].copy(), array[:, :, 3])
    return np.ascontiguousarray(array), None


def digest(rgb: RGB, alpha: Mask | None) -> str:
    """sha256 of pixels, as hex digits."""
    content = hashlib.sha256(repr(rgb.shape).encode())
    content.update(rgb.tobytes())
    if alpha is not None:
        content.update(np.packbits(alpha).tobytes())
    return content.hexdigest()
