"""Reaching Qdrant: connecting, how large a write may be, which errors pass by themselves."""

from __future__ import annotations

import json
import logging
import pickle
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from soir_qdrant.errors import CollectionError, ConfigError, ServerError

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BYTES = 8_000_000  # of one write; servers refuse 32 MB, with an error that looks like a timeout
MAX_POINTS = 64
_NUMBER_BYTES = 22  # of a float in JSON
_PASSING_GRPC = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
# What the client lets out when meta.json, a database or a pickled point in it is no such thing.
_DAMAGED = (ValueError, LookupError, TypeError, EOFError, AttributeError, sqlite3.Error, pickle.PickleError)
_MAX_RETRY_AFTER = 60.0  # seconds that a server's Retry-After is followed for


def connect(path: str | Path | None = None, url: str | None = None, **options: Any) -> QdrantClient:
    """A client for a folder (embedded Qdrant), a server, or the memory of this process, where both are None.

    options: handed on to QdrantClient (api_key, timeout, ...). Raises ConfigError for what is no URL, and
    CollectionError where another process has the folder open: embedded Qdrant serves one at a time.
    """
    if path is not None and url is not None:
        raise ConfigError("give a folder or a URL, not both")
    if url is not None:
        try:
            return QdrantClient(url=url, **options)
        except ValueError as error:  # urllib3's LocationParseError too
            shown = re.sub(r"(//|^)[^/@]*@", r"\1***@", url)  # a password is not repeated
            raise ConfigError(f"{shown!r} is no URL of a Qdrant server") from (
                None if shown != url else error
            )
    if path is None:
        return QdrantClient(":memory:", **options)
    listing = Path(path) / "meta.json"
    if listing.is_file() and not listing.stat().st_size and not (Path(path) / "collection").exists():
        listing.unlink()  # a process was killed while it made this folder; nothing is in it yet
    try:
        return QdrantClient(path=str(path), **options)
    except _DAMAGED as error:
        raise CollectionError(
            f"{path} is damaged, or no folder of an embedded Qdrant ({type(error).__name__}: {error}): bring back a "
            "copy of it, or ingest into a new folder"
        ) from error
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise CollectionError(
            f"{path} is open in another process: embedded Qdrant serves one at a time. Wait until that one "
            "has ended, or run a Qdrant server and give its URL"
        ) from error


class Refused(CollectionError):
    """The server (or local mode) understood a request and refused it; repeating it would not help.

    status: of HTTP, or None.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Retry:
    """attempts: in all, at least 1. first, most: seconds before the second try, which then doubles, and
    the longest wait; each wait is cut by a random part, so that many clients do not return at once."""

    attempts: int = 5
    first: float = 0.5
    most: float = 15.0

    def __call__(self, action: Callable[[], T], what: str) -> T:
        """The result of `action`, tried again while its errors are passing ones: lost connections,
        timeouts, 429 and 5xx.

        what: the action in words, for messages. Raises ServerError when the attempts are used up or local
        mode cannot write, and Refused at once for a request that will never be accepted.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except Exception as error:
                if not _is_of_qdrant(error):
                    raise
                if not is_passing(error):
                    raise _lasting(error, what) from error
                if attempt == self.attempts:
                    raise ServerError(
                        f"could not {what}: Qdrant did not answer in {attempt} attempts ({_text(error)}); "
                        "see that it runs and can be reached"
                    ) from error
                wait = self._wait(attempt, error)
                log.warning("could not %s, next attempt in %.1f s: %s", what, wait, _text(error))
                time.sleep(wait)
        raise ValueError(f"attempts must be at least 1, not {self.attempts}")

    def _wait(self, attempt: int, error: Exception) -> float:
        wait = min(self.first * float(2 ** (attempt - 1)), self.most) * random.uniform(0.5, 1.0)
        return max(wait, min(float(getattr(error, "retry_after_s", 0)), _MAX_RETRY_AFTER))


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if hasattr(error, "retry_after_s"):  # ResourceExhaustedResponse: 429 with a delay
        return True
    if isinstance(error, UnexpectedResponse):
        return error.status_code is not None and (error.status_code == 429 or error.status_code >= 500)
    if isinstance(error, ResponseHandlingException):
        source = error.source
        return isinstance(source, httpx.TransportError) and not isinstance(source, httpx.UnsupportedProtocol)
    return _grpc_code(error) in _PASSING_GRPC


def _is_of_qdrant(error: Exception) -> bool:
    kinds = (
        UnexpectedResponse,
        ResponseHandlingException,
        ValueError,
        AssertionError,
        OSError,
        sqlite3.Error,
    )
    return isinstance(error, kinds) or hasattr(error, "retry_after_s") or bool(_grpc_code(error))


def _lasting(error: Exception, what: str) -> CollectionError | ServerError:
    if isinstance(error, (OSError, sqlite3.Error)):
        return ServerError(f"could not {what}: {_text(error)}; see that the folder is writable and has space")
    status = error.status_code if isinstance(error, UnexpectedResponse) else None
    code = _grpc_code(error)
    if status in (401, 403) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(
            f"could not {what}: the server refuses this client ({_text(error)}); give its API key"
        )
    if code == "NOT_FOUND":
        status = 404
    return Refused(f"could not {what}: {_text(error)}", status)


def _grpc_code(error: Exception) -> str:
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""


def _text(error: Exception) -> str:
    if isinstance(error, ResponseHandlingException):
        return str(error.source) or type(error.source).__name__
    if isinstance(error, UnexpectedResponse):
        content = error.content.decode(errors="replace")[:500]
        return f"{error.status_code} {error.reason_phrase}: {content}"
    if _grpc_code(error):
        details = getattr(error, "details", None)
        return f"{_grpc_code(error)}: {details() if callable(details) else error}"
    return str(error) or type(error).__name__


def split(points: Sequence[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
    """The points in order, in lists bounded by MAX_POINTS and, from the second point on, MAX_BYTES."""
    batch: list[models.PointStruct] = []
    total = 0
    for point in points:
        size = json_size(point)
        if batch and (total + size > MAX_BYTES or len(batch) == MAX_POINTS):
            yield batch
            batch, total = [], 0
        batch.append(point)
        total += size
    if batch:
        yield batch


def json_size(point: models.PointStruct) -> int:
    """About how many bytes a point takes in a request."""

    def numbers(value: Any) -> int:
        if isinstance(value, Mapping):
            return sum(map(numbers, value.values()))
        return sum(map(numbers, value)) if value and isinstance(value[0], list) else len(value)

    return numbers(point.vector) * _NUMBER_BYTES + len(json.dumps(point.payload))
