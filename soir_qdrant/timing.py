"""How long each stage of a search or an ingest takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SECONDS: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to `seconds[stage]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """The seconds of each stage that runs within the block, in this thread: of a search "decode", "encode", "qdrant"
    and "rerank"."""
    seconds: dict[str, float] = {}
    token = _SECONDS.set(seconds)
    try:
        yield seconds
    finally:
        _SECONDS.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block, or the function that this decorates, as one of `stages`."""
    seconds = _SECONDS.get()
    if seconds is None:
        yield
        return
    with timed(seconds, name):
        yield
