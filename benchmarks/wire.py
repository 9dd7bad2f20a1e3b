"""Bytes between a worker and Triton for an image: whole scenes, the models one by one, and the way of version 0.1.

python benchmarks/wire.py PHOTOS --models build/models-wire
python benchmarks/wire.py PHOTOS --models build/models-wire --triton --count 1

The models run here, through onnxruntime: what is counted is the inputs and outputs of their requests, which are the
same for Triton. Of version 0.1, which had the trunk's tokens sent to heads at the worker, and whole masks to the
encoder, the bytes follow from the shapes and the number of objects. --triton starts the server of the tests, has it
describe the images, both ways, and compares bytes and points with those of torch here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tritonserver import Triton

from soir_qdrant.config import Settings
from soir_qdrant.images import folder_images, load
from soir_qdrant.models.token_grid import AREA, places
from soir_qdrant.models.tokens import gridded
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.serving.export import export
from soir_qdrant.serving.onnx import OnnxRuntime, OnnxSession
from soir_qdrant.serving.runtime import Runtime
from soir_qdrant.serving.scene import OF_PATCHES, ScenePipeline, encoded, packed
from soir_qdrant.serving.triton import TritonRuntime
from soir_qdrant.types import RGB, LoadedImage, Scene

SIDE, PATCH, DIM, LAYERS = 224, 14, 384, 4  # of the embedded profile


class Counted(OnnxSession):
    """Adds up the bytes of inputs and outputs; of patches by themselves."""

    total = patches = 0

    def run(self, inputs: Any, outputs: Any) -> Any:
        arrays = super().run(inputs, outputs)
        rows = arrays["rows"].nbytes if "rows" in arrays else 0
        Counted.patches += rows
        Counted.total += sum(a.nbytes for side in (inputs, arrays) for a in side.values()) - rows
        return arrays


class CountedRuntime(OnnxRuntime):
    def session(self, name: str) -> OnnxSession:
        if name not in self._sessions:
            self._sessions[name] = Counted(self.folder / name / "1" / "model.onnx")
        return self._sessions[name]


def before(rgb: RGB, objects: int) -> int:
    """Of version 0.1: tiles there and their tokens back; of each object crop, mask and patches there, descriptor
    and layers back."""
    _, (width, height) = gridded(rgb, PATCH, AREA)
    tokens = places(height).size * places(width).size
    crop = SIDE**2 * (3 + 4) + (SIDE // PATCH) ** 2 * 8 + (1 + LAYERS) * DIM * 4
    return tokens * (PATCH**2 * 3 + DIM * 4) + objects * crop


def served(settings: Settings, models: Path, images: list[LoadedImage]) -> None:
    """Prints what Triton takes and gives, and how far its points are from those of torch."""
    here = Pipeline(settings)
    with tempfile.TemporaryDirectory() as scratch:
        server = Triton(models, Path(scratch) / "log").start()
        try:
            runtime = TritonRuntime(server.url, timeout=600)
            ways = {
                "soir_scene": runtime.pipeline(settings),
                "one by one": Runtime.pipeline(runtime, settings),
            }
            assert isinstance(ways["soir_scene"], ScenePipeline)
            for image in images:
                (expected,) = here.scenes([image], patches=True)
                for name, pipeline in ways.items():
                    print(f"{image.name}, {len(expected.objects)} objects, {name}: recipe "
                          f"{'the same' if pipeline.recipe == here.recipe else 'ANOTHER'}, fingerprint "
                          f"{'the same' if pipeline.fingerprint == here.fingerprint else 'ANOTHER'}")  # fmt: skip
                    for patches in (False, True):
                        start = runtime.connection.sent, runtime.connection.received
                        (scene,) = pipeline.scenes([image], patches=patches)
                        sent, received = (
                            runtime.connection.sent - start[0],
                            runtime.connection.received - start[1],
                        )
                        print(
                            f"  {'with' if patches else 'without'} patches: {sent:,} bytes there, {received:,} back"
                        )
                    print(
                        f"  cosine with torch {float(scene.vector @ expected.vector):.7f}, {alike(scene, expected)}"
                    )
            runtime.close()
        finally:
            server.kill()


def alike(scene: Scene, expected: Scene) -> str:
    """How many signs of patches are the same, of objects whose masks have as many."""
    pairs = [
        (one > 0) == (two > 0)
        for one, two in zip(scene.patches or (), expected.patches or (), strict=True)
        if one.shape == two.shape
    ]
    share = float(np.concatenate(pairs).mean())
    return f"{share:.2%} of the signs of patches the same ({len(pairs)} of {len(expected.objects)} objects)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--models", type=Path, default=Path("build/models-wire"))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/wire.json"))
    parser.add_argument("--triton", action="store_true", help="compare with a server that is started here")
    options = parser.parse_args()
    settings = Settings.for_profile().but(encoder={"dtype": "float32", "device": "cpu"})
    if not (options.models / "soir_detector" / "1" / "model.onnx").is_file():
        export(settings, options.models, scene=True, progress=print)
    images = [load(path) for _, path in [*folder_images(options.photos)][: options.count]]
    if options.triton:
        served(settings, options.models, images)
    else:
        counted(settings, options.models, images, options.out)


def counted(settings: Settings, models: Path, images: list[LoadedImage], out: Path) -> None:
    """Prints the bytes of each way, of each image and in the mean, and writes the means."""
    pipeline = CountedRuntime(models).pipeline(settings)
    rows = []
    for image in images:
        Counted.total = Counted.patches = 0
        (scene,) = pipeline.scenes([image], patches=True)
        answer = packed(scene)
        bits = sum(answer.pop(name).nbytes for name in OF_PATCHES)
        whole = encoded(image).nbytes + sum(array.nbytes for array in answer.values())
        count = len(scene.objects)
        rows.append((count, before(image.rgb, count), Counted.total, Counted.patches, whole, bits))
        print(f"{image.name}: {count} objects; MB: {' '.join(f'{n / 1e6:.3f}' for n in rows[-1][1:])}")
    names = ("objects", "0.1", "one by one", "its patches", "scene", "patches of the scene")
    result = {"images": len(rows), **dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))}
    sizes = ", ".join(f"{name} {result[name] / 1e6:.3f} MB" for name in names[1:])
    print(f"mean of {len(rows)} images with {result['objects']:.1f} objects: {sizes}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
