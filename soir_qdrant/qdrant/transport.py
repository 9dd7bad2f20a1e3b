"""Reaching Qdrant: connecting, trying again, how large a write may be. faults.py says which errors pass."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models

from soir_qdrant.errors import CollectionError, ConfigError, ServerError, without_password
from soir_qdrant.qdrant.faults import (
    Unconfirmed,
    is_of_qdrant,
    is_passing,
    lasting,
    retry_after,
    text_of,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BYTES = 8_000_000  # of one write; servers refuse 32 MB, with an error that looks like a timeout
MAX_POINTS = 64
_NUMBER_BYTES = 22  # of a float in JSON
# What the client lets out when meta.json, a database or a pickled point in it is no such thing.
_DAMAGED = (ValueError, LookupError, TypeError, EOFError, AttributeError, sqlite3.Error, pickle.PickleError)


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
            start = "" if "://" in url else "://"
            shown = without_password(start + url).removeprefix(start)
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
    except OSError as error:
        raise ConfigError(f"{path} cannot be the folder of an embedded Qdrant: {error}") from error
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise CollectionError(
            f"{path} is open in another process: embedded Qdrant serves one at a time. Wait until that one "
            "has ended, or run a Qdrant server and give its URL"
        ) from error


@dataclass(frozen=True, slots=True)
class Retry:
    """How long a request is tried again, while its errors are passing ones (see `faults.is_passing`).

    Attributes:
        attempts: in all, at least 1; None: as many as fit into `total`.
        first, longest: seconds before the second try, which then doubles, and the longest wait. Each is cut by a
            random part, so that many clients do not return at once; a server that says how long to wait is
            followed.
        total: seconds after which there is no further try.
    """

    attempts: int | None = None
    first: float = 0.5
    longest: float = 15.0
    total: float = 120.0

    def __call__(self, action: Callable[[], T], what: str, total: float | None = None) -> T:
        """The result of an action.

        Args:
            action: makes the request.
            what: the action in words, for messages.
            total: in place of this policy's, where it is shorter.

        Raises:
            ServerError: when attempts or time are used up, TLS fails, or local mode cannot write.
            Refused: at once, for a request that will never be accepted.
        """
        if self.attempts is not None and self.attempts < 1:
            raise ConfigError(f"attempts must be at least 1, not {self.attempts}")
        start, total = time.monotonic(), min(self.total, total or self.total)
        for attempt in itertools.count(1):
            try:
                return action()
            except Exception as error:
                if not is_of_qdrant(error):
                    raise
                if not is_passing(error):
                    raise lasting(error, what) from error
                wait = self.wait(attempt, error)
                if attempt == self.attempts or time.monotonic() - start + wait > total:
                    raise ServerError(
                        f"could not {what}: Qdrant did not answer in {attempt} attempts, "
                        f"{time.monotonic() - start:.0f} s ({text_of(error)}); see that it runs and can be reached"
                    ) from error
                log.warning("could not %s, next attempt in %.1f s: %s", what, wait, text_of(error))
                time.sleep(wait)
        raise AssertionError

    def wait(self, attempt: int, error: Exception | None = None) -> float:
        """Seconds before the try after this one."""
        wait = min(self.first * 2.0 ** min(attempt - 1, 30), self.longest) * random.uniform(0.5, 1.0)
        return max(wait, (error and retry_after(error)) or 0.0)


def confirmed(answer: T) -> T:
    """The answer to a write, or to several.

    Raises:
        Unconfirmed: where one is not done, so that it is tried again: points have ids, so that is harmless.
    """
    for one in answer if isinstance(answer, list) else [answer]:
        status = getattr(one, "status", None)
        if isinstance(status, models.UpdateStatus) and status != models.UpdateStatus.COMPLETED:
            raise Unconfirmed(f"the server answered {status.value!r}, not that the write is completed")
    return answer


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
