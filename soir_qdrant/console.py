"""What all commands share: the two streams, progress bars, the choice of a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

out, err = Console(markup=False), Console(markup=False, stderr=True)  # paths and messages have brackets

ProfileOption = Annotated[
    str, typer.Option("--profile", help="embedded, paper, clip, siglip, or a JSON file of settings")
]


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where that is a terminal; the block calls what it is given once per item."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
