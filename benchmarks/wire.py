"""Bytes between a worker and Triton for an image: whole scenes, the models one by one, and the way of version 0.1.

python benchmarks/wire.py PHOTOS --models build/models-wire

The models run here, through onnxruntime: what is counted is the inputs and outputs of their requests, which are the
same for Triton. Of version 0.1, which had the trunk's tokens sent to heads at the worker, and whole masks to the
encoder, the bytes follow from the shapes and the number of objects.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from soir_qdrant.config import Settings
from soir_qdrant.images import folder_images, load
from soir_qdrant.models.token_grid import AREA, places
from soir_qdrant.models.tokens import gridded
from soir_qdrant.serving.export import export
from soir_qdrant.serving.onnx import OnnxRuntime, OnnxSession
from soir_qdrant.serving.scene import encoded, packed
from soir_qdrant.types import RGB

SIDE, PATCH, DIM, LAYERS = 224, 14, 384, 4  # of the embedded profile


class Counted(OnnxSession):
    """Adds up the bytes of inputs and outputs."""

    total = 0

    def run(self, inputs: Any, outputs: Any) -> Any:
        arrays = super().run(inputs, outputs)
        Counted.total += sum(a.nbytes for side in (inputs, arrays) for a in side.values())
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--models", type=Path, default=Path("build/models-wire"))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/wire.json"))
    options = parser.parse_args()
    settings = Settings.for_profile().but(encoder={"dtype": "float32", "device": "cpu"})
    if not (options.models / "soir_detector" / "1" / "model.onnx").is_file():
        export(settings, options.models, progress=print)
    pipeline = CountedRuntime(options.models).pipeline(settings)
    rows = []
    for _, path in [*folder_images(options.photos)][: options.count]:
        image, Counted.total = load(path), 0
        (scene,) = pipeline.scenes([image])
        whole = encoded(image).nbytes + sum(array.nbytes for array in packed(scene).values())
        rows.append((len(scene.objects), before(image.rgb, len(scene.objects)), Counted.total, whole))
        print(f"{path.name}: {rows[-1][0]} objects; MB: {' '.join(f'{n / 1e6:.2f}' for n in rows[-1][1:])}")
    objects, old, single, whole = np.mean(rows, axis=0)
    result = {"images": len(rows), "objects": objects, "0.1": old, "one by one": single, "scene": whole}
    print(
        f"mean of {len(rows)} images, {objects:.1f} objects: 0.1 {old / 1e6:.2f} MB, the models one by one "
        f"{single / 1e6:.2f} ({old / single:.1f} times less), soir_scene {whole / 1e6:.2f} "
        f"({old / whole:.1f} times less)"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
