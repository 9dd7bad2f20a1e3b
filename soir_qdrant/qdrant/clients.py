"""A client beyond the process and the thread that it was made in: pickled, forked, or shared by threads."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from qdrant_client import QdrantClient
from qdrant_client.client_base import QdrantBase
from qdrant_client.local.async_qdrant_local import AsyncQdrantLocal
from qdrant_client.local.qdrant_local import QdrantLocal

from soir_qdrant.errors import ConfigError

Local: TypeAlias = QdrantLocal | AsyncQdrantLocal
_LOCKS: WeakKeyDictionary[Local, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def embedded(client: Any) -> Local | None:
    """Local mode behind a client, an asyncio one too; None for clients of other kinds."""
    local = getattr(client, "_client", None)
    return local if isinstance(local, Local) else None


def lock_of(client: Any) -> AbstractContextManager[Any]:
    """Local mode must not be read while another thread writes: one lock for all that use it. None for others, which
    look after that themselves."""
    local = embedded(client)
    if local is None:
        return nullcontext()
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(local, threading.RLock())


class Reopening:
    """A client, and how it is opened again where it cannot be used as it is.

    Pickled, it is its own arguments, and opened where it is unpickled. After a fork, a client of a server is
    opened anew at its first use: parent and child would read one another's answers from the same connection.
    Local mode in memory goes on as a copy; in a folder, it cannot.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._pid = client, os.getpid()

    def here(self) -> QdrantBase:
        """The client, for this process."""
        if self._pid != os.getpid() and isinstance(self._client, QdrantClient):
            self._client, self._pid = _again(self._client), os.getpid()
        client: QdrantBase = self._client
        return client

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """See `lock_of`."""
        return lock_of(self._client)

    @property
    def is_local(self) -> bool:
        """Whether it is local mode, whose files belong to the thread that opened them."""
        return embedded(self._client) is not None

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._client, QdrantClient):
            return _unpickled, (type(self._client), _portable(self._client))
        return Reopening, (self._client,)


def _again(client: QdrantClient) -> QdrantClient:
    local = embedded(client)
    if local is None:
        return type(client)(**_options(client))
    if local.location == ":memory:":
        return client
    raise ConfigError(
        f"{local.location} was opened before this process was forked: open the client in each process, one at a "
        "time, or run a Qdrant server and give its URL"
    )


def _options(client: QdrantClient) -> dict[str, Any]:
    return {**client.init_options, "check_compatibility": False}


def _portable(client: QdrantClient) -> dict[str, Any]:
    local = embedded(client)
    if local is not None and local.location == ":memory:":
        raise ConfigError(
            "this searcher cannot be pickled: its collection lies in the memory of this process. Give its client a "
            "path or the URL of a server"
        )
    return _options(client)


def _unpickled(kind: type[QdrantClient], options: dict[str, Any]) -> Reopening:
    return Reopening(kind(**options))
