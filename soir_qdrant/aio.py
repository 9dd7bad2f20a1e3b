"""The same search and ingestion for asyncio, on an AsyncQdrantClient.

Requests run on the caller's event loop, through his client; decoding and encoding, which keep a processor
busy, run in a worker thread, so that the loop goes on. A call that is cancelled ends for its caller, and in
the thread when its work is done. One searcher may be awaited on several loops, as where each thread runs its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from qdrant_client import AsyncQdrantClient

from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.qdrant.clients import embedded
from soir_qdrant.search.searcher import SoirSearcher

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class _Bridge:
    """Looks like a QdrantClient from another thread than that of the loop on which the client is awaited.

    A client's connections belong to the loop that opened them: the first loop has the client that was handed in,
    each other one gets a client of its own, with the same arguments, until it is closed. Local mode has no connections,
    and a lock (`clients.lock_of`): what this package does on several loops waits for one another.
    """

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._first = client
        self._clients: dict[asyncio.AbstractEventLoop, AsyncQdrantClient] = {}
        self._first_is_taken = False
        self._lock = threading.Lock()
        self.loop: ContextVar[asyncio.AbstractEventLoop] = ContextVar("loop")

    @property
    def client(self) -> AsyncQdrantClient:
        """That of the loop whose call this is."""
        loop = self.loop.get(None)
        if loop is None or embedded(self._first):
            return self._first
        with self._lock:
            self._clients = {one: client for one, client in self._clients.items() if not one.is_closed()}
            if loop not in self._clients:
                own = {**self._first.init_options, "check_compatibility": False}
                self._clients[loop] = AsyncQdrantClient(**own) if self._first_is_taken else self._first
                self._first_is_taken = True
            return self._clients[loop]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if not inspect.iscoroutinefunction(method):
            return method

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            here = getattr(self.client, name)
            return asyncio.run_coroutine_threadsafe(here(*args, **kwargs), self.loop.get()).result()

        return call


class _Async(Generic[S]):
    def __init__(self, kind: Callable[..., S], client: AsyncQdrantClient, *args: Any, **options: Any) -> None:
        self._bridge = _Bridge(client)
        self.blocking = kind(self._bridge, *args, **options)


def _awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_Async[S], P], Coroutine[Any, Any, T]]:
    async def call(self: _Async[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._bridge.loop.set(asyncio.get_running_loop())  # the thread has a copy of this call's context
        return await asyncio.to_thread(method, self.blocking, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


class AsyncSoirSearcher(_Async[SoirSearcher]):
    """SoirSearcher on an AsyncQdrantClient: the same arguments and methods, awaited. blocking: the searcher."""

    def __init__(self, client: AsyncQdrantClient, collection: str = "images", **options: Any) -> None:
        super().__init__(SoirSearcher, client, collection, **options)

    search = _awaited(SoirSearcher.search)
    search_many = _awaited(SoirSearcher.search_many)
    search_groups = _awaited(SoirSearcher.search_groups)
    vector = _awaited(SoirSearcher.vector)
    heat = _awaited(SoirSearcher.heat)


class AsyncSoirIngestor(_Async[SoirIngestor]):
    """SoirIngestor on an AsyncQdrantClient: the same arguments and methods, awaited, but for `watch`, which has no end:
    await `sync` when something has changed. blocking: the ingestor."""

    def __init__(self, client: AsyncQdrantClient, collection: str = "images", **options: Any) -> None:
        super().__init__(SoirIngestor, client, collection, **options)

    add = _awaited(SoirIngestor.add)
    sync = _awaited(SoirIngestor.sync)
    remove = _awaited(SoirIngestor.remove)
    update_payload = _awaited(SoirIngestor.update_payload)
