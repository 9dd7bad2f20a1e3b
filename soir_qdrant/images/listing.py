"""What to read: folders, patterns, addresses, single images, and iterables of them."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from soir_qdrant.errors import ImageError
from soir_qdrant.images import remote
from soir_qdrant.images.addresses import is_address, split
from soir_qdrant.images.files import File, Source
from soir_qdrant.images.formats import NOT_READ, SEVERAL, SUFFIXES, VIDEOS
from soir_qdrant.images.frames import Parts, is_video
from soir_qdrant.images.options import DEFAULT, IGNORE_FILE, ReadOptions
from soir_qdrant.images.remote import RemoteFile

log = logging.getLogger(__name__)
Images: TypeAlias = Source | Iterable[Source]
Named: TypeAlias = tuple[str, File]
SKIPPED = {"@eaDir", "#recycle", "__MACOSX"}  # folders of thumbnails and the like


@dataclass(slots=True, eq=False)
class LeftOut:
    """What a walk through a folder did not give. blocked: folders that cannot be read. others: linked
    folders, videos where none are read, and images of formats that are not; by their paths within the folder.
    excluded: how many files were, by patterns of the user's."""

    blocked: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    excluded: int = 0


def iter_sources(
    images: Images, left_out: LeftOut | None = None, options: ReadOptions = DEFAULT
) -> Iterator[tuple[str, Source]]:
    """Names and sources, one at a time, of whatever was handed in.

    images: a folder (read recursively and in order of names; the files with one of SUFFIXES; hidden ones and
    linked folders are left out; named by their path within the folder), an address of one, a pattern such as
    "photos/**/*.jpg", one image, or any iterable of all these, which is consumed as it goes. left_out: is added
    to as folders are walked. Raises ImageError, before the first image, where there is no such file or folder
    or no image in it.
    """
    left_out = left_out or LeftOut()
    if isinstance(images, (str, os.PathLike)):
        return _of_name(os.fspath(images), left_out, options)
    if _is_one(images):
        return iter([("image 1", images)])  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise ImageError(
            f"images is a {type(images).__name__}: give a folder, an image or an iterable of images"
        )
    items: Iterator[Any] = iter(images)
    numbered = ((_name(item, i), item) for i, item in enumerate(items, 1))
    return itertools.chain.from_iterable(_each(name, item, left_out, options) for name, item in numbered)


def count_sources(images: Images, options: ReadOptions = DEFAULT) -> int | None:
    """How many images `iter_sources` will give, where that can be known without looking for them."""
    if isinstance(images, (str, os.PathLike)):
        return None if _is_several(os.fspath(images), options) else 1
    if _is_one(images):
        return 1
    if not isinstance(images, Sized) or not isinstance(images, Iterable):
        return None
    names = (os.fspath(item) for item in images if isinstance(item, (str, os.PathLike)))
    return None if any(_is_several(name, options) for name in names) else len(images)


def _is_one(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim <= 3 and images.dtype != np.object_
    return isinstance(images, (bytes, bytearray, memoryview, Image.Image))


def _name(item: object, number: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item)
    return str(getattr(item, "filename", "") or f"image {number}")


def _is_several(name: str, options: ReadOptions) -> bool:
    """Whether a name stands for what is to be looked for: a folder, a pattern, a video, an address of one; a file
    whose pages are read."""
    if options.pages and name.lower().endswith(SEVERAL):
        return True
    if is_address(name):
        return not name.lower().endswith(SUFFIXES) and split(name)[1] is None
    return _is_folder(name) or is_video(name) or (glob.has_magic(name) and not os.path.lexists(name))


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _of_name(name: str, left_out: LeftOut, options: ReadOptions) -> Iterator[Named]:
    if is_address(name):
        if split(name)[1] is None and not name.lower().endswith(SUFFIXES) and remote.is_folder(name):
            return folder_images(name, left_out, options)
        return _whole(name, RemoteFile(name) if split(name)[1] is None else name, options)
    if _is_folder(name):
        return folder_images(Path(name), left_out, options)
    if not os.path.lexists(split(name)[0]):
        if glob.has_magic(name):
            return _pattern(name, left_out, options)
        raise ImageError(f"{name}: no such file or folder")
    return _whole(name, name if split(name)[1] is not None else Path(name), options)


def _each(name: str, item: Any, left_out: LeftOut, options: ReadOptions) -> Iterator[tuple[str, Source]]:
    """The images of one member of an iterable, which fails by itself when it is read."""
    itself: Iterator[tuple[str, Source]] = iter([(name, item)])
    if not isinstance(item, (str, os.PathLike)) or not _is_several(name, options):
        return itself
    try:
        sources = _of_name(name, left_out, options)
    except ImageError:
        return itself
    return ((_within(name, inner), source) for inner, source in sources)


def _within(name: str, inner: str) -> str:
    """The name of an image that stands for `name`, or lies within it."""
    if is_address(name):
        return inner if inner.startswith(name) else f"{name.rstrip('/')}/{inner}"
    return str(Path(name) / inner) if _is_folder(name) else inner


def _pattern(pattern: str, left_out: LeftOut, options: ReadOptions) -> Iterator[Named]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # of absolute patterns too
    paths = (path for path in matches if not Path(path).is_dir())
    excluded = _excluding(options, "")
    return _some(_wanted(((path, Path(path)) for path in paths), excluded, left_out, options), pattern)


def folder_images(
    folder: Path | str, left_out: LeftOut | None = None, options: ReadOptions = DEFAULT
) -> Iterator[Named]:
    """Names and sources of the images of a folder, or of an address of one; see `iter_sources`."""
    left_out = left_out or LeftOut()
    files: Iterator[Named]
    if isinstance(folder, str) and is_address(folder):
        ignored = ""
        files = ((inner, file) for inner, file in remote.walk(folder) if not _is_hidden(inner))
    else:
        folder = Path(folder)
        ignored = _text(folder / IGNORE_FILE)
        files = _walk(folder, left_out)
    return _some(_wanted(files, _excluding(options, ignored), left_out, options), str(folder))


def _some(sources: Iterator[Named], where: str) -> Iterator[Named]:
    first = next(sources, None)
    if first is None:
        raise ImageError(
            f"{where}: no image in this folder or below it; these are read: {' '.join(SUFFIXES)}"
            if not glob.has_magic(where)
            else f"{where}: no image is called so; these are read: {' '.join(SUFFIXES)}"
        )
    return itertools.chain([first], sources)


def _wanted(
    files: Iterator[Named], excluded: Callable[[str], bool], left_out: LeftOut, options: ReadOptions
) -> Iterator[Named]:
    """The images among files, each in its parts where those are read."""
    for name, file in files:
        lower = name.lower()
        if not lower.endswith((*SUFFIXES, *VIDEOS, *NOT_READ)):
            continue
        if excluded(name):
            left_out.excluded += 1
        elif lower.endswith(NOT_READ) or (lower.endswith(VIDEOS) and options.every is None):
            left_out.others.append(name)
        else:
            yield from _whole(name, file, options)


def _whole(name: str, file: File, options: ReadOptions) -> Iterator[Named]:
    """A file, or its frames or pages where they are read. One that cannot be opened fails when it is read."""
    video = is_video(name) and options.every is not None
    if not isinstance(file, (Path, RemoteFile)) or not (
        video or (options.pages and name.lower().endswith(SEVERAL))
    ):
        yield name, file
        return
    try:
        parts = Parts(file, name, options).all()
    except ImageError as error:
        log.info("%s", error)
        yield name, file
        return
    if not video:
        yield name, file
    for part in parts:
        yield part.name, part


def _excluding(options: ReadOptions, ignored: str) -> Callable[[str], bool]:
    patterns = [*ignored.splitlines(), *options.exclude]
    if not patterns:
        return lambda _: False
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(patterns).match_file


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace") if file.is_file() else ""
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error}") from error


def _is_hidden(inner: str) -> bool:
    return any(part.startswith(".") or part in SKIPPED for part in inner.split("/"))


def _walk(folder: Path, left_out: LeftOut) -> Iterator[tuple[str, Path]]:
    """Paths within a folder and files, in order of names, whatever they hold."""

    def unreadable(error: OSError) -> None:
        log.warning("%s: folder left out, it cannot be read: %s", error.filename, error.strerror)
        left_out.blocked.append(Path(error.filename))

    for here, folders, files in os.walk(folder, onerror=unreadable):
        inside = Path(here).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
        left_out.others += [f"{inside / name}/" for name in folders if Path(here, name).is_symlink()]
        for name in sorted(files):
            if not name.startswith("."):
                yield (inside / name).as_posix(), Path(here, name)
