"""torch -> ONNX in Triton's layout, each file checked against torch on real photographs before it counts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soir_qdrant.components import Components
from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.recipe import short_hash
from soir_qdrant.serving import graphs, last_block, scene_server, served_text, spec
from soir_qdrant.serving.export_part import Part
from soir_qdrant.serving.export_parts import parts
from soir_qdrant.serving.model_spec import ModelSpec, Precision
from soir_qdrant.serving.onnx import OnnxEncoder
from soir_qdrant.serving.onnx_file import compare, write_onnx
from soir_qdrant.serving.repository import ONNX, PLAN, VERSION, profile, write

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
    scene: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Exported]:
    """Write the models of these settings as a model repository.

    Every backend reads the same ONNX files; "tensorrt" also gets a script per model that builds its plan
    where the GPU is. Models with a part that needs no serving (the segmenter GrabCut) have none.

    Args:
        settings: of the pipeline.
        folder: to write.
        backend: what is to run the models.
        precision: inside the models; "int8" is for onnxruntime on CPUs.
        scene: also write the model that has whole images described in one request, by the others; it wants
            soir_qdrant in the Python of the server.
        progress: called with a line per model.

    Raises:
        WeightsError: where weights are missing.
        ConfigError: where an export differs from torch by more than the tolerance: then that model is not
            written. Before anything is written: of a scene, for pooling "mao" and scene encoders; of int8, for
            TensorRT.
    """
    if precision == "int8" and backend == "tensorrt":
        raise ConfigError("int8 is calibrated for onnxruntime on CPUs: export with fp16 for TensorRT")
    if scene:
        _check_scene(settings)
    done = []
    models = {}
    for part in parts(settings, precision):
        done.append(_export(part, folder))
        exported = done[-1]
        progress(
            f"{exported.name}: {exported.bytes / 1e6:.1f} MB, largest difference {exported.error:.1e}, "
            f"least cosine {exported.cosine:.7f}, {exported.fingerprint}"
        )
        models[part.spec.name] = spec.describe(part.spec, part.fingerprint)
        write([part.spec], folder, {part.spec.name: part.fingerprint})
        if backend == "tensorrt":
            progress(f"  plan: {_trtexec(part.spec, folder)}")
    if scene:
        progress(f"{spec.SCENE}: the models above in one request, {_scene(settings, models, folder)}")
    progress(f"serve it: {command(folder, backend, precision)}")
    return done


def _check_scene(settings: Settings) -> None:
    """Raises ConfigError for settings of which no scene can be served."""
    if settings.vector.pooling == "mao":
        raise ConfigError(f'{spec.SCENE} does not refine: export without it, or set vector.pooling to "gmp"')
    if settings.scene is not None:
        raise ConfigError(
            f"{spec.SCENE} describes images by their objects, and a scene encoder, {settings.scene.kind!r}, as wholes: "
            "export without it"
        )


def _scene(settings: Settings, models: Mapping[str, Mapping[str, str]], folder: Path) -> str:
    """Write the model that has whole images described; returns the recipe that it stands for."""
    encoder = OnnxEncoder(folder / spec.ENCODER / str(VERSION) / ONNX)
    parts = Components(settings, encoder=encoder)
    recipe = short_hash(parts.recipe)
    row_dim = parts.patch_projection.dim if parts.has_patches else 0
    model = spec.scene(dim=parts.dim, row_dim=row_dim, reads_text=settings.ocr is not None)
    write([model], folder, {spec.SCENE: recipe})
    scene_server.save(settings, models, folder / spec.SCENE / str(VERSION) / scene_server.FILE)
    return recipe


def command(folder: Path, backend: Backend, precision: Precision = "fp32") -> str:
    """The command line that serves an exported repository."""
    name = CONFIG_NAMES[backend] or ("ort_cpu" if precision == "int8" else None)
    return f"tritonserver --model-repository {folder}" + (f" --model-config-name={name}" if name else "")


def _export(part: Part, folder: Path) -> Exported:
    """Write one ONNX file, check it, and move it to its place."""
    target = folder / part.spec.name / str(VERSION) / ONNX
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        file = Path(scratch) / ONNX
        write_onnx(part, file)
        error, cosine = compare(part, file)
        if not (error <= part.tolerance.error and cosine >= part.tolerance.cosine):
            raise ConfigError(
                f"{part.spec.name}: the export differs from torch by {error:.1e} (at most "
                f"{part.tolerance.error:.0e}), cosine {cosine:.6f} (at least {part.tolerance.cosine}): it "
                "was not written. In half precision that means these weights do not bear it: export with fp32"
            )
        size = file.stat().st_size
        target.with_name(PLAN).unlink(missing_ok=True)  # of the weights before
        file.replace(target)
    if isinstance(part.graph, graphs.EncoderGraph):
        last_block.save(part.graph.block, part.fingerprint, target.parents[1] / last_block.FILE)
    if isinstance(part.graph, graphs.TextGraph):
        served_text.save(part.graph.tokenizer, target.parents[1] / served_text.FOLDER)
    return Exported(part.spec.name, target, part.fingerprint, error, cosine, size)


def _trtexec(model: ModelSpec, folder: Path) -> Path:
    """The script that builds a plan: run it in the server's image on the server's GPU, as plans belong to
    one version of TensorRT and one kind of GPU."""
    place = folder / model.name / str(VERSION)
    text = "\n".join(
        [
            "#!/bin/sh",
            "# Builds model.plan from model.onnx: run it in the server's container, on the server's GPU.",
            "# The precision is that of the ONNX file. TensorRT 11 builds every network strongly typed;",
            "# TensorRT 10 does so with --stronglyTyped.",
            'cd "$(dirname "$0")" || exit 1',
            "trtexec --help | grep -q -- --stronglyTyped && typed=--stronglyTyped",
            "exec trtexec --onnx=model.onnx --saveEngine=model.plan $typed \\",
            f"  --minShapes={profile(model, 'min')} \\",
            f"  --optShapes={profile(model, 'usual')} \\",
            f"  --maxShapes={profile(model, 'max')} \\",
            '  --timingCacheFile=timing.cache "$@"',
            "",
        ]
    )
    file = place / "build_plan.sh"
    file.write_text(text)
    file.chmod(0o755)
    return file
