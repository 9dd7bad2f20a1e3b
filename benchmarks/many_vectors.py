"""A large shard on Qdrant's own engine: what it takes to write and to search, and what was predicted.

    python benchmarks/many_vectors.py --points 1000000 --scalar --out build/many.json

Random unit vectors near common centres, made as they are written, with one indexed key of payload; the graph is made
once, at the end. Times, those of processors, disk, memory; milliseconds of a search for ten hits, with and without a
filter that holds for one in ten, and the share of the ten right ones that come, by going through all vectors.
Predicted: by the model of `benchmarks/scale.py`, from its file (--parts build/scale.json).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from memory import megabytes
from qdrant_client import models
from scale import Parts

from soir_qdrant.qdrant.edge import collection as engine
from soir_qdrant.qdrant.edge.client import EdgeClient
from soir_qdrant.qdrant.schema import quantization_of

NAME, DIM, BLOCK, CENTRES, QUERIES, HITS = "images", 1024, 500, 200, 20, 10
FILTER = models.Filter(must=[models.FieldCondition(key="shop", match=models.MatchValue(value="s3"))])


def blocks(count: int) -> Iterator[tuple[int, np.ndarray]]:
    """First id and vectors of each block; the same at every call."""
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIM)).astype(np.float32)
    for first in range(0, count, BLOCK):
        rng = np.random.default_rng(1 + first)
        size = min(BLOCK, count - first)
        rows = centres[rng.integers(CENTRES, size=size)] + rng.normal(size=(size, DIM)).astype(np.float32)
        yield first, rows / np.linalg.norm(rows, axis=1, keepdims=True)


def written(client: EdgeClient, count: int, scalar: bool) -> dict[str, float]:
    """Seconds of writing and of the graph."""
    client.create_collection(
        NAME,
        models.VectorParams(
            size=DIM,
            distance=models.Distance.COSINE,
            on_disk=True,
            quantization_config=quantization_of("scalar") if scalar else None,
        ),
    )
    client.create_payload_index(NAME, "shop", "keyword")
    row = {}
    for name, step in (("write", lambda: fill(client, count)), ("graph", lambda: client.optimize(NAME))):
        start, work = time.perf_counter(), time.process_time()
        step()
        row[f"{name} s"] = round(time.perf_counter() - start, 1)
        row[f"{name} CPU s"] = round(time.process_time() - work, 1)
        print(row, flush=True)
    return row


def fill(client: EdgeClient, count: int) -> None:
    """Write all points."""
    for first, rows in blocks(count):
        points = [
            models.PointStruct.model_construct(
                id=first + i, vector=row, payload={"shop": f"s{(first + i) % 10}"}
            )
            for i, row in enumerate(rows.tolist())
        ]
        client.upsert(NAME, points)


def queries(count: int) -> np.ndarray:
    """Near some of the points."""
    rng, some = np.random.default_rng(7), []
    for first, rows in blocks(count):
        if len(some) * count <= first * QUERIES and len(some) < QUERIES:
            some.append(rows[0] + 0.02 * rng.normal(size=DIM).astype(np.float32))
    return np.stack(some)


def exact(count: int, looks: np.ndarray, every: int, offset: int) -> list[set[int]]:
    """The nearest HITS of each query among the ids offset, offset + every, ..."""
    best, ids = np.full((len(looks), HITS), -np.inf), np.zeros((len(looks), HITS), np.int64)
    for first, rows in blocks(count):
        own = np.arange(first, first + len(rows))
        chosen = own % every == offset
        scores = np.hstack([best, looks @ rows[chosen].T])
        names = np.hstack([ids, np.tile(own[chosen], (len(looks), 1))])
        order = np.argsort(-scores, axis=1)[:, :HITS]
        best, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
    return [set(row.tolist()) for row in ids]


def searched(client: EdgeClient, count: int) -> dict[str, float]:
    """Milliseconds, and the share of the right hits."""
    looks, row = queries(count), {}
    for name, condition, every, offset in (("plain", None, 1, 0), ("filtered", FILTER, 10, 3)):
        truth, spent, shares = exact(count, looks, every, offset), [], []
        for look, right in zip(looks, truth, strict=True):
            start = time.perf_counter()
            hits = client.query_points(NAME, look.tolist(), limit=HITS, query_filter=condition).points
            spent.append(1000 * (time.perf_counter() - start))
            shares.append(len(right & {int(hit.id) for hit in hits}) / HITS)
        row[f"{name} ms"] = round(float(np.median(spent)), 2)
        row[f"{name} recall"] = round(float(np.mean(shares)), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--scalar", action="store_true", help="with the preset 'scalar'")
    parser.add_argument("--parts", type=Path, help="of benchmarks/scale.py, to predict by")
    parser.add_argument("--out", type=Path, default=Path("build/many.json"))
    chosen = parser.parse_args()
    engine.UNINDEXED = 10 * chosen.points  # the graph is made once
    row: dict[str, Any] = {"points": chosen.points, "scalar": chosen.scalar}
    with tempfile.TemporaryDirectory() as folder:
        client = EdgeClient(folder)
        row |= written(client, chosen.points, chosen.scalar)
        row["disk MB"] = round(sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 1e6)
        client.close()
        before = megabytes()[0]
        client = EdgeClient(folder)
        row |= searched(client, chosen.points)
        row["anonymous MB"] = round(megabytes()[0] - before)
        client.close()
    if chosen.parts:
        parts = Parts(**json.loads(chosen.parts.read_text())["parts"])
        row["predicted ms"] = round(parts.search_ms(chosen.points), 2)
        row["predicted write and graph s"] = round(chosen.points / parts.points_per_second)
    print(row)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
