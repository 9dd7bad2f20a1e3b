"""Regular files of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from soir_qdrant.errors import ImageError
from soir_qdrant.images.addresses import Stamp
from soir_qdrant.images.options import MAX_BYTES

_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # for whoever writes into a pipe


def stamp_of(path: Path) -> Stamp:
    """Size of a file in bytes, and the time of its last change in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def opened(path: Path, name: str) -> tuple[BinaryIO, Stamp]:
    """A regular file, opened, and its stamp. Raises ImageError for anything else, without waiting for it."""
    try:
        handle = os.open(path, os.O_RDONLY | _NO_WAITING)
        stat = os.fstat(handle)
    except FileNotFoundError as error:
        hint = "; an address is given as a text, not as a path" if ":/" in name else ""
        raise ImageError(f"{name}: no such file{hint}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder: hand it in by itself, not among images") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    if S_ISREG(stat.st_mode):
        return os.fdopen(handle, "rb"), (stat.st_size, stat.st_mtime_ns)
    os.close(handle)
    if S_ISDIR(stat.st_mode):
        raise ImageError(f"{name} is a folder: hand it in by itself, not among images")
    raise ImageError(f"{name} is a pipe, a socket or a device, no file: leave it out")


def read(path: Path, name: str, max_bytes: int = MAX_BYTES) -> tuple[bytes, Stamp]:
    """The content of a regular file, and its stamp as it was before it was read. Raises ImageError."""
    stream, stamp = opened(path, name)
    with stream:
        try:
            data = b"" if stamp[0] > max_bytes else stream.read(max_bytes + 1)
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error}") from error
    size = max(stamp[0], len(data))
    if size > max_bytes:
        raise ImageError(
            f"{name} has {size:,} bytes, more than the {max_bytes:,} that are read: make it smaller"
        )
    if not data:
        raise ImageError(f"{name} is an empty file: copy or download it again")
    return data, stamp
