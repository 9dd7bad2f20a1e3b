"""Embedded Qdrant under several threads: one call at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from qdrant_client.client_base import QdrantBase

from soir_qdrant.qdrant.clients import embedded, lock_of


class _OneAtATime:
    """A client whose methods wait for one another: embedded Qdrant must not be read while it is written."""

    def __init__(self, client: QdrantBase) -> None:
        self._wrapped = client
        self._lock = lock_of(client)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        if name.startswith("_") or not callable(value):
            return value
        method: Callable[..., Any] = value

        @functools.wraps(method)
        def locked(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                return method(*arguments, **options)

        return locked


def threadsafe(client: QdrantBase) -> QdrantBase:
    """The client itself where it talks to a server; an embedded one behind a lock."""
    return client if embedded(client) is None else cast("QdrantBase", _OneAtATime(client))
