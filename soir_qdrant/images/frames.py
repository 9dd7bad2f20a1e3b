"""Frames of videos, and pages of files that have several."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from PIL import Image

from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import local, remote
from soir_qdrant.images.addresses import Key, Stamp, is_address, joined, split, uri_of
from soir_qdrant.images.formats import VIDEOS, known_formats
from soir_qdrant.images.options import ReadOptions
from soir_qdrant.images.pixels import from_page, too_many_pixels
from soir_qdrant.images.remote import RemoteFile
from soir_qdrant.types import RGB, Mask

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_PARTS = 100_000  # of one file
AHEAD = 10.0  # seconds: a frame that is no further on is reached by decoding, not by a jump
# Those of files that hold frames themselves: none that names other files or addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo"


class Opened(Protocol):
    """A file whose parts are read, best in their order."""

    def keys(self) -> list[Key]:
        """All of its parts that are to be read."""

    def pixels(self, key: Key) -> tuple[RGB, Mask | None]: ...

    def close(self) -> None: ...


class Parts:
    """The parts of one file. It is open from the first to the last of them that is read."""

    def __init__(self, file: Path | RemoteFile, name: str, options: ReadOptions) -> None:
        self.file, self.name, self.options = file, name, options
        self.uri = uri_of(str(file)) if is_address(str(file)) else uri_of(Path(str(file)))
        self.stamp: Stamp | None = None
        self._opened: Opened | None = None
        self._last: Key | None = None

    def all(self) -> list[Part]:
        """Raises ImageError for a file that cannot be opened, and ConfigError where a package is missing."""
        try:
            keys = self._open().keys()
        except (ImageError, ConfigError):
            raise
        except Exception as error:  # the readers let all sorts of errors out
            raise ImageError(
                f"{self.name} is damaged or cut off: {error}; copy or download it again"
            ) from error
        finally:
            self.close()
        if len(keys) > MAX_PARTS:
            raise ImageError(
                f"{self.name} has {len(keys):,} frames or pages to read, more than {MAX_PARTS:,}"
            )
        self._last = keys[-1] if keys else None
        return [Part(self, key) for key in keys]

    def pixels(self, key: Key) -> tuple[RGB, Mask | None]:
        """Pixels of a part. Raises ImageError."""
        name = joined(self.name, key)
        try:
            return self._open().pixels(key)
        except (ImageError, ConfigError):
            raise
        except Exception as error:
            raise ImageError(f"{name} is damaged or cut off: {error}; copy or download it again") from error
        finally:
            if self._last is None or key == self._last:
                self.close()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def _open(self) -> Opened:
        if self._opened is None:
            if isinstance(self.file, RemoteFile):
                data, self.stamp = remote.read(self.uri, self.name, self.options)
                stream: BinaryIO = io.BytesIO(data)
            else:
                stream, self.stamp = local.opened(self.file, self.name)
            self._opened = _opened(stream, self.name, self.options)
        return self._opened


class Part:
    """A frame or a page: a source of an image, as a path is."""

    def __init__(self, parts: Parts, key: Key) -> None:
        self.parts, self.key = parts, key

    @property
    def name(self) -> str:
        return joined(self.parts.name, self.key)

    @property
    def uri(self) -> str:
        return joined(self.parts.uri, self.key)

    @property
    def stamp(self) -> Stamp | None:
        """Of its file, once that was opened."""
        return self.parts.stamp

    def pixels(self) -> tuple[RGB, Mask | None]:
        return self.parts.pixels(self.key)


def is_video(name: str) -> bool:
    return name.lower().endswith(VIDEOS)


def part_pixels(stream: BinaryIO, name: str, key: Key, options: ReadOptions) -> tuple[RGB, Mask | None]:
    """Pixels of one part of an open file: uint8 [H, W, 3], and the opaque ones, bool [H, W] or None.

    Args:
        stream: is closed.
        name: of the file, or of the part.
        key: the seconds of a frame, or the number of a page.
        options: limits.

    Raises:
        ImageError: for a file that is damaged, too large, or has no such part.
        ConfigError: where a package is missing.
    """
    try:
        opened = _opened(stream, name, options)
        try:
            return opened.pixels(key)
        finally:
            opened.close()
    except (ImageError, ConfigError):
        raise
    except Exception as error:  # the readers let all sorts of errors out
        raise ImageError(f"{name} is damaged or cut off: {error}; copy or download it again") from error


def _opened(stream: BinaryIO, name: str, options: ReadOptions) -> Opened:
    kind: Callable[[BinaryIO, str, ReadOptions], Opened] = _Video if is_video(split(name)[0]) else _Pages
    return kind(stream, name, options)


class _Pages:
    """A file that Pillow reads. The first page is the file itself, and none of its parts."""

    def __init__(self, stream: BinaryIO, name: str, options: ReadOptions) -> None:
        self.name, self.options, self.stream = name, options, stream
        self.image = Image.open(stream, formats=known_formats())

    def keys(self) -> list[Key]:
        return list(range(2, getattr(self.image, "n_frames", 1) + 1))

    def pixels(self, key: Key) -> tuple[RGB, Mask | None]:
        try:
            self.image.seek(int(key) - 1)
        except EOFError as error:
            raise ImageError(f"{self.name} has no page {key}") from error
        name, page = joined(self.name, key), int(key) - 1
        return from_page(self.image, lambda: self._data, name, self.options.max_pixels, page)

    @cached_property
    def _data(self) -> bytes:
        self.stream.seek(0)
        return self.stream.read()

    def close(self) -> None:
        self.image.close()
        self.stream.close()


class _Video:
    """A video, read by PyAV from a stream: no other file and no address can be named in it."""

    def __init__(self, stream: BinaryIO, name: str, options: ReadOptions) -> None:
        try:
            import av
        except ImportError as error:
            raise ConfigError(
                f"{name}: reading videos needs the package av: pip install 'soir-qdrant[video]'"
            ) from error
        self.name, self.options, self.stream = name, options, stream
        self.container: InputContainer = av.open(stream, mode="r", options={"format_whitelist": CONTAINERS})
        if not self.container.streams.video:
            raise ImageError(f"{name} has no video stream: leave it out")
        self.video = self.container.streams.video[0]
        if self.video.width * self.video.height > options.max_pixels:
            raise too_many_pixels(name, self.video.width, self.video.height, options.max_pixels)
        self.start = float((self.video.start_time or 0) * (self.video.time_base or 0))
        self.now: float | None = None  # of the frame that was decoded last

    def keys(self) -> list[Key]:
        if self.options.every is None:
            raise ConfigError(f"{self.name} is a video: say how often a frame is read, every=2.0 (--every 2)")
        if self.video.duration and self.video.time_base:
            seconds = float(self.video.duration * self.video.time_base)
        else:
            seconds = (self.container.duration or 0) / 1e6
        count = max(1, math.ceil(min(seconds / self.options.every, MAX_PARTS + 1)))
        return [float(i * self.options.every) for i in range(count)]

    def pixels(self, key: Key) -> tuple[RGB, Mask | None]:
        """The first frame at or after a time, else the last one."""
        now = 0.0 if self.now is None else self.now
        if key > now + AHEAD or (self.now is not None and key <= now):
            self.container.seek(max(0, int((self.start + key) * 1e6)))
        image = None
        for image in self.container.decode(self.video):
            self.now = float(image.time or 0) - self.start
            if self.now >= key - 1e-3:
                break
        if image is None:
            raise ImageError(f"{self.name} has no frame at {key:g} s: it is damaged or cut off")
        rgb = image.to_ndarray(format="rgb24")
        turns = round(getattr(image, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns)), None

    def close(self) -> None:
        self.container.close()
        self.stream.close()
