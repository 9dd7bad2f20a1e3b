"""Images to rows: an actor with a pipeline of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import RawImage, ReadOptions, read
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.ingest.reading import decode_all, within_budget
from soir_qdrant.ingest.run import Run
from soir_qdrant.ingest.sources import Item
from soir_qdrant.qdrant.identity import KEY, PointId, as_payload, places_of, point_id_of, with_places
from soir_qdrant.qdrant.points import Points
from soir_qdrant.qdrant.schema import OBJECTS
from soir_qdrant.scale.target import Target
from soir_qdrant.types import IngestReport, SceneObject

if TYPE_CHECKING:
    import pyarrow as pa

ADDED, SKIPPED, FAILED = "added", "skipped", "failed"  # what a row says in `outcome`


class Embed:
    """For `dataset.map_batches(Embed, fn_constructor_args=(target,), batch_format="pyarrow", ...)`.

    A batch has a column `uri` (a path or an address) or `bytes` (of a file; `uri` then is only
    stored), and may have `payload` (JSON, the user's) and `objects` (JSON: a list of `{"box", "label"?,
    "score"?}`; else they are detected).

    Args:
        target: the collection, which is made if need be, and the pipeline.
        threads: of the models in this actor.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)
        if not target.triton and not target.onnx:
            import torch

            torch.set_num_threads(threads)
        self._ingestor = self.ingestor(target)

    def ingestor(self, target: Target) -> SoirIngestor:
        """What reads, asks and describes: to be overridden for a pipeline of one's own."""
        return target.ingestor()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row per image that was described or failed, or that the collection has already.

        Returns:
            Columns `outcome` (added, skipped, failed), `name`, `error`, `id`, `vector` (float32 [D]), `objects`
            (float32 [k, D], their vectors) and `payload` (JSON, as it is stored). The first row has in `report`
            (JSON) what else `IngestReport` says of the batch.
        """
        report = IngestReport()
        run = self._ingestor.run(report, lambda _: None, "skip")
        points = CollectedPoints(run.points.store)
        run.write_to(points)
        run.open()
        reading = self._ingestor.reading
        start = time.perf_counter()
        items = [_item(row, reading) for row in batch.to_pylist()]
        run.count("load", time.perf_counter() - start)
        for part in within_budget(run.fresh(_readable(items, run)), reading):
            decoded, seconds = decode_all(part, reading)
            run.count("load", seconds)
            for item in decoded:
                if item.reason is not None:
                    run.fail(item, item.reason)
            run.process([item for item in decoded if item.reason is None])
        run.book()
        run.settle()
        run.writer.close()
        for point in points.collected:  # that are not there yet
            soir = (point.payload or {})[KEY]
            soir |= as_payload(with_places(run.places.met.pop(point_id_of(point), ()), places_of(soir)))
        run.places.write(run.lost)
        return _table(points.collected, report)


class CollectedPoints(Points):
    """Points that are kept for a sink, not written."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.collected: list[models.PointStruct] = []

    def point(self, id_: PointId, scene: Any, payload: dict[str, Any]) -> models.PointStruct:
        """With the vectors of the objects, whatever the collection keeps of them: the sink knows."""
        super().point(id_, scene, payload)
        vector = {"": scene.vector.tolist(), OBJECTS: scene.object_vectors.tolist()}
        return models.PointStruct(id=id_, vector=vector, payload=payload)

    def write(
        self, points: Sequence[models.PointStruct], existing: Mapping[PointId, Any] | None = None
    ) -> Iterator[tuple[models.PointStruct, str | None]]:
        """Keep them."""
        del existing
        self.collected += points
        yield from ((point, None) for point in points)


def _item(row: Mapping[str, Any], reading: ReadOptions) -> Item:
    """An image that has been read, or failed to be."""
    uri, data = row.get("uri"), row.get("bytes")
    item = Item(str(uri or "image bytes"), None)
    try:
        item.payload = json.loads(row["payload"]) if row.get("payload") else None
        if row.get("objects") is not None:
            item.objects = [
                SceneObject(tuple(each["box"]), label=each.get("label"), score=each.get("score", 1.0))
                for each in json.loads(row["objects"])
            ]
        if data is None:
            item.raw = read(item.name, options=reading)
        else:
            item.raw = RawImage(item.name, uri, hashlib.sha256(data).hexdigest(), data)
    except ConfigError:  # such as a missing package: it holds for all of them
        raise
    except ImageError as error:
        item.reason = str(error)
    except Exception as error:  # whatever a storage says of one file must not stop the others
        item.reason = f"{item.name}: {type(error).__name__}: {error}"
    return item


def _readable(items: list[Item], run: Run) -> list[Item]:
    for item in items:
        if item.reason is not None:
            run.fail(item, item.reason)
    return [item for item in items if item.reason is None]


def schema() -> pa.Schema:
    """Of the rows."""
    import pyarrow as pa

    numbers = pa.list_(pa.float32())
    texts = ("outcome", "name", "error", "id", "payload", "report")
    fields = [pa.field(name, pa.string()) for name in texts]
    return pa.schema([*fields, pa.field("vector", numbers), pa.field("objects", pa.list_(numbers))])


def _table(points: Sequence[models.PointStruct], report: IngestReport) -> pa.Table:
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for point in points:
        vector: Any = point.vector
        payload = json.dumps(point.payload)
        name = (point.payload or {})["soir"]["uri"]
        kinds = {"vector": vector[""], "objects": vector[OBJECTS]}
        rows.append({"outcome": ADDED, "name": name, "id": str(point.id), "payload": payload, **kinds})
    rows += [{"outcome": FAILED, "name": each.name, "error": each.reason} for each in report.failed]
    rows += [{"outcome": SKIPPED} for _ in range(report.skipped)]
    rest = replace(report, added=0, skipped=0, failed=[])  # what the rows do not say
    for row in rows[:1]:
        row["report"] = json.dumps(asdict(rest))
    return pa.Table.from_pylist(rows, schema=schema())
