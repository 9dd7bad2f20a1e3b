"""Our timeout for requests whose methods take none, as those about a whole collection do."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import httpx
from qdrant_client.http.api_client import AsyncApiClient

_SECONDS: ContextVar[float | None] = ContextVar("seconds", default=None)
_READY: WeakSet[Any] = WeakSet()  # what sends the requests of a client, once it looks at _SECONDS
_LOCK = threading.Lock()


@contextmanager
def request_timeout(client: Any, seconds: float) -> Iterator[None]:
    """Within the block, a request of the client waits so many seconds for its answer."""
    try:
        api = client.http.client
    except (AttributeError, NotImplementedError):  # Edge, local mode
        yield
        return
    _make_ready(api)
    if client.init_options.get("prefer_grpc"):
        _make_grpc_ready(client._client)
    token = _SECONDS.set(seconds)
    try:
        yield
    finally:
        _SECONDS.reset(token)


def _make_ready(api: Any) -> None:
    with _LOCK:
        if api not in _READY:
            api.add_middleware(_limited_async if isinstance(api, AsyncApiClient) else _limited)
            _READY.add(api)


def _make_grpc_ready(remote: Any) -> None:
    """Requests over gRPC take what `_timeout` of the client is, where their methods have no such argument."""
    with _LOCK:
        kind, own = type(remote), remote._timeout
        if remote not in _READY:
            remote.__class__ = type(
                kind.__name__, (kind,), {"_timeout": property(lambda _: _SECONDS.get() or own)}
            )
            _READY.add(remote)


def _limited(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
    _limit(request)
    return send(request)


async def _limited_async(
    request: httpx.Request, send: Callable[[httpx.Request], Awaitable[httpx.Response]]
) -> httpx.Response:
    _limit(request)
    return await send(request)


def _limit(request: httpx.Request) -> None:
    if (seconds := _SECONDS.get()) is not None:
        request.extensions["timeout"] = httpx.Timeout(seconds).as_dict()
