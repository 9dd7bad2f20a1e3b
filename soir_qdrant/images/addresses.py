"""What an image is called: a path or an address, and which part of its file it is.

`clip.mp4#t=12.5` is the frame of a video 12.5 seconds from its start (W3C Media Fragments), `scan.tif#page=2` the
second page of a file or frame of an animation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = tuple[int, int]  # bytes, and nanoseconds of the last change
Key: TypeAlias = float | int  # seconds into a video, or the number of a page

_FRAGMENT = re.compile(r"(.+)#(?:t=(\d{1,9}(?:\.\d{1,9})?)|page=([1-9]\d{0,8}))", re.S)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")  # two letters at least: C:/ is a drive


def is_address(name: str | Path) -> bool:
    """Whether this is an address such as s3://bucket/a.jpg, and no path."""
    return isinstance(name, str) and _ADDRESS.match(name) is not None


def uri_of(name: str | Path) -> str:
    """What an image is called in the payload: an address as it is, else the absolute path without "..", links
    not followed."""
    return str(name) if is_address(name) else os.path.normpath(Path(name).absolute())


def split(name: str) -> tuple[str, Key | None]:
    """The file, and the part of it that is meant; None for the file itself, as where its name has such an end."""
    match = _FRAGMENT.fullmatch(name)
    if match is None or (not is_address(name) and os.path.lexists(name)):
        return name, None
    file, seconds, page = match.groups()
    return file, float(seconds) if seconds else int(page)


def joined(file: str, key: Key) -> str:
    """The name of a part of a file."""
    if isinstance(key, float):
        return f"{file}#t={f'{key:.3f}'.rstrip('0').rstrip('.')}"
    return f"{file}#page={key}"
