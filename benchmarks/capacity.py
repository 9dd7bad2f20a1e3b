"""How much one vector holds: mAP against the objects of a picture, and against the vector's length.

    python benchmarks/capacity.py bench/test-2d

The objects of the gallery (its boxes and masks) are dealt out anew: each that a query looks for lies with
k - 1 others in a picture of its own, 200 pictures, three deals. "one vector": rerank=None; "search": ordered by
codes, scored once; "every vector": all kept. The first table changes k; the second takes eight objects and
the first numbers of all vectors alone, the third of the codes alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from soir_qdrant.config import Settings
from soir_qdrant.ingest.details import CODES
from soir_qdrant.lab.evaluate.collect import collect
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.metrics import average_precision, ranking
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import generalized_max_pool, normalize
from soir_qdrant.rerank.codes import WEIGHT, CodeReranker

PICTURES, DEALS = 200, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 6, 10, 15, 25])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 384, 512, 768, 1024])
    parser.add_argument("--codes", type=int, nargs="+", default=[32, 64, 128, 192, 256])
    parser.add_argument("--out", type=Path, default=None, help="also write JSON")
    chosen = parser.parse_args()
    bench, settings = load(chosen.folder, "needle"), Settings.for_profile()
    seen = collect(bench, settings, ("objects",), True, lambda: None)
    white = Pipeline(settings).whitening
    assert white is not None
    objects = white(np.concatenate(seen.rows))
    names = np.array([str(name) for entry in bench.gallery for name in entry.instances])
    wanted = [query.instance for query in bench.queries]
    queries = np.stack(seen.query_vectors)

    def table(head: str, values: list[int]) -> list[dict[str, float]]:
        print(f"\n{head:>8} {'one vector':>11} {'search':>7} {'every vector':>13}")
        rows = []
        for value in values:
            held = {"objects": 8, "length": objects.shape[1], "codes": CODES} | {head: value}
            v, q = normalize(objects[:, : held["length"]]), normalize(queries[:, : held["length"]])
            deals = [
                deal(v, names, q, wanted, held["objects"], held["codes"], seed, settings.vector.ridge)
                for seed in range(DEALS)
            ]
            one, search, every = np.mean(deals, 0).tolist()
            print(f"{value:8d} {one:11.1f} {search:7.1f} {every:13.1f}", flush=True)
            rows.append({head: value, "one": one, "search": search, "every": every})
        return rows

    made = {
        "clutter": table("objects", chosen.counts),
        "length": table("length", chosen.lengths),
        "codes": table("codes", chosen.codes),
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(made, indent=2))


def deal(
    objects: np.ndarray,
    names: np.ndarray,
    queries: np.ndarray,
    wanted: list[str],
    count: int,
    codes: int,
    seed: int,
    ridge: float,
) -> tuple[float, float, float]:
    """mAP of the three ways, for pictures of `count` objects."""
    rng = np.random.default_rng(seed)
    targets, others = (np.flatnonzero(np.isin(names, wanted) == it) for it in (True, False))
    first = rng.permutation(targets)[:PICTURES]
    pictures = [np.r_[one, rng.choice(others, count - 1, replace=False)] for one in first]
    vectors = np.stack([generalized_max_pool(objects[p], ridge) for p in pictures])
    plain = queries @ vectors.T
    close = normalize(queries[:, :codes]) @ normalize(objects[:, :codes]).T
    told = np.stack([close[:, p].max(1) for p in pictures], 1)
    every = np.stack([(queries @ objects[p].T).max(1) for p in pictures], 1)
    ordered = np.where(
        ranks(plain) < CodeReranker().candidates, (1 - WEIGHT) * plain + WEIGHT * told + 2, plain
    )
    relevant = np.stack([names[first] == name for name in wanted])
    some = relevant.any(1)
    return tuple(  # type: ignore[return-value]
        float(
            np.mean(
                [average_precision(r[ranking(s)]) for r, s in zip(relevant[some], scores[some], strict=True)]
            )
        )
        for scores in (plain, ordered, every)
    )


def ranks(scores: np.ndarray) -> np.ndarray:
    """The place of each score in its row, 0 for the largest."""
    return np.argsort(np.argsort(-scores, 1, kind="stable"), 1)


if __name__ == "__main__":
    main()
