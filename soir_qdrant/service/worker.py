"""One thread that runs the models: searches first, equal ones together, with a bounded queue."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar, cast

from opentelemetry.context import Context

from soir_qdrant.service.errors import Busy
from soir_qdrant.service.tracing import Tracing

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_RETRY_AFTER = 60  # seconds


class Priority(IntEnum):
    """What runs first."""

    SEARCH = 0
    OVERLAY = 1  # heat maps, masks, the objects of an upload
    INGEST = 2


@dataclass(order=True, slots=True)
class _Task:
    priority: int
    number: int
    item: Any = field(compare=False)
    run: Callable[[list[Any]], list[Any]] = field(compare=False)
    key: Hashable = field(compare=False)
    future: Future[Any] = field(compare=False)
    since: float = field(compare=False)
    context: Context = field(compare=False)


class ModelWorker:
    """Runs tasks one after the other, in order of priority.

    Args:
        limit: tasks of one priority that may wait (those of INGEST are bounded by their jobs instead).
        batch: tasks with the same key that are run as one.
        observe: called after a run with its kind ("search", "overlay", "ingest"), what each of its tasks waited, and
            what it took, in seconds.
        tracing: of OpenTelemetry; None is that of the global provider.
    """

    def __init__(
        self,
        limit: int,
        batch: int,
        observe: Callable[[str, Sequence[float], float], None] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.limit, self.batch, self.observe = limit, batch, observe or (lambda *_: None)
        self._tracing = tracing or Tracing()
        self._tasks: list[_Task] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 1.0  # of one task, a running mean
        self._thread = threading.Thread(target=self._loop, name="soir-models", daemon=True)

    def start(self) -> None:
        """Begin. Not before: a thread would not outlive the fork of a server that loads the app beforehand."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tasks that have not begun, and that somebody waits for."""
        return sum(not task.future.cancelled() for task in list(self._tasks))

    @property
    def alive(self) -> bool:
        """Whether tasks are still taken."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, priority: Priority, action: Callable[[], T]) -> Future[T]:
        """Queue one action. Raises Busy where too many wait, or the worker stops."""
        return cast("Future[T]", self._put(priority, None, lambda _: [action()], None))

    def submit_batched(self, key: Hashable, item: Any, run: Callable[[list[Any]], list[T]]) -> Future[T]:
        """Queue one search that may share a run with others.

        Args:
            key: equal for searches that can be run together.
            item: this one's query.
            run: takes the items of a batch, in order, and returns one result for each.

        Raises:
            Busy: where too many wait, or the worker stops.
        """
        return cast("Future[T]", self._put(Priority.SEARCH, item, run, key))

    def stop(self, timeout: float = 30.0) -> None:
        """Finish the running task; those that wait fail with Busy."""
        with self._changed:
            self._stopping = True
            tasks, self._tasks = self._tasks, []
            self._changed.notify_all()
        for task in tasks:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(Busy("the service is stopping", 10))
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _put(
        self, priority: Priority, item: Any, run: Callable[[list[Any]], list[Any]], key: Hashable
    ) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            if self._stopping:
                raise Busy("the service is stopping", 10)
            self._tasks = [task for task in self._tasks if not task.future.cancelled()]
            heapq.heapify(self._tasks)
            same = sum(task.priority == priority for task in self._tasks)
            if same >= self.limit and priority != Priority.INGEST:
                after = min(max(1, math.ceil(same * self._seconds)), MAX_RETRY_AFTER)
                raise Busy(f"{same} requests wait already: try again in {after} s", after)
            number, context = next(self._numbers), self._tracing.here()
            task = _Task(priority, number, item, run, key, future, time.monotonic(), context)
            heapq.heappush(self._tasks, task)
            self._changed.notify()
        return future

    def _loop(self) -> None:
        while tasks := self._take():
            now = time.monotonic()
            waited = [now - task.since for task in tasks]
            kind = Priority(tasks[0].priority).name.lower()
            with self._tracing.batch(kind, [task.context for task in tasks], waited):
                _run(tasks)
            seconds = time.monotonic() - now
            self.observe(kind, waited, seconds)
            if tasks[0].priority == Priority.SEARCH:
                self._seconds += 0.2 * (seconds / len(tasks) - self._seconds)

    def _take(self) -> list[_Task]:
        """The next task and, where it has a key, the waiting ones with the same; empty at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._tasks or self._stopping)
                if self._stopping:
                    return []
                first = heapq.heappop(self._tasks)
                same = [
                    task for task in sorted(self._tasks) if first.key is not None and task.key == first.key
                ]
                same = same[: self.batch - 1]
                self._tasks = [task for task in self._tasks if not any(task is other for other in same)]
                heapq.heapify(self._tasks)
                running = [task for task in [first, *same] if task.future.set_running_or_notify_cancel()]
                if running:
                    return running


def _run(tasks: list[_Task]) -> None:
    """One run for all; where that fails, each by itself, so that one bad query does not fail the others."""
    try:
        results = tasks[0].run([task.item for task in tasks])
    except Exception as error:
        if len(tasks) == 1:
            tasks[0].future.set_exception(error)
            return
        for task in tasks:
            _run([task])
        return
    for task, result in zip(tasks, results, strict=True):
        task.future.set_result(result)
