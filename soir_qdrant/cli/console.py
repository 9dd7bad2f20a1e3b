"""What all commands share: the two streams, progress bars, the choice of settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from soir_qdrant.config import Settings

out, err = Console(markup=False), Console(markup=False, stderr=True)  # paths and messages have brackets

ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile", help="embedded, fast, paper, dinov3, modern, clip, siglip, siglip2, or a JSON file"
    ),
]
WhiteningOption = Annotated[Path | None, typer.Option("--whitening", help="file made by soir calibrate")]


def settings_of(profile: str, whitening: Path | None) -> Settings:
    """The settings of a profile, with another whitening where there is one."""
    from soir_qdrant.config import Settings

    settings = Settings.for_profile(profile)
    return settings.but(vector={"whitening": str(whitening)}) if whitening else settings


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Progress on stderr: a bar on a terminal, else a line now and then (see `LineProgress`). The block calls
    what it gets once per item."""
    if not err.is_terminal:
        yield LineProgress(what, total).advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


class LineProgress:
    """A line about every `interval` seconds: done/total, the rate since the last line, the time left.

    write: prints a line; clock: seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        interval: float = 30.0,
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.interval = what, total, interval
        self.write = write or (lambda line: err.print(line, highlight=False, soft_wrap=True))
        self.clock = clock
        self.done = 0
        self._last = (clock(), 0)  # time and count of the last line

    def advance(self) -> None:
        """One more item is done."""
        self.done += 1
        now, (before, count) = self.clock(), self._last
        if now - before < self.interval:
            return
        rate = (self.done - count) / (now - before)
        left = round((self.total - self.done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        self.write(f"{self.what}: {self.done}/{self.total}, {rate:.2g} a second, {clock} left")
        self._last = (now, self.done)
