"""What the service remembers for a while, in memory: uploads, the queries of searches, thumbnails."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The values used last, bounded by a sum of sizes and by age. May be shared by threads.

    Args:
        max_size: what the sizes may add up to; a larger value is not kept at all.
        max_age: seconds.
        size: of a value, such as its bytes; each counts 1 without it.
        clock: seconds.
    """

    def __init__(
        self,
        max_size: int,
        max_age: float,
        size: Callable[[T], int] = lambda _: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_size, self.max_age, self.size, self.clock = max_size, max_age, size, clock
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def add(self, value: T) -> str:
        """Keep a value under a new key that cannot be guessed."""
        key = secrets.token_urlsafe(16)
        self.put(key, value)
        return key

    def put(self, key: str, value: T) -> None:
        """Keep a value under this key."""
        with self._lock:
            self._drop(key)
            self._values[key] = (self.clock(), value)
            self._total += self.size(value)
            while self._total > self.max_size:
                self._drop(next(iter(self._values)))

    def get(self, key: str) -> T | None:
        """The value, or None where there is none any longer."""
        with self._lock:
            since, value = self._values.get(key, (0.0, None))
            if value is None or self.clock() - since > self.max_age:
                self._drop(key)
                return None
            self._values.move_to_end(key)
            return value

    def _drop(self, key: str) -> None:
        if key in self._values:
            self._total -= self.size(self._values.pop(key)[1])
