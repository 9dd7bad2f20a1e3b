"""Sources to bytes: enough to know whether an image is stored already, without decoding it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.errors import ImageError
from soir_qdrant.images.pixels import MAX_PIXELS, digest, from_array, from_pil
from soir_qdrant.types import RGB, Mask

Source: TypeAlias = str | Path | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
MAX_BYTES = 512 * 2**20  # of a file
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # for whoever writes into a pipe
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
    stamp: tuple[int, int] | None = None


def read(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> RawImage:
    """The first half of `load`: enough to know whether the image is stored already, without decoding it.

    Raises ImageError for a file that cannot be read, and for a bad array or PIL image.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        name = name or str(path)
        data, stamp = _file(path, name)
        return RawImage(name, uri_of(path), hashlib.sha256(data).hexdigest(), data, stamp)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return RawImage(name or "image bytes", None, hashlib.sha256(data).hexdigest(), data)
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "") or "PIL image")
        pixels = from_pil(source, name, max_pixels)
    elif isinstance(source, np.ndarray):
        name = name or "array"
        pixels = from_array(source, name)
    else:
        raise ImageError(f"{name or 'image'} is a {type(source).__name__}: give {_KINDS}")
    return RawImage(name, None, digest(*pixels), pixels)


def uri_of(path: Path) -> str:
    """What a file is called in the payload: its absolute path without "..", links not followed."""
    return os.path.normpath(path.absolute())


def stamp_of(path: Path) -> tuple[int, int]:
    """Size of a file in bytes, and the time of its last change in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _check(stat: os.stat_result, name: str) -> None:
    """Raises ImageError for what is no regular file, or too large."""
    if S_ISDIR(stat.st_mode):
        raise ImageError(f"{name} is a folder: hand it in by itself, not among images")
    if not S_ISREG(stat.st_mode):
        raise ImageError(f"{name} is a pipe, a socket or a device, no file: leave it out")
    if stat.st_size > MAX_BYTES:
        raise ImageError(
            f"{name} has {stat.st_size:,} bytes, more than the {MAX_BYTES:,} that are read: make it smaller"
        )


def _file(path: Path, name: str) -> tuple[bytes, tuple[int, int]]:
    """The content of a regular file, and its stamp as it was before it was read."""
    try:
        handle = os.open(path, os.O_RDONLY | _NO_WAITING)
        with os.fdopen(handle, "rb") as stream:
            stat = os.fstat(handle)
            _check(stat, name)
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        hint = "; download it first, this reads files only" if "://" in name or ":/" in name else ""
        raise ImageError(f"{name}: no such file{hint}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder: hand it in by itself, not among images") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    if not data:
        raise ImageError(f"{name} is an empty file: copy or download it again")
    return data, (stat.st_size, stat.st_mtime_ns)
