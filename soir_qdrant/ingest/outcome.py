"""What a call of the ingestor tells: while it runs, when it ends, and when it is cut short."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from soir_qdrant.errors import ServerError, SoirError
from soir_qdrant.images import LeftOut
from soir_qdrant.types import Failure, IngestReport

log = logging.getLogger(__name__)
ShowProgress: TypeAlias = bool | Callable[[int, int | None], None]
_EVERY = 10.0  # seconds between lines in the log, while images are done with
_QUIET = 30.0  # seconds without one, after which the log says that the run goes on


class IngestStopped(ServerError):
    """A run ended on the way: the server was lost, as a rule.

    Attributes:
        report: what had become of the images until then.
    """

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[IngestStopped], tuple[str, IngestReport]]:
        return type(self), (str(self), self.report)


@contextmanager
def with_report(report: IngestReport, collection: str) -> Iterator[None]:
    """An error that ends a run becomes IngestStopped, with the report; one of settings or the collection stays what
    it is where it comes before the first image.

    Raises:
        IngestStopped: as said.
    """
    try:
        yield
    except SoirError as error:
        begun = report.added or report.updated or report.skipped or report.failed
        if begun or isinstance(error, ServerError):
            raise _stopped(error, report, collection) from error
        raise


def _stopped(error: SoirError, report: IngestReport, collection: str) -> IngestStopped:
    updated = f"{report.updated} updated, " if report.updated else ""
    return IngestStopped(
        f"{error}\nStored in collection {collection!r} by then: {report.added} images, {updated}"
        f"{report.skipped} skipped, {len(report.failed)} failed; the same call goes on from there",
        report,
    )


def broken_off(error: Exception, report: IngestReport, collection: str) -> IngestStopped:
    """For an iterable of the user's that raised: what came before it is stored."""
    what = f"the images, or what belongs to them, could not be read on: {type(error).__name__}: {error}"
    return _stopped(ServerError(what), report, collection)


@contextmanager
def bar(wanted: ShowProgress, count: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr or in a notebook, lines in the log where there is neither, or a callback; what it
    gives is called with the number of images done with. count: of all, where it is known."""
    console = Console(stderr=True)
    if not wanted:
        yield lambda _: None
    elif callable(wanted):
        yield _Steps(wanted, count)
    elif console.is_terminal or console.is_jupyter:
        columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("images", total=count)
            yield lambda done: progress.advance(task, done)
    else:
        with _lines(count) as advance:
            yield advance


class _Steps:
    """Counts, and tells the count and the total."""

    def __init__(self, tell: Callable[[int, int | None], None], count: int | None) -> None:
        self._tell, self._count, self._done = tell, count, 0

    def __call__(self, done: int) -> None:
        self._done += done
        self._tell(self._done, self._count)


@contextmanager
def _lines(count: int | None) -> Iterator[Callable[[int], None]]:
    """Lines in the log: as images are done with, and while one batch takes long."""
    lines, ended = _Lines(count), threading.Event()

    def go_on() -> None:
        while not ended.wait(min(_QUIET, 1.0)):
            lines.add(0, _QUIET)

    thread = threading.Thread(target=go_on, name="soir-progress", daemon=True)
    thread.start()
    try:
        yield lambda done: lines.add(done, _EVERY)
    finally:
        ended.set()
        thread.join()


class _Lines:
    def __init__(self, count: int | None) -> None:
        self._count, self._done, self._lock = count, 0, threading.Lock()
        self._start = self._last = time.monotonic()

    def add(self, done: int, every: float) -> None:
        """Count images; a line where the last one is so many seconds old, and one for the last image."""
        with self._lock:
            self._done += done
            now = time.monotonic()
            if now - self._last < every and not (done and self._done == self._count):
                return
            self._last = now
            total = f"{self._done} of {self._count}" if self._count else str(self._done)
            if not self._done:
                log.info("%s images: the first batch is at work", total)
                return
            rate = self._done / max(now - self._start, 1e-3)
            log.info("%s images, %s a second", total, round(rate, 1 if rate >= 1 else 3))


def unreadable(left_out: LeftOut) -> list[Failure]:
    """Folders that could not be looked into, as failures."""
    return [Failure(str(folder), f"{folder}: this folder cannot be read") for folder in left_out.blocked]


def left_out_lines(names: list[str], excluded: int) -> list[str]:
    """What was left out, if anything was."""
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    reasons = "linked folders, videos, further pages, formats that are not read"
    lines = [f"{len(names)} left out ({reasons}): {shown}"] if names else []
    return lines + ([f"{excluded} excluded by patterns"] if excluded else [])


def summary(report: IngestReport, *, max_failures: int = 20) -> str:
    """A report in words: counts, seconds per stage, what can be renewed, and the first failures."""
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in sorted(report.seconds.items()))
    lines = [
        ", ".join(f"{count} {what}" for what, count in report.counts.items() if count or what != "updated")
    ]
    lines[0] += f", {len(report.failed)} failed" + (f" ({stages})" if stages else "")
    notes = (
        (report.stale, "stored by another recipe: on_exists='update' renews them"),
        (report.changed, "changed since: on_exists='update' renews them"),
        (report.superseded, "beside what their files held before: on_exists='update', or sync, removes that"),
        (report.relocated, "skipped ones lie at a place that was not known, and is now"),
    )
    lines += [f"{count} {what}" for count, what in notes if count]
    lines += left_out_lines(report.left_out, report.excluded)
    lines += [f"  {failure.name}: {failure.reason}" for failure in report.failed[:max_failures]]
    if len(report.failed) > max_failures:
        lines.append(f"  and {len(report.failed) - max_failures} more")
    return "\n".join(lines)
