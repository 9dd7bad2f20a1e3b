"""Anything a user hands in -> RGB array, or an ImageError that names the image and says what to do."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from soir_qdrant.errors import ImageError
from soir_qdrant.types import RGB, LoadedImage, Mask

log = logging.getLogger(__name__)

Source: TypeAlias = str | Path | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
Images: TypeAlias = Source | Iterable[Source]

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
MAX_PIXELS = 100_000_000  # an RGB image of 300 MB
MIN_SIDE = 8
GREY = 124  # shows through transparent pixels; the grey that crops are padded with
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_KINDS = "a path, the bytes of a file, a PIL image or a uint8 array [H, W, 3]"


@dataclass(frozen=True, slots=True, eq=False)
class RawImage:
    """An image that has been read and identified by its content, and is yet to be decoded.

    content: the bytes of a file, or the pixels (uint8 [H, W, 3] and alpha, bool [H, W] or None) of an
    array or PIL image. sha256: hex digest, see LoadedImage.
    """

    name: str
    uri: str | None
    sha256: str
    content: bytes | tuple[RGB, Mask | None]


def load(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read and decode one image.

    source: a path, the bytes of a file, a PIL image, or a uint8 array [H, W], [H, W, 3] or [H, W, 4].
    name: what to call it in messages. max_pixels: the largest width x height that is decoded.

    The result is upright (EXIF rotation applied) and 8-bit RGB: 16-bit greys are scaled, CMYK and palettes
    converted, the first frame taken of an animation. Where pixels are transparent, grey shows through
    and `alpha` holds the opaque ones (alpha >= 128).

    Raises ImageError for a file that is missing, damaged, not an image, larger than max_pixels (before
    its pixels are decoded) or smaller than 8 pixels, and for arrays of another type or shape.
    """
    return decode(read(source, name=name, max_pixels=max_pixels), max_pixels=max_pixels)


def read(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> RawImage:
    """The first half of `load`: enough to know whether the image is stored already, without decoding it.

    Raises ImageError for a file that cannot be read, and for a bad array or PIL image.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        name = name or str(path)
        data = _file(path, name)
        return RawImage(name, str(path.absolute()), hashlib.sha256(data).hexdigest(), data)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return RawImage(name or "image bytes", None, hashlib.sha256(data).hexdigest(), data)
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "") or "PIL image")
        pixels = _from_pil(source, name, max_pixels)
    elif isinstance(source, np.ndarray):
        name = name or "array"
        pixels = _from_array(source, name)
    else:
        raise ImageError(f"{name or 'image'} is a {type(source).__name__}: give {_KINDS}")
    return RawImage(name, None, _digest(*pixels), pixels)


def decode(raw: RawImage, *, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """The second half of `load`. Raises ImageError for a damaged, too large or too small image."""
    if isinstance(raw.content, bytes):
        rgb, alpha = _from_bytes(raw.content, raw.name, max_pixels)
    else:
        rgb, alpha = raw.content
    height, width = rgb.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{raw.name} is {width}x{height} pixels: nothing can be recognised below {MIN_SIDE}x{MIN_SIDE}; "
            "leave it out or give the original picture"
        )
    if alpha is not None and not alpha.any():
        raise ImageError(
            f"{raw.name} is wholly transparent: leave it out or give it without its alpha channel"
        )
    return LoadedImage(rgb, raw.name, raw.uri, raw.sha256, alpha)


def iter_sources(images: Images) -> Iterator[tuple[str, Source]]:
    """Names and sources, one at a time, of whatever was handed in.

    images: a folder (read recursively and in order of names; the files with one of SUFFIXES; hidden ones
    are left out; named by their path within the folder), one image, or any iterable of images, which is
    consumed as it goes. Raises ImageError, before the first image, where there is no such file or folder
    or no image in it.
    """
    if isinstance(images, (str, os.PathLike)):
        path = Path(images)
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        return iter([(str(path), path)])
    if _is_one(images):
        return iter([("image 1", images)])  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise ImageError(
            f"images is a {type(images).__name__}: give a folder, an image or an iterable of images"
        )
    items: Iterator[Any] = iter(images)
    return ((_name(item, i), item) for i, item in enumerate(items, 1))


def count_sources(images: Images) -> int | None:
    """How many images `iter_sources` will give, where that can be known beforehand."""
    if isinstance(images, (str, os.PathLike)):
        path = Path(images)
        return sum(1 for _ in _walk(path)) if path.is_dir() else 1
    if _is_one(images):
        return 1
    return len(images) if isinstance(images, Sized) else None


def _is_one(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim <= 3 and images.dtype != np.object_
    return isinstance(images, (bytes, bytearray, memoryview, Image.Image))


def _name(item: object, number: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return str(item)
    return str(getattr(item, "filename", "") or f"image {number}")


def _walk(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        log.warning("%s: folder left out, it cannot be read: %s", error.filename, error.strerror)

    for here, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(here, name)


def _folder(folder: Path) -> Iterator[tuple[str, Source]]:
    paths = _walk(folder)
    first = next(paths, None)
    if first is None:
        raise ImageError(
            f"{folder}: no image in this folder or below it; these are read: {' '.join(SUFFIXES)}"
        )
    return ((path.relative_to(folder).as_posix(), path) for path in itertools.chain([first], paths))


def _file(path: Path, name: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        hint = "; download it first, this reads files only" if "://" in name or ":/" in name else ""
        raise ImageError(f"{name}: no such file{hint}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder: hand it in by itself, not among images") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    if not data:
        raise ImageError(f"{name} is an empty file: copy or download it again")
    return data


def _from_bytes(data: bytes, name: str, max_pixels: int) -> tuple[RGB, Mask | None]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _from_pil(image, name, max_pixels)
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


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> tuple[RGB, Mask | None]:
    """Pixels of an opened image. Its size is checked before it is decoded, which PIL does lazily."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels, more than the {max_pixels:,} that are decoded: "
            "make it smaller or raise max_pixels"
        )
    try:
        image.load()
    except Exception as error:  # see _from_bytes
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


def _from_array(array: NDArray[Any], name: str) -> tuple[RGB, Mask | None]:
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


def _digest(rgb: RGB, alpha: Mask | None) -> str:
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(rgb.tobytes())
    if alpha is not None:
        digest.update(np.packbits(alpha).tobytes())
    return digest.hexdigest()
