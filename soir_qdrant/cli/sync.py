"""`soir sync` and `soir watch`: a collection kept in step with a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soir_qdrant.cli.console import out, print_json
from soir_qdrant.cli.groups import Models, Reading, Server, Target, grouped, open_ingestor
from soir_qdrant.cli.options import BatchOption, JsonOption
from soir_qdrant.cli.storage import Storage

if TYPE_CHECKING:
    from soir_qdrant.ingest.sync import SyncReport

KeepOption = Annotated[bool, typer.Option("--keep", help="leave the points of images that are gone")]


@grouped
def sync(
    folder: Annotated[
        str, typer.Argument(help="a folder of images, or an address such as s3://bucket/photos")
    ],
    server: Server,
    target: Target,
    models: Models,
    reading: Reading,
    storage: Storage,
    keep: KeepOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, do nothing")] = False,
    batch_size: BatchOption = 8,
    as_json: JsonOption = False,
) -> None:
    """Bring a collection in step with a folder: new, changed, moved, renamed and vanished images."""
    from soir_qdrant.qdrant.last_ingest import remember

    ingestor = open_ingestor(server, target, models, reading, **storage.options)
    report = ingestor.sync(folder, keep=keep, dry_run=dry_run, batch_size=batch_size)
    if report.done:
        remember(ingestor.store, report.counts, report.failed, report.left_out)
    show(report, as_json=as_json)
    raise typer.Exit(1 if report.failed else 0)


@grouped
def watch(
    folder: Annotated[Path, typer.Argument(help="a folder of images, read recursively")],
    server: Server,
    target: Target,
    models: Models,
    reading: Reading,
    storage: Storage,
    keep: KeepOption = False,
    settle: Annotated[
        float, typer.Option(min=0.1, help="seconds without a change before images are read")
    ] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Sync now and after every change in the folder, until interrupted."""
    ingestor = open_ingestor(server, target, models, reading, **storage.options)
    ingestor.watch(folder, keep=keep, settle=settle, on_report=lambda report: show(report, as_json=as_json))


def show(report: SyncReport, *, as_json: bool) -> None:
    """Print what became of each file, and the counts."""
    from soir_qdrant.ingest.plan import lines
    from soir_qdrant.ingest.sync import sync_summary

    if as_json:
        print_json(asdict(report))
        return
    for line in lines(report.changes):
        out.print(line, highlight=False, soft_wrap=True)
    out.print(sync_summary(report), highlight=False, soft_wrap=True)
