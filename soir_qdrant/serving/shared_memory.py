"""Inputs handed to a Triton on the same host through the system's shared memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from numpy.typing import NDArray

if TYPE_CHECKING:
    from soir_qdrant.serving.triton_connection import TritonConnection


class Regions:
    """Regions of shared memory, lent to one request at a time, and made as needed.

    A server that was restarted knows none of them, so each is registered by its request: that is a short
    message beside the megabytes it saves.
    """

    def __init__(self, connection: TritonConnection) -> None:
        self._connection = connection
        self._free: list[tuple[Any, str, int]] = []
        self._lock = threading.Lock()

    @contextmanager
    def filled(self, inputs: list[Any], arrays: list[NDArray[Any]]) -> Iterator[Callable[[], None]]:
        """inputs: tritonclient's inputs, pointed at a region that holds the arrays, within the block.

        Yields what registers the region again, for a server that was restarted.
        """
        import tritonclient.utils.shared_memory as shm

        handle, name, size = region = self._borrow(sum(array.nbytes for array in arrays))

        def register() -> None:
            self._connection.call("share memory", "unregister_system_shared_memory", name)
            self._connection.call("share memory", "register_system_shared_memory", name, f"/{name}", size)

        try:
            offset = 0
            for tensor, array in zip(inputs, arrays, strict=True):
                shm.set_shared_memory_region(handle, [array], offset)
                tensor.set_shared_memory(name, array.nbytes, offset)
                offset += array.nbytes
            register()
            yield register
        finally:
            with self._lock:
                self._free.append(region)

    def close(self) -> None:
        """Gives the memory back. The server lets go of what it mapped when it ends."""
        import tritonclient.utils.shared_memory as shm

        with self._lock:
            for handle, _, _ in self._free:
                shm.destroy_shared_memory_region(handle)
            self._free.clear()

    def _borrow(self, size: int) -> tuple[Any, str, int]:
        import tritonclient.utils.shared_memory as shm

        with self._lock:
            fitting = next((region for region in self._free if region[2] >= size), None)
            if fitting:
                self._free.remove(fitting)
                return fitting
        name = f"soir-{os.getpid()}-{uuid4().hex[:8]}"
        return shm.create_shared_memory_region(name, f"/{name}", size), name, size
