"""What all commands share: the two streams, progress bars, the choice of settings."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleDimensions
from rich.text import Text

if TYPE_CHECKING:
    from soir_qdrant.config import Settings

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WIDE = 1000  # columns, where the output is no terminal: nothing is cut off


class _Plain(Console):
    """Prints what comes from outside, names above all, without letting it steer the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(max(WIDE, size.width), size.height)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size


out, err = _Plain(markup=False), _Plain(markup=False, stderr=True)  # paths and messages have brackets


def plain(text: str) -> str:
    """A text with its control characters, escape sequences and changes of direction made visible."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_json(data: Any) -> None:
    """In ASCII, which every stream can write."""
    out.print_json(json.dumps(data, default=str), ensure_ascii=True)


def write_anything() -> None:
    """Let stdout and stderr write names that their encoding has no letters for: as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="embedded (the default), fast, paper, dinov3, modern, clip, siglip2 ... (soir info), or a JSON file",
    ),
]
WhiteningOption = Annotated[Path | None, typer.Option("--whitening", help="file made by soir calibrate")]


def settings_of(profile: str | None, whitening: Path | None) -> Settings:
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
