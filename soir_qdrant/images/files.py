"""Sources to bytes: enough to know whether an image is stored already, without decoding it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.errors import ImageError
from soir_qdrant.images import addresses, local, remote
from soir_qdrant.images.addresses import Stamp, is_address, split
from soir_qdrant.images.frames import Part, Parts, is_video
from soir_qdrant.images.options import DEFAULT, ReadOptions
from soir_qdrant.images.pixels import digest, from_array, from_pil
from soir_qdrant.images.remote import RemoteFile
from soir_qdrant.types import RGB, Mask

File: TypeAlias = str | Path | RemoteFile | Part
Source: TypeAlias = File | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
_KINDS = "a path, the bytes of a file, a PIL image or a uint8 array [H, W, 3]"


@dataclass(frozen=True, slots=True, eq=False)
class RawImage:
    """An image that has been read and identified by its content, and is yet to be decoded.

    content: the bytes of a file, or the pixels (uint8 [H, W, 3] and alpha, bool [H, W] or None) of an
    array, PIL image, frame or page; None where it was let go of, to be read again. sha256: hex digest, see
    LoadedImage.
    """

    name: str
    uri: str | None
    sha256: str
    content: bytes | tuple[RGB, Mask | None] | None
    stamp: Stamp | None = None

    @property
    def size(self) -> int:
        """Bytes that the content takes."""
        if self.content is None:
            return 0
        return len(self.content) if isinstance(self.content, bytes) else int(self.content[0].nbytes)


def read(source: Source | RawImage, *, name: str | None = None, options: ReadOptions = DEFAULT) -> RawImage:
    """The first half of `load`: enough to know whether the image is stored already, without decoding it. One that has
    been read is returned as it is.

    Raises ImageError for a file that cannot be read, and for a bad array or PIL image.
    """
    if isinstance(source, RawImage):
        return source
    if isinstance(source, (str, os.PathLike, RemoteFile, Part)):
        called = source.name if isinstance(source, Part) else str(source)
        return _of_file(source, name or called, options)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return RawImage(name or "image bytes", None, hashlib.sha256(data).hexdigest(), data)
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "") or "PIL image")
        pixels = from_pil(source, name, options.max_pixels)
    elif isinstance(source, np.ndarray):
        name = name or "array"
        pixels = from_array(source, name)
    else:
        raise ImageError(f"{name or 'image'} is a {type(source).__name__}: give {_KINDS}")
    return RawImage(name, None, digest(*pixels), pixels)


def _of_file(source: str | os.PathLike[str] | RemoteFile | Part, name: str, options: ReadOptions) -> RawImage:
    if isinstance(source, (str, os.PathLike)):
        file, key = split(os.fspath(source))
        opened = RemoteFile(file) if is_address(file) else Path(file)
        source = opened if key is None else Part(Parts(opened, file, options), key)
    if isinstance(source, Part):
        pixels = source.pixels()
        return RawImage(name, source.uri, digest(*pixels), pixels, source.stamp)
    if is_video(str(source)):
        if options.every is not None:
            Parts(source if isinstance(source, RemoteFile) else Path(source), name, options).all()
        raise ImageError(
            f"{name} is a video: say which frame, such as {name}#t=12.5, or every=2.0 (--every 2)"
        )
    if isinstance(source, RemoteFile):
        data, stamp = remote.read(source.uri, name, options)
        uri = source.uri
    else:
        uri = addresses.uri_of(Path(source))
        if not _is_text(uri):
            raise ImageError(f"{name}: the name of the file is no UTF-8, and cannot be stored: rename it")
        data, stamp = local.read(Path(source), name, options.max_bytes)
    return RawImage(name, uri, hashlib.sha256(data).hexdigest(), data, stamp)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a name that are no UTF-8
        return False
    return True


def uri_of(file: File) -> str:
    """What a file, or a part of one, is called in the payload."""
    return file.uri if isinstance(file, (RemoteFile, Part)) else addresses.uri_of(file)


def stamp_of(file: File) -> Stamp | None:
    """Size of a file and the time of its last change, as far as it is known without reading it."""
    if isinstance(file, Part):
        return stamp_of(file.parts.file)
    return file.stamp if isinstance(file, RemoteFile) else local.stamp_of(Path(file))


def is_folder(name: str | Path) -> bool:
    """Raises ImageError for an address that is not read or cannot be reached."""
    return remote.is_folder(str(name)) if is_address(name) else Path(name).is_dir()


def exists(uri: str) -> bool:
    """Whether there is such a file; True where that cannot be known."""
    file, _ = split(uri)
    return remote.exists(file) if is_address(file) else Path(file).exists()
