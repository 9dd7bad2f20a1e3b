"""torch -> ONNX in Triton's layout, each file checked against torch on real photographs before it counts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.serving import graphs, last_block
from soir_qdrant.serving.export_parts import Part, parts
from soir_qdrant.serving.onnx_file import compare, write_onnx
from soir_qdrant.serving.repository import VERSION, profile, write
from soir_qdrant.serving.spec import ModelSpec, Precision

Backend = Literal["onnxruntime", "tensorrt", "python"]
CONFIG_NAMES: dict[Backend, str | None] = {"onnxruntime": None, "tensorrt": "trt", "python": "cpu"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. error: largest difference from torch, as a share of the largest value of the
    output; cosine: least over the rows of the outputs. bytes: size of the file."""

    name: str
    file: Path
    fingerprint: str
    error: float
    cosine: float
    bytes: int


def export(
    settings: Settings,
    folder: Path,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    told: Callable[[str], None] = lambda _: None,
) -> list[Exported]:
    """Write the models of these settings as a model repository.

    Every backend reads the same ONNX files; "tensorrt" also gets a script per model that builds its plan
    where the GPU is. told: called with a line per model. Models with a part that needs no serving (the
    segmenter GrabCut) have none. Raises WeightsError where weights are missing, ConfigError where an export
    differs from torch by more than the tolerance: then that model is not written.
    """
    done = []
    for part in parts(settings, precision):
        done.append(_export(part, folder))
        exported = done[-1]
        told(
            f"{exported.name}: {exported.bytes / 1e6:.1f} MB, largest difference {exported.error:.1e}, "
            f"least cosine {exported.cosine:.7f}, {exported.fingerprint}"
        )
        write([part.spec], folder, {part.spec.name: part.fingerprint})
        if backend == "tensorrt":
            told(f"  plan: {_trtexec(part.spec, folder)}")
    told(f"serve it: {command(folder, backend)}")
    return done


def command(folder: Path, backend: Backend) -> str:
    """The command line that serves an exported repository."""
    name = CONFIG_NAMES[backend]
    return f"tritonserver --model-repository {folder}" + (f" --model-config-name={name}" if name else "")


def _export(part: Part, folder: Path) -> Exported:
    """Write one ONNX file, check it, and move it to its place."""
    target = folder / part.spec.name / str(VERSION) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        file = Path(scratch) / "model.onnx"
        write_onnx(part, file)
        error, cosine = compare(part, file)
        if not (error <= part.tolerance.error and cosine >= part.tolerance.cosine):
            raise ConfigError(
                f"{part.spec.name}: the export differs from torch by {error:.1e} (at most "
                f"{part.tolerance.error:.0e}), cosine {cosine:.6f} (at least {part.tolerance.cosine}): it "
                "was not written. In half precision that means these weights do not bear it: export with fp32"
            )
        size = file.stat().st_size
        file.replace(target)
    if isinstance(part.graph, graphs.EncoderGraph):
        last_block.save(part.graph.block, part.fingerprint, target.parents[1] / last_block.FILE)
    return Exported(part.spec.name, target, part.fingerprint, error, cosine, size)


def _trtexec(held: ModelSpec, folder: Path) -> Path:
    """The script that builds a plan: run it in the server's image on the server's GPU, as plans belong to
    one version of TensorRT and one kind of GPU."""
    place = folder / held.name / str(VERSION)
    text = "\n".join(
        [
            "#!/bin/sh",
            "# Builds model.plan from model.onnx: run it in the server's container, on the server's GPU.",
            "# The precision is that of the ONNX file. TensorRT 11 builds every network strongly typed;",
            "# TensorRT 10 does so with --stronglyTyped.",
            'cd "$(dirname "$0")" || exit 1',
            "trtexec --help | grep -q -- --stronglyTyped && typed=--stronglyTyped",
            "exec trtexec --onnx=model.onnx --saveEngine=model.plan $typed \\",
            f"  --minShapes={profile(held, 'least')} \\",
            f"  --optShapes={profile(held, 'usual')} \\",
            f"  --maxShapes={profile(held, 'most')} \\",
            '  --timingCacheFile=timing.cache "$@"',
            "",
        ]
    )
    file = place / "build_plan.sh"
    file.write_text(text)
    file.chmod(0o755)
    return file
