"""What to read: folders, single images, and iterables of them."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from soir_qdrant.errors import ImageError
from soir_qdrant.images.files import Source
from soir_qdrant.images.formats import NOT_READ, SUFFIXES

log = logging.getLogger(__name__)
Images: TypeAlias = Source | Iterable[Source]
SKIPPED = {"@eaDir", "#recycle", "__MACOSX"}  # folders of thumbnails and the like


def iter_sources(images: Images, left_out: LeftOut | None = None) -> Iterator[tuple[str, Source]]:
    """Names and sources, one at a time, of whatever was handed in.

    images: a folder (read recursively and in order of names; the files with one of SUFFIXES; hidden ones and
    linked folders are left out; named by their path within the folder), one image, or any iterable of images,
    which is consumed as it goes. left_out: is added to as the folder is walked. Raises ImageError, before the
    first image, where there is no such file or folder or no image in it.
    """
    if isinstance(images, (str, os.PathLike)):
        path = Path(images)
        if path.is_dir():
            return iter(folder_images(path, left_out))
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
        return sum(1 for _ in _walk(path, LeftOut())) if path.is_dir() else 1
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


@dataclass(slots=True, eq=False)
class LeftOut:
    """What a walk through a folder did not give. blocked: folders that cannot be read. others: linked
    folders, and images of formats that are not read; by their paths within the folder."""

    blocked: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def folder_images(folder: Path, left_out: LeftOut | None = None) -> Iterator[tuple[str, Path]]:
    """Names and paths of the images of a folder; see `iter_sources`. left_out: is added to."""
    paths = _walk(folder, left_out or LeftOut())
    first = next(paths, None)
    if first is None:
        raise ImageError(
            f"{folder}: no image in this folder or below it; these are read: {' '.join(SUFFIXES)}"
        )
    return ((path.relative_to(folder).as_posix(), path) for path in itertools.chain([first], paths))


def _walk(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        log.warning("%s: folder left out, it cannot be read: %s", error.filename, error.strerror)
        left_out.blocked.append(Path(error.filename))

    for here, folders, files in os.walk(folder, onerror=unreadable):
        inside = Path(here).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
        left_out.others += [f"{inside / name}/" for name in folders if Path(here, name).is_symlink()]
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                yield Path(here, name)
            elif name.lower().endswith(NOT_READ):
                left_out.others.append(str(inside / name))
