"""What SoirSearcher adds to the bare call of the client, on the embedded engine.

    python benchmarks/search.py --points 100000

Random unit vectors and payloads as the ingestor writes them; the query is a vector, so that nothing is
encoded. Prints medians in ms and their ratio to `client.query_points` for ten hits, asked in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from clock import clock
from qdrant_client import QdrantClient, models

from soir_qdrant import SoirSearcher
from soir_qdrant.ingest.details import CODES
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.identity import Place
from soir_qdrant.qdrant.payload import Origin, build_payload
from soir_qdrant.rerank.codes import CANDIDATES
from soir_qdrant.types import LoadedImage, Scene, SceneObject

DIM, OBJECTS, LIMIT = 1024, 40, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("build/bench-search.json"))
    chosen = parser.parse_args()
    client = QdrantClient(":memory:")
    fill(client, chosen.points)
    searcher = SoirSearcher(client)
    rng = np.random.default_rng(1)

    def query() -> np.ndarray:
        return unit(rng, DIM)

    def bare(limit: int) -> Callable[[], object]:
        return lambda: client.query_points("images", query=query().tolist(), limit=limit)

    spent = clock(
        {
            "bare": bare(LIMIT),
            "bare_300": bare(CANDIDATES),
            "plain": lambda: searcher.search(query(), rerank=None, limit=LIMIT),
            "codes": lambda: searcher.search(query(), limit=LIMIT),
        },
        chosen.rounds,
    )
    result = {f"{name}_ms": round(1000 * seconds, 2) for name, seconds in spent.items()}
    result |= {
        f"{name}_ratio": round(spent[name] / spent["bare"], 3) for name in ("plain", "codes", "bare_300")
    }
    print(f"{chosen.points} points of {DIM} numbers, {OBJECTS} objects each, {LIMIT} hits")
    for name, value in result.items():
        print(f"{name:16} {value}")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"search": result}, indent=2) + "\n")


def fill(client: QdrantClient, points: int) -> None:
    store, rng = Store(client, "images"), np.random.default_rng(0)
    store.create(DIM, {"made": "up"})
    boxes = [(40.0 * i, 30.0, 40.0 * i + 35, 70.0) for i in range(OBJECTS)]
    items = tuple(SceneObject(box) for box in boxes)
    pixel = np.zeros((1, 1, 3), np.uint8)
    for start in range(0, points, 1000):
        made = []
        for i in range(start, min(start + 1000, points)):
            scene = Scene(1024, 768, items, unit(rng, DIM), unit(rng, OBJECTS, CODES))
            image = LoadedImage(pixel, "made up", f"/pictures/{i}.jpg", f"{i:064x}")
            origin, places = Origin("made up", "made up", codes=CODES), [Place(f"/pictures/{i}.jpg")]
            payload = build_payload(image, scene, origin, {}, places)
            made.append(models.PointStruct(id=i, vector=scene.vector.tolist(), payload=payload))
        client.upsert("images", made)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
