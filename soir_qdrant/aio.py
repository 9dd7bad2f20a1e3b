"""The same search and ingestion for asyncio, on an AsyncQdrantClient.

Requests run on the caller's event loop, through his client; decoding and encoding, which keep a processor
busy, run in a worker thread, so that the loop goes on. A call that is cancelled ends for its caller, and in
the thread when its work is done.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from qdrant_client import AsyncQdrantClient

from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.search.searcher import SoirSearcher

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class _Bridge:
    """Looks like a QdrantClient from another thread than that of the loop on which the client is awaited."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self.client = client
        self.loop: asyncio.AbstractEventLoop | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if not inspect.iscoroutinefunction(method):
            return method

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            assert self.loop is not None
            return asyncio.run_coroutine_threadsafe(method(*args, **kwargs), self.loop).result()

        return call


class _Async(Generic[S]):
    def __init__(self, kind: Callable[..., S], client: AsyncQdrantClient, *args: Any, **options: Any) -> None:
        self._bridge = _Bridge(client)
        self.blocking = kind(self._bridge, *args, **options)


def _awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_Async[S], P], Coroutine[Any, Any, T]]:
    async def call(self: _Async[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._bridge.loop = asyncio.get_running_loop()
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
    """SoirIngestor on an AsyncQdrantClient: the same arguments and methods, awaited. blocking: the ingestor."""

    def __init__(self, client: AsyncQdrantClient, collection: str = "images", **options: Any) -> None:
        super().__init__(SoirIngestor, client, collection, **options)

    add = _awaited(SoirIngestor.add)
    sync = _awaited(SoirIngestor.sync)
    remove = _awaited(SoirIngestor.remove)
    update_payload = _awaited(SoirIngestor.update_payload)
