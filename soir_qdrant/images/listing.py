"""What to read: folders, single images, and iterables of them."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from soir_qdrant.errors import ImageError
from soir_qdrant.images.files import Source, uri_of

log = logging.getLogger(__name__)
Images: TypeAlias = Source | Iterable[Source]
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


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
            return iter(folder_images(path))
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


def folder_images(folder: Path, blocked: list[str] | None = None) -> Iterator[tuple[str, Path]]:
    """Names and paths of the images of a folder; see `iter_sources`. blocked: folders that cannot be read are
    added to it."""
    paths = _walk(folder, blocked)
    first = next(paths, None)
    if first is None:
        raise ImageError(
            f"{folder}: no image in this folder or below it; these are read: {' '.join(SUFFIXES)}"
        )
    return ((path.relative_to(folder).as_posix(), path) for path in itertools.chain([first], paths))


def _walk(folder: Path, blocked: list[str] | None = None) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        log.warning("%s: folder left out, it cannot be read: %s", error.filename, error.strerror)
        if blocked is not None:
            blocked.append(uri_of(Path(error.filename)))

    for here, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(here, name)
