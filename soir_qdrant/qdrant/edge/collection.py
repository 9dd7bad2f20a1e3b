"""One collection on Qdrant's own engine: a shard in a folder, and a file that says how it was made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from soir_qdrant.errors import CollectionError
from soir_qdrant.qdrant.edge.convert import as_edge
from soir_qdrant.qdrant.edge.queries import order_of, request_of, with_vectors

SETTINGS = "collection.json"
_SHARD = "shard"
INDEXING_THRESHOLD = 10_000  # kilobytes of vectors from which there is a graph, as on a server
UNINDEXED = 10_000  # points that wait for the graph, at least, until it is made
_SHARE = 0.5  # and as a share of those that are in it


class Settings(BaseModel):
    """How a collection was made."""

    vectors: models.VectorParams | dict[str, models.VectorParams]
    metadata: dict[str, Any] | None = None
    quantization_config: models.QuantizationConfig | None = None
    hnsw_config: models.HnswConfigDiff | None = None


class EdgeCollection:
    """An open shard. Reads and writes may come from several threads. Raises ValueError for what the engine
    refuses, OSError where it could not read or write its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._pid = folder, os.getpid()
        self.settings = Settings.model_validate_json((folder / SETTINGS).read_bytes())
        with _errors(folder):
            self._shard = edge.EdgeShard.load(str(folder / _SHARD))
            info = self._shard.info()
        self._in_graph = min(info.indexed_vectors_count, info.points_count)  # points, about

    @classmethod
    def create(cls, folder: Path, settings: Settings) -> EdgeCollection:
        """A new one. What a making that was cut short has left there is removed."""
        if folder.exists():
            shutil.rmtree(folder)
        (folder / _SHARD).mkdir(parents=True)
        vectors = settings.vectors
        config = edge.EdgeConfig(
            vectors=as_edge(vectors)
            if isinstance(vectors, models.VectorParams)
            else {name: as_edge(one) for name, one in vectors.items()},
            hnsw_config=as_edge(settings.hnsw_config or models.HnswConfigDiff()),
            quantization_config=as_edge(settings.quantization_config),
            optimizers=edge.EdgeOptimizersConfig(
                default_segment_number=1, indexing_threshold=INDEXING_THRESHOLD
            ),
        )
        with _errors(folder):
            edge.EdgeShard.create(str(folder / _SHARD), config).close()
        written = folder / f"{SETTINGS}.part"
        written.write_text(settings.model_dump_json(exclude_none=True))
        written.replace(folder / SETTINGS)  # from here on it is a collection
        return cls(folder)

    def close(self) -> None:
        if self._pid == os.getpid():
            with _errors(self.folder):
                self._shard.flush()
                self._shard.close()

    @property
    def shard(self) -> edge.EdgeShard:
        if self._pid != os.getpid():
            raise CollectionError(
                f"{self.folder} was opened before this process was forked: open an EdgeClient in each process, "
                "one at a time, or run a Qdrant server"
            )
        return self._shard

    # -- reading -------------------------------------------------------------------------------------------

    def info(self) -> models.CollectionInfo:
        with _errors(self.folder):
            info = self.shard.info()
        graph = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
        if self.settings.hnsw_config:
            graph |= self.settings.hnsw_config.model_dump(exclude_none=True)
        return models.CollectionInfo.model_validate(
            {
                "status": "green",
                "optimizer_status": "ok",
                "indexed_vectors_count": info.indexed_vectors_count,
                "points_count": info.points_count,
                "segments_count": info.segments_count,
                "payload_schema": {
                    field: {"data_type": str(index.data_type).split(".")[-1].lower(), "points": index.points}
                    for field, index in info.payload_schema.items()
                },
                "config": {
                    "params": {"vectors": self.settings.vectors},
                    "hnsw_config": graph,
                    "optimizer_config": {"default_segment_number": 1, "flush_interval_sec": 5},
                    "quantization_config": self.settings.quantization_config,
                    "metadata": self.settings.metadata,
                },
            }
        )

    def retrieve(self, ids: Sequence[Any], with_payload: Any, with_vectors: Any) -> list[models.Record]:
        with _errors(self.folder):
            records = self.shard.retrieve(list(ids), as_edge(with_payload), with_vectors)
        return [_record(record) for record in records]

    def scroll(
        self, condition: models.Filter | None, order_by: Any, with_payload: Any, **options: Any
    ) -> tuple[list[models.Record], Any]:
        request = edge.ScrollRequest(
            filter=as_edge(condition),
            order_by=order_of(order_by),
            with_payload=as_edge(with_payload),
            **options,
        )
        with _errors(self.folder):
            records, following = self.shard.scroll(request)
        return [_record(record) for record in records], _id(following)

    def count(self, condition: models.Filter | None, exact: bool) -> int:
        with _errors(self.folder):
            return self.shard.count(edge.CountRequest(exact=exact, filter=as_edge(condition)))

    def facet(self, key: str, condition: models.Filter | None, limit: int, exact: bool) -> list[Any]:
        request = edge.FacetRequest(key, limit, exact, as_edge(condition))
        with _errors(self.folder):
            return [
                models.FacetValueHit(value=hit.value, count=hit.count) for hit in self.shard.facet(request)
            ]

    def query(self, requests: Iterable[models.QueryRequest]) -> list[list[models.ScoredPoint]]:
        prepared = [request_of(self._resolved(request)) for request in requests]
        with _errors(self.folder):
            answers = self.shard.query_batch(edge.QueryBatchRequest(prepared))
        return [[_scored(point) for point in answer] for answer in answers]

    def _resolved(self, request: models.QueryRequest) -> models.QueryRequest:
        """With vectors in place of ids; the points that they are of are left out, as by a server."""
        resolved, ids = with_vectors(request, self._vector)
        if ids:
            own: Any = models.Filter(must_not=[models.HasIdCondition(has_id=ids)])
            resolved.filter = models.Filter(must=[own, request.filter]) if request.filter else own
        return resolved

    def _vector(self, id_: Any, name: str | None) -> Any:
        records = self.retrieve([id_], False, True)
        vector: Any = records[0].vector if records else None
        vector = vector.get(name or "") if isinstance(vector, dict) else vector
        if vector is None:
            raise ValueError(f"no point with id {id_} and vector {name or ''!r} was found")
        return vector

    # -- writing -------------------------------------------------------------------------------------------

    def update(self, operation: edge.UpdateOperation) -> None:
        """Write, and make the graph where many points are not in it."""
        with _errors(self.folder):
            self.shard.update(operation)
            points = self.shard.info().points_count
        if points - self._in_graph > max(UNINDEXED, _SHARE * self._in_graph):
            self.optimize()

    def optimize(self) -> None:
        """Make the graph now."""
        with _errors(self.folder):
            self.shard.optimize()
            self.shard.flush()
            self._in_graph = self.shard.info().points_count


def _record(record: edge.Record) -> models.Record:
    return models.Record(id=_id(record.id), payload=record.payload, vector=_vectors(record.vector))


def _scored(point: edge.ScoredPoint) -> models.ScoredPoint:
    return models.ScoredPoint(
        id=_id(point.id),
        version=point.version,
        score=point.score,
        payload=point.payload,
        vector=_vectors(point.vector),
        order_value=point.order_value,
    )


def _id(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else str(value)


def _vectors(value: Any) -> Any:
    return value or None


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    """The engine's errors, which are plain exceptions, as what this package knows."""
    try:
        yield
    except (ValueError, CollectionError):
        raise
    except Exception as error:
        text = str(error)
        if "WouldBlock" in text:
            raise CollectionError(
                f"{folder} is open in another process: Qdrant Edge serves one at a time. Wait until that one "
                "has ended, or run a Qdrant server and give its URL"
            ) from error
        if text.startswith("Service"):
            raise OSError(text) from error
        raise ValueError(text) from error
