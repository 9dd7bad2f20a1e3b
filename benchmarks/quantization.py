"""What quantization costs in mAP and saves in bytes, on Qdrant's own engine (pip install qdrant-edge-py).

    python benchmarks/quantization.py bench/test-2d --fill 20000

The gallery of a labelled folder (its boxes and masks) is put beside `--fill` further pictures, each pooled
from eight of the gallery's objects that no query looks for, into shards that differ in their quantization
alone: HNSW, as a server has it. mAP in percent; bytes: of the vectors that are kept in memory, per picture;
ms: of one search for ten hits, median.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from soir_qdrant.config import Settings
from soir_qdrant.lab.evaluate.collect import collect
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.metrics import average_precision
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import generalized_max_pool

OBJECTS, LISTED = 8, 1000  # objects of a further picture; hits that count for AP


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fill", type=int, default=20000, help="further pictures")
    parser.add_argument("--out", type=Path, default=None, help="also write JSON")
    chosen = parser.parse_args()
    images, queries, relevant = vectors(chosen.folder, chosen.fill)
    kinds: dict[str, Any] = {
        "none": (None, 4.0),
        "scalar (int8)": (
            edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99, always_ram=True),
            1.0,
        ),
        "turbo, 4 bits": (
            edge.TurboQuantQuantizationConfig(always_ram=True, bits=edge.TurboQuantBitSize.Bits4),
            0.5,
        ),
        "binary, 2 bits": (
            edge.BinaryQuantizationConfig(always_ram=True, encoding=edge.BinaryQuantizationEncoding.TwoBits),
            0.25,
        ),
        "binary": (edge.BinaryQuantizationConfig(always_ram=True), 0.125),
    }
    ways = {
        "no rescoring": edge.QuantizationSearchParams(rescore=False),
        "rescored": edge.QuantizationSearchParams(rescore=True, oversampling=1.0),
        "rescored, twice as many": edge.QuantizationSearchParams(rescore=True, oversampling=2.0),
    }
    rows = []
    print(f"{len(images)} pictures, {len(queries)} queries, {images.shape[1]} numbers")
    print(f"{'quantization':16} {'search':24} {'mAP':>6} {'R@1':>6} {'bytes':>6} {'ms':>7}")
    for kind, (config, size) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            shard = filled(Path(folder), images, config)
            for way, params in ({"HNSW": None} if config is None else ways).items():
                precision, first, ms = searched(shard, queries, relevant, params)
                row = (kind, way, precision, first, int(size * images.shape[1]), ms)
                print("{:16} {:24} {:6.1f} {:6.1f} {:6d} {:7.2f}".format(*row), flush=True)
                rows.append(
                    dict(zip(("quantization", "search", "mAP", "R@1", "bytes", "ms"), row, strict=True))
                )
            shard.close()
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=2))


def vectors(folder: Path, fill: int) -> tuple[np.ndarray, np.ndarray, list[set[int]]]:
    """Image vectors [n + fill, D], query vectors [Q, D], and each query's right images."""
    bench, settings = load(folder, "needle"), Settings.for_profile()
    seen = collect(bench, settings, ("objects",), True, lambda: None)
    white = Pipeline(settings).whitening
    assert white is not None
    objects = [white(rows) for rows in seen.rows]
    wanted = {query.instance for query in bench.queries}
    others = np.concatenate(
        [
            rows[[name not in wanted for name in entry.instances]]
            for rows, entry in zip(objects, bench.gallery, strict=True)
        ]
    )
    rng = np.random.default_rng(0)
    ridge = settings.vector.ridge
    images = [generalized_max_pool(rows, ridge) for rows in objects]
    images += [
        generalized_max_pool(others[rng.choice(len(others), OBJECTS, replace=False)], ridge)
        for _ in range(fill)
    ]
    relevant = [set(bench.relevant(query)) for query in bench.queries]
    return np.stack(images), np.stack(seen.query_vectors), relevant


def filled(folder: Path, images: np.ndarray, config: Any) -> edge.EdgeShard:
    """A shard with all images, indexed."""
    shard = edge.EdgeShard.create(
        str(folder),
        edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=images.shape[1], distance=edge.Distance.Cosine),
            hnsw_config=edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10),
            quantization_config=config,
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        ),
    )
    for start in range(0, len(images), 500):
        points = [edge.Point(i, images[i].tolist()) for i in range(start, min(start + 500, len(images)))]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    if shard.info().indexed_vectors_count < len(images):
        raise RuntimeError(f"only {shard.info().indexed_vectors_count} of {len(images)} vectors were indexed")
    return shard


def searched(
    shard: edge.EdgeShard, queries: np.ndarray, relevant: list[set[int]], quantization: Any
) -> tuple[float, float, float]:
    """mAP, R@1, and milliseconds of a search."""
    precision, first, spent = [], [], []
    few = edge.SearchParams(hnsw_ef=128, quantization=quantization)
    many = edge.SearchParams(
        hnsw_ef=4 * LISTED, quantization=quantization
    )  # AP sees the order, not the graph
    for query, right in zip(queries, relevant, strict=True):
        nearest = edge.Query.Nearest(query.tolist())
        begun = time.perf_counter()
        shard.search(edge.SearchRequest(query=nearest, limit=10, params=few))
        spent.append(1000 * (time.perf_counter() - begun))
        hits = shard.search(edge.SearchRequest(query=nearest, limit=LISTED, params=many))
        found = np.array([hit.id in right for hit in hits])
        precision.append(average_precision(found, len(right)))
        first.append(100.0 * bool(found[0]))
    return float(np.mean(precision)), float(np.mean(first)), float(np.median(spent))


if __name__ == "__main__":
    main()
