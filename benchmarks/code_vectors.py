"""Hits ordered by codes: in Qdrant's own engine against at the client, by payloads (qdrant-edge-py).

python benchmarks/code_vectors.py --points 10000 100000

Synthetic images of 40 objects (the mean of real photographs) in 1,024 numbers, codes of 512 in the payload and of 256
in Qdrant, one shard with HNSW. Bytes are those of requests and answers as JSON, as over HTTP; ms the median of a search
with its parsing, without the encoding of the query: of as many candidates as each way takes (300 at the client, 1,000
in Qdrant), and of 300 both. Same: how many of the ten hits are those of the other way, of 300 candidates without the
graph, whose approximation differs from shard to shard and finds little among random vectors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from soir_qdrant.ingest.details import CODES, SHORT_CODES
from soir_qdrant.qdrant.codes import encode
from soir_qdrant.qdrant.collection import DIGITS
from soir_qdrant.qdrant.payload import code_cosines
from soir_qdrant.qdrant.schema import CODE_NUMBERS
from soir_qdrant.rerank.codes import CANDIDATES, IN_QDRANT, WEIGHT

DIM, OBJECTS, QUERIES, HITS = 1024, 40, 30, 10
KINDS = ("payload", "scalar", "binary")


def images(count: int) -> Any:
    """Unit rows: objects [OBJECTS, DIM] of one image after the other, whose first numbers weigh the most."""
    rng = np.random.default_rng(0)
    scale = np.linspace(1, 0.2, DIM, dtype=np.float32)
    for _ in range(count):
        rows = rng.normal(size=(OBJECTS, DIM)).astype(np.float32) * scale
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def payload(rows: Any, i: int, numbers: int) -> dict[str, Any]:
    objects = [
        {"box": [10.5, 20.25, 310.5, 270.75], "score": 0.8123, "area": 0.012345, "code": encode(row, numbers)}
        for row in rows
    ]
    uri = f"/images/folder/{i:09}.jpg"
    about = {"uri": uri, "uris": [uri], "files": [[123456, 1700000000000000000]], "payloads": []}
    more = {"width": 1024, "height": 768, "sha256": "0" * 64, "pixels": "0" * 16, "encoder": "0" * 16}
    return {"soir": {**about, **more, "recipe": "0" * 16, "objects": objects, "labels": [], "count": OBJECTS}}


def shard_of(folder: Path, count: int, kind: str) -> edge.EdgeShard:
    """kind: "payload", or how codes are quantized."""
    forms = {
        "scalar": edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99, always_ram=True),
        "binary": edge.BinaryQuantizationConfig(always_ram=True),
    }
    hnsw = edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10)
    vectors = {"": edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine, hnsw_config=hnsw)}
    if kind != "payload":
        vectors["codes"] = edge.EdgeVectorParams(
            size=CODE_NUMBERS,
            distance=edge.Distance.Cosine,
            on_disk=True,
            datatype=edge.VectorStorageDatatype.Float16,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10),
            quantization_config=forms[kind],
        )
    optimizers = edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1)
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=vectors, optimizers=optimizers))
    points = []
    for i, rows in enumerate(images(count)):
        mean = rows.mean(0)
        vector: dict[str, Any] = {"": (mean / np.linalg.norm(mean)).tolist()}
        if kind != "payload":
            vector["codes"] = rows[:, :CODE_NUMBERS].tolist()
        points.append(edge.Point(i, vector, payload(rows, i, CODES if kind == "payload" else SHORT_CODES)))
        if len(points) == 250 or i == count - 1:
            shard.update(edge.UpdateOperation.upsert_points(points))
            points = []
    shard.flush()
    shard.optimize()
    return shard


def at_the_client(shard: edge.EdgeShard, query: Any, *, exact: bool = False) -> tuple[list[int], int]:
    """Ids of the hits, and bytes. exact: without the graph."""
    numbers = [round(x, DIGITS) for x in query.tolist()]
    request = edge.QueryRequest(
        limit=CANDIDATES,
        query=edge.Query.Nearest(numbers),
        params=edge.SearchParams(exact=exact),
        with_payload=True,
        with_vector=False,
    )
    answer = json.dumps([{"id": p.id, "score": p.score, "payload": p.payload} for p in shard.query(request)])
    hits = []
    for point in json.loads(answer):
        cosines = code_cosines(point["payload"], query)
        assert cosines is not None
        hits.append(((1 - WEIGHT) * point["score"] + WEIGHT * float(cosines.max()), point["id"]))
    return [i for _, i in sorted(hits, reverse=True)[:HITS]], len(answer) + len(json.dumps(numbers))


def in_qdrant(
    shard: edge.EdgeShard, query: Any, *, candidates: int = IN_QDRANT, exact: bool = False
) -> tuple[list[int], int]:
    numbers = [round(x, DIGITS) for x in query.tolist()]
    nearest = edge.Prefetch(
        limit=candidates, query=edge.Query.Nearest(numbers), params=edge.SearchParams(exact=exact)
    )
    codes = edge.Prefetch(
        limit=candidates,
        query=edge.Query.Nearest([numbers[:CODE_NUMBERS]], using="codes"),
        prefetches=[nearest],
        params=edge.SearchParams(quantization=edge.QuantizationSearchParams(rescore=False)),
    )
    parts = [
        edge.Expression.Mult([edge.Expression.Constant(share), edge.Expression.Variable(name)])
        for share, name in ((1 - WEIGHT, "$score[0]"), (WEIGHT, "$score[1]"))
    ]
    formula = edge.Formula(edge.Expression.Sum(parts), {"$score[0]": 0.0, "$score[1]": 0.0})
    request = edge.QueryRequest(
        limit=HITS, query=formula, prefetches=[nearest, codes], with_payload=True, with_vector=False
    )
    answer = json.dumps([{"id": p.id, "score": p.score, "payload": p.payload} for p in shard.query(request)])
    sent = 2 * len(json.dumps(numbers)) + len(json.dumps(numbers[:CODE_NUMBERS]))
    return [point["id"] for point in json.loads(answer)], len(answer) + sent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[10_000])
    parser.add_argument("--codes", nargs="+", choices=KINDS, default=KINDS, help='"payload": at the client')
    parser.add_argument("--out", type=Path, default=Path("build/code-vectors.json"))
    options = parser.parse_args()
    results = []
    for count in options.points:
        rng = np.random.default_rng(1)
        some = [rows for i, rows in enumerate(images(count)) if i % max(count // QUERIES, 1) == 0][:QUERIES]
        looks = [rows[0] + 0.03 * rng.normal(size=DIM).astype(np.float32) for rows in some]
        queries = [row / np.linalg.norm(row) for row in looks]
        first: list[list[int]] = []
        for kind in options.codes:
            way = at_the_client if kind == "payload" else in_qdrant
            fewer = at_the_client if kind == "payload" else partial(in_qdrant, candidates=CANDIDATES)
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                shard = shard_of(Path(folder), count, kind)
                filled = time.perf_counter() - begun
                spent, of_fewer, sizes = [], [], []
                for query in queries:
                    begun = time.perf_counter()
                    _, size = way(shard, query)
                    spent.append(1000 * (time.perf_counter() - begun))
                    begun = time.perf_counter()
                    fewer(shard, query)
                    of_fewer.append(1000 * (time.perf_counter() - begun))
                    sizes.append(size)
                hits = [fewer(shard, query, exact=True)[0] for query in queries]
                shard.close()
            first = first or hits
            same = np.mean([len({*a} & {*b}) for a, b in zip(first, hits, strict=True)])
            row = {"points": count, "codes": kind, "bytes": int(np.median(sizes)), "same": float(same)}
            row |= {"ms": round(float(np.median(spent)), 2), "filled_s": round(filled, 1)}
            row["ms_of_as_many"] = round(float(np.median(of_fewer)), 2)
            results.append(row)
            print(row, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
