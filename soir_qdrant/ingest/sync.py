"""One pass that brings a collection in step with a folder: the least that does it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from soir_qdrant.errors import ImageError
from soir_qdrant.images import LeftOut, folder_images, is_folder, uri_of
from soir_qdrant.ingest.outcome import left_out_lines, unreadable
from soir_qdrant.ingest.places import keeps_own_id
from soir_qdrant.ingest.plan import Change, Plan, Planner
from soir_qdrant.ingest.run import Run
from soir_qdrant.ingest.sources import Item
from soir_qdrant.qdrant.identity import as_payload, point_id
from soir_qdrant.qdrant.points import StoredPoint
from soir_qdrant.types import Failure


@dataclass(slots=True)
class SyncReport:
    """What became of the files of a folder.

    Attributes:
        changes: of each file that was not as it was; see `Change`.
        unchanged: how many were.
        failed: with reasons. What was stored of them stays.
        left_out, excluded: as in `IngestReport`. Points of files that are left out now are removed.
        seconds: per stage, as in `IngestReport`.
        done: False after a dry run: `changes` is what would be done.
    """

    changes: list[Change] = field(default_factory=list)
    unchanged: int = 0
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    excluded: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    done: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """How many files of each kind of change."""
        return dict(Counter(change.what for change in self.changes))


@dataclass(slots=True, eq=False)
class Sync:
    """One call of `SoirIngestor.sync`. run: of this call, with on_exists="update". objects, payloads: by name
    of the file. keep: points of vanished files."""

    run: Run
    folder: str | Path
    objects: Mapping[str, Any]
    payloads: Mapping[str, Any]
    keep: bool

    def plan(self) -> Plan:
        """What is to be done, found without running a model and without writing."""
        if not is_folder(self.folder):
            raise ImageError(f"{self.folder}: no such folder")
        left_out, reading = LeftOut(), self.run.reading
        files = list(
            folder_images(self.folder, left_out, reading)
        )  # raises where there is none: nothing is emptied
        there = self.run.store.exists()
        if there:
            self.run.open_existing()
        points = self.run.points.scan() if there else ()
        planner = Planner(self.folder, points, self.recipes, reading)
        blocked = [f"{uri_of(folder)}{os.sep}" for folder in left_out.blocked]
        plan = planner.run(files, lambda uri: uri.startswith(tuple(blocked)))
        plan.failed += unreadable(left_out)
        plan.left_out, plan.excluded = left_out.others, left_out.excluded
        if self.keep:
            plan.vanished.clear()
            plan.changes = [replace(c, what="kept") if c.what == "vanished" else c for c in plan.changes]
        return plan

    def recipes(self, name: str, stored: StoredPoint) -> tuple[str, ...] | None:
        """Short hashes of what would make the point of a file; None where the user once gave its objects, and
        does not now: then it stays as it is."""
        if name not in self.objects and stored.by_user:
            return None
        return self.run.recipes(self.objects.get(name))

    def carry_out(self, plan: Plan, batch_size: int) -> None:
        """Moves first, which run no model; then what is to be stored; removal last, so that an interruption
        loses nothing."""
        self.run.open()
        points, places = self.run.points, self.run.places
        for id_, place in plan.met:
            places.note(id_, place)
        for id_, uri in plan.left:
            places.leave(id_, uri)
        places.write()
        for point, sha256, place in plan.touched:
            changes = {"sha256": sha256, **as_payload([place])}
            if keeps_own_id(point):
                points.set_soir(point.id, changes)
            else:
                points.rename(point.id, point_id(sha256, point.namespace), changes)
        items = (
            Item(name, source, id_, self.payloads.get(name), self.objects.get(name))
            for name, source, id_ in plan.to_store
        )
        self.run.all(items, batch_size)
        for id_, uri in plan.vanished:
            places.leave(id_, uri)
        places.write()


def synchronize(sync: Sync, *, dry_run: bool, batch_size: int, report: SyncReport) -> None:
    """Plan and, unless it is a dry run, carry out; `report` is filled in as far as it comes."""
    plan = sync.plan()
    report.changes, report.unchanged, report.failed = plan.changes, plan.unchanged, plan.failed
    report.done, report.left_out, report.excluded = not dry_run, plan.left_out, plan.excluded
    if dry_run:
        return
    sync.carry_out(plan, batch_size)
    report.failed += sync.run.report.failed
    report.left_out += sync.run.report.left_out
    report.seconds = sync.run.report.seconds
    lost = {failure.name for failure in sync.run.report.failed}
    report.changes = [change for change in plan.changes if change.name not in lost]


def sync_summary(report: SyncReport, *, max_failures: int = 20) -> str:
    """A report in words."""
    counts = [f"{count} {what}" for what, count in sorted(report.counts.items())]
    text = ", ".join([*counts, f"{report.unchanged} unchanged", f"{len(report.failed)} failed"])
    lines = [text if report.done else f"{text}; nothing was done yet"]
    lines += left_out_lines(report.left_out, report.excluded)
    lines += [f"  {failure.name}: {failure.reason}" for failure in report.failed[:max_failures]]
    if len(report.failed) > max_failures:
        lines.append(f"  and {len(report.failed) - max_failures} more")
    return "\n".join(lines)


def by_name(values: Mapping[Any, Any] | None) -> dict[str, Any]:
    """What belongs to files, by their names within the folder."""
    return {str(name): value for name, value in (values or {}).items()}
