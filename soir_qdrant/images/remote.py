"""Files that lie elsewhere: object stores by fsspec, and, where that is allowed, http."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from soir_qdrant.errors import ImageError, without_password
from soir_qdrant.images.addresses import Stamp
from soir_qdrant.images.options import ReadOptions

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Not fsspec's others: some run programs or unpack archives, and "cache::http://..." would go past the checks.
WEB = ("http", "https")
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "memory")
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address, as a listing names it."""

    uri: str
    stamp: Stamp | None = None

    def __str__(self) -> str:
        return self.uri


def read(uri: str, name: str, options: ReadOptions) -> tuple[bytes, Stamp | None]:
    """The content of a file, and its stamp. Raises ImageError."""
    _check_no_password(uri)
    try:
        if protocol_of(uri) in WEB:
            from soir_qdrant.images import web

            _allowed(name, options)
            data = web.download(uri, private=options.private, max_bytes=options.max_bytes)
            return _checked(data, len(data), name, options), None
        store, path = filesystem(uri)
        about = store.info(path)
        if about.get("type") == "directory":
            raise ImageError("it is a folder: hand it in by itself, not among images")
        size = int(about.get("size") or 0)
        _checked(b"", size, name, options)
        with store.open(path, "rb") as stream:
            data = stream.read(options.max_bytes + 1)
        return _checked(data, len(data), name, options), stamp_of(about)
    except ImageError as error:
        message = str(error)
        raise ImageError(message if message.startswith(name) else f"{name}: {message}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Exception as error:  # each store has errors of its own
        raise ImageError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def is_store(uri: str) -> bool:
    """Whether an address is one of an object store that is read."""
    return "://" in uri and protocol_of(uri) in STORES and "::" not in uri


def protocol_of(uri: str) -> str:
    return uri.partition(":")[0].lower()


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The store of an address, and the path in it. Raises ImageError for one that is not read."""
    _check_no_password(uri)
    if not is_store(uri):
        raise ImageError(
            f"{uri}: {protocol_of(uri)}:// is not read, but {', '.join(STORES)} and, if allowed, http are"
        )
    from fsspec.core import url_to_fs

    try:
        store, path = url_to_fs(uri)
    except ImportError as error:
        raise ImageError(f"{uri}: {error}") from error
    return store, path


def is_folder(uri: str) -> bool:
    """Raises ImageError for a store that is not read or cannot be reached."""
    if protocol_of(uri) in WEB:
        return False
    store, path = filesystem(uri)
    try:
        return bool(store.isdir(path))
    except Exception as error:
        raise ImageError(f"{uri} cannot be looked into: {type(error).__name__}: {error}") from error


def exists(uri: str) -> bool:
    """Whether there is such a file; True where that cannot be known."""
    try:
        store, path = filesystem(uri)
        return bool(store.exists(path))
    except Exception:
        return True


def walk(folder: str) -> Iterator[tuple[str, RemoteFile]]:
    """Paths within the folder and files, in order of names, whatever they hold. Raises ImageError."""
    store, root = filesystem(folder)
    try:
        listed: dict[str, dict[str, Any]] = store.find(root, detail=True)
    except Exception as error:
        raise ImageError(f"{folder} cannot be looked into: {type(error).__name__}: {error}") from error
    root = root.rstrip("/")
    for path in sorted(listed):
        inside = posixpath.relpath(path, root) if root else path.lstrip("/")
        yield inside, RemoteFile(f"{folder.rstrip('/')}/{inside}", stamp_of(listed[path]))


def stamp_of(about: dict[str, Any]) -> Stamp | None:
    """What a listing says of a file: its size, and the time of its last change where there is one."""
    when = next((about[name] for name in _MODIFIED if about.get(name)), None)
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            return None
    seconds = when.timestamp() if isinstance(when, datetime) else when
    if not isinstance(seconds, int | float):
        return None
    return int(about.get("size") or 0), int(seconds * 1e9)


def _check_no_password(uri: str) -> None:
    if (shown := without_password(uri)) != uri:
        raise ImageError(
            f"{shown}: an address is stored with its image, and this one has a password: give one without, and the "
            "password where the store's package looks for it"
        )


def _allowed(name: str, options: ReadOptions) -> None:
    if not options.http:
        raise ImageError(
            f"{name}: http is not read unless that is allowed: ReadOptions(http=True), --allow-http"
        )


def _checked(data: bytes, size: int, name: str, options: ReadOptions) -> bytes:
    if size > options.max_bytes:
        raise ImageError(
            f"{name} has more than the {options.max_bytes:,} bytes that are read: make it smaller"
        )
    return data
