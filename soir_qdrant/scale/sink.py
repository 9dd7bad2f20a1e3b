"""Rows into the collection: written once, whoever else writes the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
import ray
from qdrant_client import models
from ray.data import Datasink
from ray.data.block import BlockAccessor

from soir_qdrant.qdrant.points import Points
from soir_qdrant.qdrant.schema import CODES, OBJECTS
from soir_qdrant.scale.embed import ADDED, FAILED, SKIPPED
from soir_qdrant.scale.target import Target
from soir_qdrant.types import Failure, IngestReport


class QdrantSink(Datasink[IngestReport]):  # type: ignore[misc]
    """For `dataset.write_datasink(QdrantSink(target))`, on rows of `Embed`, as they come or out of a file of them.

    Where there is no collection, it is made once, with its fingerprint and indexes, before anything is written. Points
    go in by `insert_only`, where client and server know it: a block that is written again, after a lost actor, changes
    nothing. Requests are bounded and tried again like those of `SoirIngestor`.

    Args:
        target: the collection.
        counter: an actor whose `add` is called with the number of images of each block that was written.

    Attributes:
        report: what became of all images, once the dataset is written.
    """

    def __init__(self, target: Target, counter: Any = None) -> None:
        self.target, self.counter = target, counter
        self.report = IngestReport()

    def on_write_start(self, *_: Any, **__: Any) -> None:
        """Make the collection where there is none: rows of a file may go to another server than when they were made."""
        if not self.target.store().exists():
            self.target.ingestor().run(IngestReport(), lambda _: None, "skip").open()

    def write(self, blocks: Iterable[Any], *_: Any, **__: Any) -> IngestReport:
        """Write the points of some blocks. Returns what became of their images."""
        store, report = self.target.store(), IngestReport()
        store.open()
        points = Points(store)
        for block in blocks:
            rows = BlockAccessor.for_block(block).to_arrow().to_pylist()
            for row in rows:
                if row.get("report"):
                    _add(report, IngestReport(**json.loads(row["report"])))
            report.skipped += sum(row["outcome"] == SKIPPED for row in rows)
            report.failed += [Failure(row["name"], row["error"]) for row in rows if row["outcome"] == FAILED]
            new = list(_points((row for row in rows if row["outcome"] == ADDED), points))
            for point, refusal in points.write(new):
                report.added += refusal is None
                if refusal is not None:
                    report.failed.append(Failure(str(point.id), refusal))
            if self.counter is not None:
                with suppress(ray.exceptions.RayError):  # a lost counter must not end the run
                    ray.get(self.counter.add.remote(len(rows)))
        return report

    def on_write_complete(self, write_result: Any) -> None:
        """Add up the reports of all blocks."""
        for part in write_result.write_returns:
            _add(self.report, part)


def _add(total: IngestReport, part: IngestReport) -> None:
    """Add what became of some images to what became of others: counts, lists, seconds of each stage."""
    for field in fields(IngestReport):
        one, other = getattr(total, field.name), getattr(part, field.name)
        if isinstance(one, dict):
            setattr(
                total, field.name, {stage: one.get(stage, 0) + other.get(stage, 0) for stage in one | other}
            )
        else:
            setattr(total, field.name, one + other)


def _points(rows: Iterable[Mapping[str, Any]], points: Points) -> Iterator[models.PointStruct]:
    store = points.store
    for row in rows:
        vector: dict[str, Any] = {store.vector_name: row["vector"]}
        if store.has_objects:
            vector[OBJECTS] = row["objects"]
        if store.code_numbers:
            vector[CODES] = np.array(row["objects"])[:, : store.code_numbers].tolist()
        yield models.PointStruct(
            id=row["id"],
            vector=vector[""] if list(vector) == [""] else vector,
            payload=json.loads(row["payload"]),
        )
