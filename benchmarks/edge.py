"""What a collection on a device takes: Qdrant Edge beside local mode, each in a process of its own.

    python benchmarks/edge.py --points 100000 --out build/edge.json

A row that the file of --out has already is not measured again. The last line is local mode as a multiple of Edge.
Random unit vectors near common centres, payloads as of images of eight objects, without codes. Local mode is in
memory: in a folder it commits every point, and takes minutes a thousand. Columns: seconds to write (with the
graph made on the way), to put the rest into the graph and to open the folder again; bytes on disk; milliseconds
of a search for ten hits, plain and with a filter that holds for one in ten, and those of processors that worked on
it, medians; recall at ten against brute force; memory of the process for all that, without the
pages of files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import megabytes
from qdrant_client import QdrantClient, models

from soir_qdrant.qdrant.edge.client import EdgeClient

NAME = "images"
FILTER = models.Filter(must=[models.FieldCondition(key="shop", match=models.MatchValue(value="s3"))])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--store", choices=["edge", "local"], help="measure this one in this process")
    parser.add_argument("--out", type=Path, help="also write JSON, and go on from what it holds")
    chosen = parser.parse_args()
    if chosen.store:
        print(json.dumps(measured(chosen.store, chosen.points, chosen.dim, chosen.queries)))
        return
    rows = json.loads(chosen.out.read_text()) if chosen.out and chosen.out.is_file() else []
    compared: list[dict[str, Any]] = []
    for store in ("edge", "local"):
        wanted = {"store": store, "points": chosen.points, "dim": chosen.dim}
        if before := [row for row in rows if wanted.items() <= row.items()]:
            print(before[0])
            compared.append(before[0])
            continue
        options = {
            "--store": store,
            "--points": chosen.points,
            "--dim": chosen.dim,
            "--queries": chosen.queries,
        }
        command = [sys.executable, __file__, *(str(word) for pair in options.items() for word in pair)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        compared.append(rows[-1])
        print(rows[-1], flush=True)
        if chosen.out:
            chosen.out.parent.mkdir(parents=True, exist_ok=True)
            chosen.out.write_text(json.dumps(rows, indent=2))
    print("local mode : Edge", ratios(*compared))


def ratios(edge: dict[str, Any], local: dict[str, Any]) -> dict[str, float]:
    """Local mode as a multiple of Edge."""
    names = ("write s", "plain ms", "plain CPU ms", "filtered ms", "filtered CPU ms", "RSS MB")
    return {name: round(local[name] / max(edge[name], 0.1), 1) for name in names}


def measured(store: str, count: int, dim: int, queries: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, dim)).astype(np.float32)
    vectors = centres[rng.integers(200, size=count)]
    vectors += rng.normal(size=vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    row: dict[str, Any] = {"store": store, "points": count, "dim": dim}
    with tempfile.TemporaryDirectory() as folder:
        before = megabytes()[0]
        client: Any = EdgeClient(folder) if store == "edge" else QdrantClient(":memory:")
        client.create_collection(NAME, models.VectorParams(size=dim, distance=models.Distance.COSINE))
        if store == "edge":
            client.create_payload_index(NAME, "shop", "keyword")
        start = time.perf_counter()
        for first in range(0, count, 64):
            some = vectors[first : first + 64]
            client.upsert(NAME, [point(first + i, vector) for i, vector in enumerate(some)])
        row["write s"] = seconds(start)
        if store == "edge":
            start = time.perf_counter()
            client.optimize(NAME)
            row["graph s"] = seconds(start)
            client.close()
            row["disk MB"] = round(
                sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 1e6
            )
            start, before = time.perf_counter(), megabytes()[0]
            client = EdgeClient(folder)
            client.count(NAME)
            row["open s"] = seconds(start)
        row |= searched(client, vectors, rng, queries)
        row["RSS MB"] = round(megabytes()[0] - before)
        client.close()
    return row


def searched(client: Any, vectors: np.ndarray, rng: np.random.Generator, queries: int) -> dict[str, Any]:
    """Milliseconds and recall."""
    row: dict[str, Any] = {}
    for name, condition in (("plain", None), ("filtered", FILTER)):
        spent, worked, right = [], [], []
        pool = np.arange(len(vectors)) if condition is None else np.arange(3, len(vectors), 10)
        for _ in range(queries):
            query = vectors[rng.integers(len(vectors))] + 0.02 * rng.normal(size=vectors.shape[1]).astype(
                np.float32
            )
            start, work = time.perf_counter(), time.process_time()
            hits = client.query_points(NAME, query.tolist(), limit=10, query_filter=condition).points
            spent.append(1000 * (time.perf_counter() - start))
            worked.append(1000 * (time.process_time() - work))
            best = pool[np.argsort(-(vectors[pool] @ query))[:10]]
            right.append(len({hit.id for hit in hits} & set(best.tolist())) / 10)
        row[f"{name} ms"] = round(float(np.median(spent)), 1)
        row[f"{name} CPU ms"] = round(float(np.median(worked)), 1)
        row[f"{name} recall"] = round(float(np.mean(right)), 3)
    return row


def point(i: int, vector: np.ndarray) -> models.PointStruct:
    objects = [{"box": [10.0 * k, 5.0, 10.0 * k + 9, 30.0], "score": 0.5, "area": 0.01} for k in range(8)]
    soir = {"uri": f"/photos/{i}.jpg", "width": 640, "height": 480, "objects": objects, "count": 8}
    return models.PointStruct(id=i, vector=vector.tolist(), payload={"soir": soir, "shop": f"s{i % 10}"})


def seconds(start: float) -> float:
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
