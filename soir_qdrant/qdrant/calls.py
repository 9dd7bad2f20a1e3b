"""Requests about one collection: one timeout, one policy of trying again, one client for this process."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qdrant_client.client_base import QdrantBase

from soir_qdrant.errors import ServerError
from soir_qdrant.qdrant.clients import Reopening
from soir_qdrant.qdrant.faults import Gone, Refused, is_missing
from soir_qdrant.qdrant.timeouts import request_timeout
from soir_qdrant.qdrant.transport import Retry, confirmed

T = TypeVar("T")


class SharedTimeout:
    """Seconds that several requests have together, and what is done between them has not; None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._spent = seconds, 0.0

    @contextmanager
    def request(self) -> Iterator[int | None]:
        """Within the block, one of them is made; gives its timeout. Raises ServerError where no time is left."""
        if self._seconds is None:
            yield None
            return
        if self._spent >= self._seconds:
            raise ServerError(f"not done within {self._seconds:g} s: give a larger timeout, or fewer at once")
        start = time.monotonic()
        yield math.ceil(self._seconds - self._spent)
        self._spent += time.monotonic() - start


class Caller:
    """Calls a client's methods.

    Args:
        client: of Qdrant.
        collection: its name.
        timeout: seconds for one request.
        retry: None is the default policy.
    """

    dim = 0  # of the collection's vectors, once it was opened

    def __init__(self, client: QdrantBase, collection: str, timeout: int, retry: Retry | None) -> None:
        self._client = Reopening(client)
        self.collection = collection
        self.timeout = timeout
        self.retry = retry or Retry()

    @property
    def client(self) -> QdrantBase:
        """Of this process: one that was inherited in a fork is opened anew."""
        return self._client.here()

    @property
    def is_local(self) -> bool:
        """Whether the collection is in local mode."""
        return self._client.is_local

    def call(self, what: str, method: Callable[..., T], **arguments: Any) -> T:
        """method(collection, **arguments), with this store's timeout and retries; a timeout among the arguments
        bounds all tries together. what: see Retry."""
        return self._request(what, method, arguments)

    def write(self, method: Callable[..., T], **arguments: Any) -> T:
        """The same for a write, until the server says that it is completed."""
        return self._request("write to", method, arguments, confirmed)

    def _request(
        self,
        what: str,
        method: Callable[..., T],
        arguments: dict[str, Any],
        accept: Callable[[T], T] = lambda answer: answer,
    ) -> T:
        total = arguments.pop("timeout", None)
        end = None if total is None else time.monotonic() + total
        takes_timeout = "timeout" in inspect.signature(method).parameters
        lock = self._client.lock

        def action() -> T:
            seconds = self.timeout if end is None else max(1, math.ceil(end - time.monotonic()))
            own = {"timeout": seconds} if takes_timeout else {}
            with lock, request_timeout(self.client, seconds):
                answer = method(self.collection, **arguments, **own)
            return accept(answer)

        try:
            return self.retry(action, f"{what} collection {self.collection!r}", total)
        except Refused as error:
            if self.dim and is_missing(error):
                raise Gone(f"collection {self.collection!r} is gone: {error}") from error
            raise
