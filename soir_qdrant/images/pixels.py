"""Bytes, PIL images and arrays to pixels: upright, 8 bits, RGB, with the opaque ones."""

from __future__ import annotations

import hashlib
import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from soir_qdrant.errors import ImageError
from soir_qdrant.types import RGB, Mask

log = logging.getLogger(__name__)
MAX_PIXELS = 100_000_000  # an RGB image of 300 MB
MIN_SIDE = 8
GREY = 124  # shows through transparent pixels; the grey that crops are padded with
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def from_bytes(data: bytes, name: str, max_pixels: int) -> tuple[RGB, Mask | None]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return from_pil(image, name, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large: {error}; make it smaller (or raise PIL's limit and max_pixels)"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow knows: convert it to JPEG or PNG") from error
    except Exception as error:  # Pillow's readers let all sorts of errors out when a header is damaged
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged or cut off: {error}; copy or download it again")


def from_pil(image: Image.Image, name: str, max_pixels: int) -> tuple[RGB, Mask | None]:
    """Pixels of an opened image. Its size is checked before it is decoded, which PIL does lazily."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels, more than the {max_pixels:,} that are decoded: "
            "make it smaller or raise max_pixels"
        )
    try:
        image.load()
    except Exception as error:  # see from_bytes
        raise _damaged(name, error) from error
    upright = _upright(image, name)
    if upright.mode in _DEEP:
        return _scaled(np.asarray(upright), name), None
    if upright.mode == "F":
        raise ImageError(f"{name} holds 32-bit floats: scale them to 0..255 and save it with 8 bits")
    if upright.has_transparency_data:
        return _flattened(np.asarray(upright.convert("RGBA")))
    try:
        return np.array(upright.convert("RGB"), np.uint8), None
    except ValueError as error:
        raise ImageError(f"{name} has colour mode {image.mode}: convert it to RGB") from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are sound, only the EXIF block is not; its readers raise anything
        log.warning("%s: EXIF data unreadable, its rotation is not applied: %s", name, error)
        return image


def _scaled(deep: NDArray[Any], name: str) -> RGB:
    """[H, W], 0..65535, as RGB of 0..255."""
    if deep.size and (deep.min() < 0 or deep.max() > 65535):
        raise ImageError(f"{name} holds 32-bit integers: scale them to 0..255 and save it with 8 bits")
    grey = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _flattened(rgba: NDArray[np.uint8]) -> tuple[RGB, Mask | None]:
    """uint8 [H, W, 4] -> RGB on grey, and the opaque pixels (None where all are fully opaque)."""
    alpha = rgba[:, :, 3]
    if alpha.min(initial=255) == 255:
        return rgba[:, :, :3].copy(), None
    share = alpha[:, :, None].astype(np.float32) / 255
    rgb = (rgba[:, :, :3] * share + GREY * (1 - share)).round().astype(np.uint8)
    return rgb, alpha >= 128


def from_array(array: NDArray[Any], name: str) -> tuple[RGB, Mask | None]:
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
        return _flattened(array)
    return np.ascontiguousarray(array), None


def digest(rgb: RGB, alpha: Mask | None) -> str:
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(rgb.tobytes())
    if alpha is not None:
        digest.update(np.packbits(alpha).tobytes())
    return digest.hexdigest()
