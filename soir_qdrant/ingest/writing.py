"""Points into the collection, beside the thread that runs the models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

from qdrant_client import models

from soir_qdrant.qdrant.identity import PointId, point_id_of
from soir_qdrant.qdrant.points import Points, StoredPoint

Outcome = tuple[models.PointStruct, str | None]


class Writer:
    """Writes one batch while the next is made: who hands in a batch takes the outcome of the one before first.
    In local mode it writes at once: its files belong to the thread that opened them.

    Args:
        points: of the collection.
    """

    def __init__(self, points: Points) -> None:
        self._points = points
        self._pool: ThreadPoolExecutor | None = None
        if not points.store.is_local:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="soir-writing")
        self._written: Future[tuple[list[Outcome], Exception | None]] | None = None
        self.seconds = 0.0  # that all writes took

    def write(self, points: Sequence[models.PointStruct], existing: Mapping[PointId, StoredPoint]) -> None:
        """Begin to write; see `Points.write`."""
        old = {id_: existing[id_] for id_ in map(point_id_of, points) if id_ in existing}
        if self._pool is not None:
            here = copy_context()  # an asyncio client's loop is in it
            self._written = self._pool.submit(here.run, self._write, points, old)
            return
        self._written = Future()
        self._written.set_result(self._write(points, old))

    def outcomes(self) -> Iterator[Outcome]:
        """What became of the points that were handed in last, as `Points.write` tells it, once they are written;
        then it raises what that raised."""
        written, self._written = self._written, None
        if written is None:
            return
        outcomes, error = written.result()
        yield from outcomes
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits for what is being written."""
        if self._pool is not None:
            self._pool.shutdown()

    def _write(
        self, points: Sequence[models.PointStruct], existing: Mapping[PointId, StoredPoint]
    ) -> tuple[list[Outcome], Exception | None]:
        start, outcomes = time.perf_counter(), []
        try:
            for outcome in self._points.write(points, existing):
                outcomes.append(outcome)
        except Exception as error:
            return outcomes, error
        finally:
            self.seconds += time.perf_counter() - start
        return outcomes, None
