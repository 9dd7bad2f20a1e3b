"""What many images take on many workers: a model of measured parts, and how well it predicts runs that can be made.

python benchmarks/scale.py --check --out build/scale.json

Parts, measured here: core-seconds of an image (a photograph of the demo, opened and described), bytes of a point
as it is written and as its payload comes back, points a second that Qdrant's engine takes, milliseconds of a search at
two sizes. A worker is one core. Images an hour grow with the workers until Qdrant takes no more; a search grows
with the logarithm of the points of a shard. --check makes the runs: two processes at once against the one that
was measured, --actors 1 2 so many Ray actors, and writing and searching --checked-points. Images a second are an idle
machine's; seconds of processors are comparable on a busy one too. What cannot be run here (1e6 to 1e9 images, real
networks and disks) is a model's word.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from edge import measured
from folder_variants import fill

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the stand-in for a server

from soir_qdrant import images as image_io
from soir_qdrant.components import DATA
from soir_qdrant.config import Settings
from soir_qdrant.ingest.details import CODES
from soir_qdrant.qdrant.payload import Origin, build_payload
from soir_qdrant.types import LoadedImage, Scene, SceneObject

DIM, OBJECTS, PATCHES = 1024, 14, 77  # of a photograph: docs/lab/real-photographs.md
LINKS, OF_ID = 2 * 16 * 4, 40  # bytes of a point in Qdrant's graph (m = 16), and of its id
SHARD = 10_000_000  # points at most
QUERIES = 50  # whose median a search's time is
SIZES, WORKERS = (10**6, 10**8, 10**9), (1, 16, 256)


@dataclass(frozen=True, slots=True)
class Parts:
    """Measured: core_seconds of an image; wire and payload, bytes of a point; points_per_second that one shard takes,
    graph included; milliseconds of a search among `small` points and among `large`."""

    core_seconds: float
    wire: int
    payload: int
    points_per_second: float
    small: int
    small_ms: float
    large: int
    large_ms: float

    def images_per_second(self, workers: int, shards: int) -> float:
        """Of all workers together."""
        return min(workers / self.core_seconds, self.points_per_second * shards)

    def search_ms(self, points: float) -> float:
        """Of one shard: a line in the logarithm of its points."""
        slope = (self.large_ms - self.small_ms) / math.log(self.large / self.small)
        return self.small_ms + slope * math.log(points / self.small)

    def row(self, images: int, workers: int) -> dict[str, float]:
        """What is predicted. memory: of all shards, vectors as they are and as "scalar" keeps them."""
        shards = math.ceil(images / SHARD)
        rate = self.images_per_second(workers, shards)
        return {
            "images": images,
            "workers": workers,
            "shards": shards,
            "images an hour": 3600 * rate,
            "days": images / rate / 86400,
            "written GB": images * self.wire / 1e9,
            "memory GB": images * (4 * DIM + LINKS + OF_ID) / 1e9,
            "scalar GB": images * (DIM + LINKS + OF_ID) / 1e9,
            "payload GB": images * self.payload / 1e9,
            "search ms": self.search_ms(images / shards),
        }


def point_bytes() -> tuple[int, int]:
    """Of an image's point as JSON: all of it, and its payload."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(OBJECTS, DIM)).astype(np.float32)
    patches = tuple(rng.normal(size=(PATCHES, 64)).astype(np.float32) for _ in range(OBJECTS))
    objects = tuple(SceneObject((10.5, 20.25, 110.75, 220.5), score=0.5) for _ in range(OBJECTS))
    vector = rows[0] / np.linalg.norm(rows[0])
    scene = Scene(640, 480, objects, vector, rows, patches)
    image = LoadedImage(np.zeros((1, 1, 3), np.uint8), "image", "/photos/shelf-000001.jpg", "0" * 64)
    origin = Origin("0" * 16, "0" * 16, codes=CODES)
    payload = len(json.dumps(build_payload(image, scene, origin, {}, [])))
    return payload + len(json.dumps(vector.tolist())), payload


def describe(files: list[Path], profile: str) -> tuple[float, float]:
    """Seconds, and those of processors, for these images, models loaded."""
    import torch

    torch.set_num_threads(1)
    from soir_qdrant.pipeline import Pipeline

    pipeline = Pipeline(Settings.for_profile(profile))
    pipeline.scenes([image_io.load(files[-1])], patches=pipeline.has_patches)
    start, work = time.perf_counter(), time.process_time()
    for file in files:
        pipeline.scenes([image_io.load(file)], patches=pipeline.has_patches)
    return time.perf_counter() - start, time.process_time() - work


def by_processes(processes: int, files: list[Path], profile: str) -> tuple[float, float]:
    """Images a second of so many processes together, each with all files; processors' seconds an image."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        spent = [*pool.map(describe, [files] * processes, [profile] * processes)]
    work = sum(seconds for _, seconds in spent) / len(files) / processes
    return sum(len(files) / seconds for seconds, _ in spent), work


def by_actors(actors: int, folder: Path, profile: str) -> tuple[float, float]:
    """The same of Ray actors, which share the images of a folder and write points to a stand-in for a server."""
    import ray
    from actors import NotingEmbed, noted, pace
    from stand_in import StandIn

    from soir_qdrant.scale import Target, ingest

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    server, settings = StandIn(), Settings.for_profile(profile).model_dump(mode="json")
    with tempfile.TemporaryDirectory() as notes:
        embed = NotingEmbed.into(Path(notes))
        report = ingest(
            folder, Target(server.url, settings=settings), actors=actors, batch_size=2, embed=embed
        )
        batches = noted(Path(notes))
    ray.shutdown()
    server.close()
    if report.failed:
        raise SystemExit(f"{report.failed[0].name}: {report.failed[0].reason}")
    return pace(batches)


def measure(points: int, files: list[Path], profile: str) -> Parts:
    """The parts. points: of the larger of the two collections whose searches are measured."""
    wire, payload = point_bytes()
    small, large = (measured("edge", n, DIM, QUERIES) for n in (points // 5, points))
    rate = points / (large["write s"] + large["graph s"])
    searches = (points // 5, small["plain ms"], points, large["plain ms"])
    return Parts(by_processes(1, files, profile)[1], wire, payload, rate, *searches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--points", type=int, default=10_000, help="of the larger collection that is measured"
    )
    parser.add_argument("--images", type=int, default=8, help="photographs that are described")
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--check", action="store_true", help="make the runs that can be made here")
    parser.add_argument("--checked-points", type=int, nargs="+", default=[50_000], help="of those runs")
    parser.add_argument("--actors", type=int, nargs="*", default=[], help="also with so many Ray actors")
    parser.add_argument("--actor-images", type=int, default=40, help="images that they share")
    parser.add_argument("--out", type=Path, default=Path("build/scale.json"), help="JSON to write")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = fill(DATA / "demo" / "gallery", chosen.actor_images, Path(scratch) / "images")
        files = sorted(folder.iterdir())[: chosen.images]
        parts = measure(chosen.points, files, chosen.profile)
        result: dict[str, Any] = {"parts": asdict(parts)}
        print(", ".join(f"{name} {value:.4g}" for name, value in result["parts"].items()), flush=True)
        result["predicted"] = [parts.row(images, workers) for images in SIZES for workers in WORKERS]
        for row in result["predicted"]:
            print(", ".join(f"{name} {value:.3g}" for name, value in row.items()))
        if chosen.check:
            result["checked"] = {}
            for name, predicted, run in checks(parts, chosen, files, folder):
                result["checked"][name] = (predicted, run)
                print(
                    f"{name}: predicted {predicted:.3g}, measured {run:.3g} ({run / predicted:.2f})",
                    flush=True,
                )
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")


def checks(
    parts: Parts, chosen: argparse.Namespace, files: list[Path], folder: Path
) -> Iterator[tuple[str, float, float]]:
    """Name, what was predicted, and what it was. Images a second are of an idle machine; processors' seconds of any."""
    runs = {"2 processes": (2, partial(by_processes, 2, files, chosen.profile))}
    for count in chosen.actors:
        runs[f"{count} Ray actors"] = (count, partial(by_actors, count, folder, chosen.profile))
    for name, (workers, run) in runs.items():
        speed, work = run()
        yield f"images a second, {name}", parts.images_per_second(workers, 1), speed
        yield f"processors' seconds an image, {name}", parts.core_seconds, work
    for points in chosen.checked_points:
        row = measured("edge", points, DIM, QUERIES)
        yield f"search among {points} points, ms", parts.search_ms(points), row["plain ms"]
        yield f"writing {points} points, s", points / parts.points_per_second, row["write s"] + row["graph s"]


if __name__ == "__main__":
    main()
