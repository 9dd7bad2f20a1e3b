"""What rerank="q-perturbation" does on a labelled folder, beside what it has to beat.

    python benchmarks/q_perturbation.py bench/dev-2d --queries 20

prints one row for each way to order the first `--top` hits: the search by single vectors as it is; the best
object of the re-encoded crops ("objects", the same cost); and those with the query's reading of the crops,
unmoved (alpha 0) and perturbed. Objects are the labelled boxes. mAP and R@1 in percent over the queries;
localised: share of the right hits among the first ten whose box has IoU >= 0.5 with the truth; ms: per
candidate, tokens cached ("cold": the first time, with decoding, masks and encoding).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient

from soir_qdrant import SceneObject, SoirIngestor, SoirSearcher
from soir_qdrant.images import load as load_image
from soir_qdrant.lab.evaluate.bench import Bench, BenchQuery
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.metrics import average_precision, placed, recall_at
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.q_perturbation.image_reranker import QPerturbation
from soir_qdrant.rerank.q_perturbation.reading import WINNER
from soir_qdrant.types import Hit

UNMOVED = replace(WINNER, scale=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--queries", type=int, default=None, help="only the first n")
    parser.add_argument("--out", type=Path, default=None, help="also write JSON")
    chosen = parser.parse_args()
    bench, pipeline, client = load(chosen.folder, "needle"), Pipeline(), QdrantClient(":memory:")
    SoirIngestor(client, pipeline=pipeline).add(
        (str(entry.file) for entry in bench.gallery),
        ids=range(len(bench.gallery)),
        objects=([SceneObject(item.box) for item in entry.objects] for entry in bench.gallery),
        progress=False,
    )
    searcher = SoirSearcher(client, pipeline=pipeline)
    rows: dict[str, list[tuple[float, float, list[float], float]]] = {}
    cold: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = TokenCache(folder, limit=10**11)
        ways = {
            "objects": QPerturbation(pipeline, cache=cache, weight=0.0),  # as `rerank="image"`
            "reading, alpha 0": QPerturbation(pipeline, cache=cache, weight=1.0, settings=UNMOVED),
            "reading": QPerturbation(pipeline, cache=cache, weight=1.0),
            "shipped": QPerturbation(pipeline, cache=cache),
        }
        for query in bench.queries[: chosen.queries]:
            image = load_image(query.file)
            vector = searcher.vector(str(query.file), box=query.box)
            hits = searcher.search(str(query.file), box=query.box, limit=len(bench.gallery), rerank=None)
            rows.setdefault("single vector", []).append((*judged(bench, query, hits), 0.0))
            head = hits[: chosen.top]
            start = time.perf_counter()
            for hit in head:
                ways["objects"].objects(hit)  # into the cache
            cold.append(1000 * (time.perf_counter() - start) / len(head))
            for name, way in ways.items():
                start = time.perf_counter()
                new = way.rerank(SearchQuery(vector, image, query.box), head)
                ms = 1000 * (time.perf_counter() - start) / len(head)
                rows.setdefault(name, []).append((*judged(bench, query, new + hits[chosen.top :]), ms))
    print(f"{'':18} {'mAP':>6} {'R@1':>6} {'localised':>9} {'ms':>6}")
    results = {}
    for name, found in rows.items():
        precision, first, places, ms = zip(*found, strict=True)
        flat = [place for some in places for place in some]
        results[name] = {
            "mAP": float(np.mean(precision)),
            "R@1": float(np.mean(first)),
            "localised": float(np.mean(flat)) if flat else 0.0,
            "ms_per_candidate": float(np.median(ms)),
        }
        print(
            f"{name:18} " + " ".join(f"{v:{w}}" for v, w in zip(results[name].values(), FORMATS, strict=True))
        )
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=2))


FORMATS = ("6.1f", "6.1f", "9.2f", "6.1f")


def judged(bench: Bench, query: BenchQuery, hits: list[Hit]) -> tuple[float, float, list[float]]:
    """Average precision, R@1, and for each right hit of the first ten whether its box is right."""
    wanted = set(bench.relevant(query))
    right = np.array([int(hit.id) in wanted for hit in hits])
    places = []
    for hit in (hit for hit in hits[:10] if int(hit.id) in wanted):
        truth = [o.box for o in bench.gallery[int(hit.id)].objects if o.instance == query.instance]
        places.append(float(placed(hit.box, truth)))
    return average_precision(right, len(wanted)), recall_at(right, 1), places


if __name__ == "__main__":
    main()
