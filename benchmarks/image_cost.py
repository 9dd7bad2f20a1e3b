"""What an image costs, in plain passes of the same encoder: ratios in one run, on the photographs of the demo.

python benchmarks/image_cost.py --out build/image-cost.json --profile embedded --profile fast --onnx models-int8

--onnx: folders that `soir export` wrote; every profile runs on each of them too, in onnxruntime, one thread.

A plain pass is the encoder on the whole image at 518 x 518 pixels; beside it, an ordinary embedding's, 224 x 224.
Both, and every profile's way from pixels to a point, take turns batch by batch (eight images, as `SoirIngestor.add`
has them), in CPU time of all threads, so that a busy machine slows all alike. images/s is by the wall clock of this
machine as it is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from soir_qdrant import images as image_io
from soir_qdrant.components import DATA
from soir_qdrant.config import Settings
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.serving.onnx import OnnxRuntime
from soir_qdrant.types import LoadedImage

PLAIN, SMALL = 518, 224  # sides of a whole image
Batch = list[LoadedImage]
LAST = -1  # the block after which a plain pass ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/image-cost.json"), help="JSON to write")
    parser.add_argument("--profile", action="append", help="may come again  [default: embedded and fast]")
    parser.add_argument("--images", type=int, default=12, help="of those that ship")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--onnx", action="append", default=[], type=Path, help="folder of exports")
    arguments = parser.parse_args()
    result = measure(
        arguments.profile or ["embedded", "fast"], arguments.images, arguments.batch, arguments.onnx
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    width = max(map(len, result))
    print(
        f"{'':{width}} {'core-s':>8} {'plain passes':>13} {'at 224 px':>10} {'images/s':>9}  "
        "objects; plain passes by stage"
    )
    for name, row in result.items():
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in row.get("stages", {}).items())
        objects = f"{row['objects']:.1f}; {stages}" if stages else ""
        print(
            f"{name:{width}} {row['core_seconds']:8.2f} {row['plain_passes']:13.2f} {row['small_passes']:10.1f} "
            f"{row['images_per_second']:9.2f}  {objects}"
        )


def measure(profiles: list[str], count: int, size: int, folders: list[Path]) -> dict[str, dict[str, Any]]:
    """By what runs: core-seconds an image, and their ratios to the plain passes; of profiles also by stage."""
    pipelines = {name: Pipeline(Settings.for_profile(name)) for name in profiles}
    for folder in folders:
        runtime = OnnxRuntime(folder, threads=1)
        for name in profiles:
            pipelines[f"{name}, {folder.name}"] = runtime.pipeline(Settings.for_profile(name))
    encoder = pipelines[profiles[0]].encoder
    images = [image_io.load(file) for file in sorted((DATA / "demo" / "gallery").glob("*"))[:count]]
    stages: dict[str, dict[str, float]] = {name: {} for name in pipelines}
    objects = dict.fromkeys(pipelines, 0)

    def plain(batch: Batch, side: int) -> None:
        small = [cv2.resize(each.rgb, (side, side), interpolation=cv2.INTER_AREA) for each in batch]
        encoder.features(np.stack(small), [LAST])

    def whole(batch: Batch, name: str) -> None:
        pipeline = pipelines[name]
        scenes = pipeline.scenes(batch, seconds=stages[name], patches=pipeline.has_patches)
        objects[name] += sum(len(scene.objects) for scene in scenes)

    runs: dict[str, Callable[[Batch], None]] = {
        **{f"plain {side} px": partial(plain, side=side) for side in (PLAIN, SMALL)},
        **{name: partial(whole, name=name) for name in pipelines},
    }
    for run in runs.values():  # the first call of each is not counted
        run(images[:1])
    stages.update({name: {} for name in pipelines})
    objects.update(dict.fromkeys(pipelines, 0))
    wall, cpu = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    for start in range(0, len(images), size):
        for name, run in runs.items():
            begun = time.perf_counter(), time.process_time()
            run(images[start : start + size])
            wall[name] += time.perf_counter() - begun[0]
            cpu[name] += time.process_time() - begun[1]
    rows: dict[str, dict[str, Any]] = {}
    for name in runs:
        rows[name] = {
            "core_seconds": cpu[name] / len(images),
            "plain_passes": cpu[name] / cpu[f"plain {PLAIN} px"],
            "small_passes": cpu[name] / cpu[f"plain {SMALL} px"],
            "images_per_second": len(images) / wall[name],
        }
        if name in stages:
            of_plain = wall[f"plain {PLAIN} px"]
            rows[name]["stages"] = {stage: seconds / of_plain for stage, seconds in stages[name].items()}
            rows[name]["objects"] = objects[name] / len(images)
    return rows


if __name__ == "__main__":
    main()
