"""What Qdrant's presets of quantization cost in mAP and save in bytes, on labelled photographs, on Qdrant's own engine.

    python benchmarks/quantization.py bench/dev-things bench/dev-chess --fill 5000 --cache build/cache

The gallery of each labelled folder is ingested by `SoirIngestor(quantization=...)` into Qdrant Edge, its queries are
searched for as users do: by the one vector (`rerank=None`) and by `search()`, both with rescoring (the default:
twice as many candidates by the vectors on disk) and without. mAP in percent. --fill further images stand beside the
gallery, each of fourteen objects of the gallery that no query looks for, with codes and patches. From 2,500 images
on the engine searches its HNSW graph; fewer it goes through one by one, in their quantized form all the same.
bytes: of the quantized vectors, as in memory, per image; ms: of one search for ten hits, median.
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
from qdrant_client import models

from soir_qdrant import SoirIngestor, SoirSearcher
from soir_qdrant.config import Settings
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.ingest.details import CODES
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.collect import RecordingPipeline, labelled
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.metrics import average_precision
from soir_qdrant.qdrant.edge import collection as engine
from soir_qdrant.qdrant.edge.client import EdgeClient
from soir_qdrant.qdrant.payload import Origin, build_payload
from soir_qdrant.types import RGB, Box, LoadedImage, QueryLook, Scene, SceneObject

NAME, OBJECTS, LISTED, WRITTEN, FIRST = "images", 14, 1000, 50, 10**6
PRESETS = ("none", "scalar", "turbo", "binary")
WAYS = {
    "rescored": None,
    "not rescored": models.SearchParams(quantization=models.QuantizationSearchParams(rescore=False)),
}


class Remembering(RecordingPipeline):
    """Encodes each query once. described: the scenes of the images that were ingested last, in order."""

    def __init__(self, settings: Settings, cache: Path) -> None:
        super().__init__(settings, (), cache=cache)
        self.described: list[Scene] = []
        self._looks: dict[tuple[Any, ...], QueryLook] = {}

    def scenes(self, images: list[LoadedImage], *arguments: Any, **options: Any) -> list[Scene]:
        scenes = super().scenes(images, *arguments, **options)
        self.described += scenes
        return scenes

    def query_look(
        self, image: RGB, *, box: Box | None = None, mask: Any = None, patches: bool = False
    ) -> QueryLook:
        key = (image.tobytes(), box, patches)
        if key not in self._looks:
            self._looks[key] = super().query_look(image, box=box, mask=mask, patches=patches)
        return self._looks[key]


def gallery(bench: Bench, pipeline: Remembering, client: EdgeClient, preset: Any, detected: bool) -> None:
    """Ingest it, point i for image i."""
    pipeline.described = []
    report = SoirIngestor(client, NAME, pipeline=pipeline, quantization=preset).add(
        [str(entry.file) for entry in bench.gallery],
        ids=range(len(bench.gallery)),
        objects=None if detected else (labelled(entry) for entry in bench.gallery),
        progress=False,
    )
    if report.failed or report.skipped:
        raise SystemExit(f"the gallery could not be ingested whole: {report.failed[:1]}")


def others(bench: Bench, scenes: list[Scene]) -> list[tuple[Any, SceneObject, Any]]:
    """Vector, object and patches of all objects that touch nothing that a query looks for."""
    wanted = {query.instance for query in bench.queries}
    rows = []
    for entry, scene in zip(bench.gallery, scenes, strict=True):
        boxes = np.array([o.box for o in entry.objects if o.instance in wanted]).reshape(-1, 4)
        own = np.array([item.box for item in scene.objects]).reshape(-1, 4)
        free = intersection_over_union(own, boxes).max(1, initial=0) < 0.1
        patches = scene.patches or [None] * len(own)
        rows += [(scene.object_vectors[k], scene.objects[k], patches[k]) for k in np.flatnonzero(free)]
    return rows


def further(count: int, known: list[Any], pipeline: Remembering) -> Iterator[models.PointStruct]:
    """Points of images of some of these objects."""
    rng, origin = np.random.default_rng(0), Origin("0" * 16, "0" * 16, codes=CODES)
    for i in range(count):
        some = [known[k] for k in rng.choice(len(known), OBJECTS, replace=False)]
        rows, objects = np.stack([row for row, _, _ in some]), tuple(item for _, item, _ in some)
        scores = np.array([item.score for item in objects], np.float32)
        vector = pipeline.pool(rows, np.zeros(OBJECTS, np.int64), scores)[0]
        scene = Scene(4000, 4000, objects, vector, rows, tuple(patches for _, _, patches in some))
        image = LoadedImage(np.zeros((1, 1, 3), np.uint8), f"{i}", f"/further/{i}.jpg", f"{i:064}")
        payload = build_payload(image, scene, origin, {}, [])
        yield models.PointStruct(id=FIRST + i, vector=vector.tolist(), payload=payload)


def searched(searcher: SoirSearcher, bench: Bench, params: Any, total: int) -> dict[str, float]:
    """mAP and first hits of both searches, and milliseconds of the plain one."""
    precision: dict[str, list[float]] = {"one": [], "search": []}
    spent, first = [], []
    for query in bench.queries:
        file = str(query.file)
        options: dict[str, Any] = {"box": query.box, "search_params": params}
        vector = searcher.vector(file, box=query.box)
        request = searcher.store.request(vector, limit=total, params=params)
        request.with_payload = False
        plain = [point.id for point in searcher.store.query([request])[0]]
        ordered = [hit.id for hit in searcher.search(file, limit=min(100, total), **options)]
        right = bench.relevant(query)
        for name, ids in (("one", plain), ("search", ordered + [i for i in plain if i not in {*ordered}])):
            precision[name].append(average_precision(np.isin(ids, right), len(right)))
        first.append(ordered[0] in right)
        start = time.perf_counter()
        searcher.search(vector, limit=10, rerank=None, search_params=params)
        spent.append(1000 * (time.perf_counter() - start))
    means = {name: round(float(np.mean(values)), 1) for name, values in precision.items()}
    return means | {"first": round(100 * float(np.mean(first))), "ms": round(float(np.median(spent)), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="labelled folders")
    parser.add_argument("--objects", choices=["given", "detected"], default="detected")
    parser.add_argument("--presets", choices=PRESETS, nargs="+", default=PRESETS)
    parser.add_argument("--fill", type=int, default=0, help="further images")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/cache"), help="of what is ingested of an image"
    )
    parser.add_argument("--out", type=Path, default=Path("build/quantization.json"))
    chosen = parser.parse_args()
    engine.INDEXING_THRESHOLD = 1  # kilobytes: vectors are quantized, however few there are
    rows = []
    for folder in chosen.folders:
        bench = load(folder)
        pipeline = Remembering(Settings.for_profile(), chosen.cache)
        for preset in chosen.presets:
            rows += compared(bench, pipeline, preset, chosen.fill, chosen.objects == "detected")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=2))


def compared(
    bench: Bench, pipeline: Remembering, preset: str, fill: int, detected: bool
) -> list[dict[str, Any]]:
    """A row per way to search a collection of this preset."""
    total, rows = min(len(bench.gallery) + fill, LISTED), []
    with tempfile.TemporaryDirectory() as place:
        client = EdgeClient(place)
        gallery(bench, pipeline, client, None if preset == "none" else preset, detected)
        points = list(further(fill, others(bench, pipeline.described), pipeline)) if fill else []
        for start in range(0, fill, WRITTEN):
            client.upsert(NAME, points[start : start + WRITTEN])
        client.optimize(NAME)
        size = sum(f.stat().st_size for f in Path(place).rglob("quantized.data"))
        count = client.count(NAME).count
        searcher = SoirSearcher(client, NAME, pipeline=pipeline)
        for way, params in WAYS.items():
            if preset == "none" and params is not None:
                continue
            row = {"folder": bench.root.name, "quantization": preset, "way": way, "images": count}
            row |= searched(searcher, bench, params, total) | {
                "bytes": round(size / count) or 4 * pipeline.dim
            }
            print(row, flush=True)
            rows.append(row)
        client.close()
    return rows


if __name__ == "__main__":
    main()
