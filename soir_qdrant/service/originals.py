"""The files of stored images, opened with care. No path comes from a client."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import ReadOptions, is_address, local, remote
from soir_qdrant.images.addresses import Key, split
from soir_qdrant.images.frames import is_video, part_pixels
from soir_qdrant.images.pixels import digest
from soir_qdrant.service.errors import NotServed
from soir_qdrant.service.recent import Recent
from soir_qdrant.service.settings import ServiceSettings

log = logging.getLogger(__name__)
MAX_PLACES = 8  # of an image's equal files that are tried
RECENT_BYTES, RECENT_SECONDS = (
    128_000_000,
    600.0,
)  # of frames, pages and objects of stores that are kept in memory
_TWO = threading.Semaphore(2)  # frames that are decoded at once: each takes a core for a moment


class Originals:
    """Opens the images of one service, and nothing else: what was ingested, still is the same, and lies where the
    service may look.

    Args:
        settings: the folders (`roots`), object stores (`stores`) and limits of the service.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.folders, self.stores = settings.folders, settings.stores
        self.options = ReadOptions(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
        self._recent: Recent[bytes] = Recent(RECENT_BYTES, RECENT_SECONDS, len)

    def open(self, soir: Mapping[str, Any]) -> tuple[str, bytes]:
        """A stored image at the first of its places where it can be opened.

        Args:
            soir: what the payload holds of it: `uris` (or `uri`) and `sha256`.

        Returns:
            The place, and the bytes of the file; of a frame or a page, those of a PNG of it.

        Raises:
            NotServed: where there is no file, it is no regular one, lies elsewhere, is too large, or is not the
                image that was ingested: what holds of the first place.
        """
        uris, sha256 = soir.get("uris") or [soir.get("uri")], soir.get("sha256")
        if not isinstance(sha256, str) or not all(isinstance(uri, str) for uri in uris):
            raise NotServed("no file is known for this image: it was ingested from memory")
        refused: NotServed | None = None
        for uri in uris[:MAX_PLACES]:
            try:
                return uri, self._at(uri, sha256)
            except NotServed as error:
                refused = refused or error
        raise refused or NotServed("no file is known for this image")

    def _at(self, uri: str, sha256: str) -> bytes:
        name, (file, key) = Path(uri).name, split(uri)
        try:
            if is_address(file):
                self._check_address(file, name)
                return self._cached(uri, file, key, name, sha256)
            path = self._checked_path(file, name)
            if key is not None:
                return self._cached(uri, path, key, name, sha256)
            data, _ = local.read(path, name, self.options.max_bytes)
        except NotServed:
            raise
        except (ImageError, ConfigError) as error:
            raise _refusal(error, name) from error
        return _same(data, hashlib.sha256(data).hexdigest(), sha256, name)

    def _checked_path(self, file: str, name: str) -> Path:
        if "\0" in file or not Path(file).is_absolute():
            raise NotServed(f"{name}: its uri is no absolute path of a file")
        path = Path(os.path.realpath(file))
        if self.folders is not None and not any(path.is_relative_to(folder) for folder in self.folders):
            raise NotServed(f"{name} lies outside the folders of this service (--root)")
        return path

    def _check_address(self, file: str, name: str) -> None:
        below = any(file.startswith(f"{store.rstrip('/')}/") for store in self.stores)
        if not below or ".." in file.split("/"):
            raise NotServed(
                f"{name} lies at an address that this service does not open; object stores are allowed by --store"
            )

    def _cached(self, uri: str, file: Path | str, key: Key | None, name: str, sha256: str) -> bytes:
        """What takes long to read: it stays in memory for a while."""
        known = f"{uri} {sha256}"
        data = self._recent.get(known)
        if data is None:
            data = self._part(file, key, name, sha256)
            self._recent.put(known, data)
        return data

    def _part(self, file: Path | str, key: Key | None, name: str, sha256: str) -> bytes:
        if isinstance(file, Path) and is_video(file.name):
            stream: BinaryIO = cast(
                "BinaryIO", _Bounded(local.opened(file, name)[0], name, self.options.max_bytes)
            )
        elif isinstance(file, Path):
            stream = io.BytesIO(local.read(file, name, self.options.max_bytes)[0])
        else:
            stream = io.BytesIO(remote.read(file, name, self.options)[0])
        with stream:
            if key is None:
                data = stream.read()
                return _same(data, hashlib.sha256(data).hexdigest(), sha256, name)
            with _TWO:
                rgb, alpha = part_pixels(stream, name, key, self.options)
        pixels = rgb if alpha is None else np.dstack([rgb, alpha.astype(np.uint8) * 255])
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        return _same(png.getvalue(), digest(rgb, alpha), sha256, name)


class _Bounded:
    """A file of which so many bytes can be read: a video is looked into, not read whole."""

    def __init__(self, stream: BinaryIO, name: str, max_bytes: int) -> None:
        self.stream, self.name, self.max_bytes, self.left = stream, name, max_bytes, max_bytes
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size if 0 <= size <= self.left else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise ImageError(
                f"{self.name}: the frame lies deeper than the {self.max_bytes:,} bytes that are read"
            )
        return data

    def __enter__(self) -> _Bounded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _same(data: bytes, own: str, sha256: str, name: str) -> bytes:
    if own != sha256:
        raise NotServed(f"{name} is another image than was ingested: ingest it again")
    return data


def _refusal(error: ImageError | ConfigError, name: str) -> NotServed:
    """What a client is told; whole paths and the words of a store are for the log."""
    if isinstance(error.__cause__, FileNotFoundError):
        return NotServed(f"{name}: no such file: was it moved or deleted?")
    if error.__cause__ is None or isinstance(error.__cause__, (ImageError, ImportError)):
        return NotServed(str(error))
    log.info("%s", error)
    return NotServed(f"{name} cannot be read ({type(error.__cause__).__name__}): the service's log has more")
