"""Triton's model repository, written from the specs: configurations, and the Python backend's model.

    soir_encoder/config.pbtxt          onnxruntime with TensorRT, on a GPU: production
    soir_encoder/configs/cpu.pbtxt     Python backend: onnxruntime on the CPU
    soir_encoder/configs/ort_cpu.pbtxt onnxruntime's own backend on the CPU
    soir_encoder/configs/trt.pbtxt     a TensorRT plan
    soir_encoder/1/model.py            of the Python backend
    soir_encoder/1/model.onnx          written by `soir export`

`tritonserver --model-config-name=cpu` takes configs/cpu.pbtxt of every model. Where a model had none, Triton
would silently take its config.pbtxt, so every model gets every one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from soir_qdrant.serving import spec as specs
from soir_qdrant.serving.model_spec import ModelSpec, Tensor, Which

Variant = Literal["ort_trt", "cpu", "ort_cpu", "trt"]
FILES: dict[Variant, str] = {
    "ort_trt": "config.pbtxt",
    "cpu": "configs/cpu.pbtxt",
    "ort_cpu": "configs/ort_cpu.pbtxt",
    "trt": "configs/trt.pbtxt",
}
VERSION = 1
ONNX, PLAN = "model.onnx", "model.plan"
ENGINE_CACHE = "/engines"  # a volume: engines take minutes to build, and belong to one kind of GPU
QUEUE = 128  # requests that wait; the next is turned away at once, and its client comes back later
QUEUE_US = 30_000_000  # how long one waits before it is turned away too
SCENES = 2  # images that are in work at once: one is cut and read while the other runs through a model

# As published: what the checked-in configurations are made for. An export takes the sizes of its weights.
PROFILES: Mapping[str, tuple[ModelSpec, ...]] = {
    "embedded": (
        specs.tokens(patch=14, dim=384, skip=2),
        specs.token_head(patch=14, dim=384),
        specs.token_unet(dim=384, side=96),
        specs.encoder(size=224, patch=14, dim=384, dim_out=384, row_dim=64),
        specs.texture(size=126, cells=9, dim=384, skip=8),
        specs.everyday(side=416),
        specs.scene(dim=1024, row_dim=64, reads_text=True),
    ),
    "paper": (
        specs.owlv2(size=960, patch=16),
        specs.sam_encoder(size=1024, channels=256, grid=64),
        specs.sam_decoder(size=1024, channels=256, grid=64),
        specs.encoder(size=224, patch=14, dim=768, dim_out=768),
    ),
}


def files(spec: ModelSpec, fingerprint: str | None = None, engines: str | None = None) -> dict[str, str]:
    """Path within the repository -> content, of one model without its weights. See `config`."""
    texts = {
        f"{spec.name}/{path}": config(spec, variant, fingerprint, engines) for variant, path in FILES.items()
    }
    texts[f"{spec.name}/{VERSION}/model.py"] = python_model(spec)
    return texts


def write(models: Sequence[ModelSpec], folder: Path, fingerprints: dict[str, str] | None = None) -> None:
    """Write the repository of some models. fingerprints: by the model's name, where the weights are known and
    written."""
    for spec in models:
        fingerprint = (fingerprints or {}).get(spec.name)
        engines = _engines(spec, folder) if fingerprint else None
        for path, text in files(spec, fingerprint, engines).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


def _engines(spec: ModelSpec, folder: Path) -> str | None:
    """The name of the engines of the weights that lie there: onnxruntime knows an engine by its graph alone, and
    would run that of other weights."""
    file = folder / spec.name / str(VERSION) / ONNX
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return f"{spec.name}-{hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"


def python_model(spec: ModelSpec) -> str:
    """The model.py of the Python backend: that of scenes, or that of all models with an ONNX file."""
    name = "scene_backend.py" if spec.kind == "scene" else "python_backend.py"
    return (resources.files("soir_qdrant.serving") / name).read_text()


def config(
    spec: ModelSpec, variant: Variant, fingerprint: str | None = None, engines: str | None = None
) -> str:
    """A config.pbtxt. Only backend, instances and acceleration differ between the variants. engines: the folder of
    its TensorRT engines within `ENGINE_CACHE`; the model's name, where its weights are not known."""
    parts = [
        "# Written by soir_qdrant.serving.repository from soir_qdrant.serving.spec: change it there.",
        f'name: "{spec.name}"',
        _backend("cpu" if spec.kind == "scene" else variant),
        _batch_size(spec),
        *(_tensor("input", tensor) for tensor in spec.inputs),
        *(_tensor("output", tensor) for tensor in spec.outputs),
        "# One version, by number: a new one is taken into service on purpose, not because it lies there.\n"
        f"version_policy {{ specific {{ versions: [ {VERSION} ] }} }}",
        _instances(spec, variant),
        _batching(spec),
        "" if spec.kind == "scene" else _warmup(spec),
        *_parameters(spec, fingerprint),
    ]
    if variant == "ort_trt" and spec.kind != "scene":
        parts.append(_acceleration(spec, engines or spec.name))
    return "\n".join(part for part in parts if part) + "\n"


def profile(spec: ModelSpec, which: Which) -> str:
    """The shapes of the inputs in TensorRT's notation: "crops:8x224x224x3,masks:8x224x224"."""
    batch = {"min": 1, "usual": spec.usual_batch, "max": spec.max_batch}[which]
    return ",".join(
        f"{tensor.name}:{'x'.join(map(str, [*([batch] if spec.max_batch else []), *tensor.at(which)]))}"
        for tensor in spec.inputs
    )


def _backend(variant: Variant) -> str:
    return {
        "ort_trt": 'backend: "onnxruntime"\ndefault_model_filename: "model.onnx"',
        "ort_cpu": 'backend: "onnxruntime"\ndefault_model_filename: "model.onnx"',
        "cpu": 'backend: "python"\ndefault_model_filename: "model.py"',
        "trt": 'backend: "tensorrt"\ndefault_model_filename: "model.plan"',
    }[variant]


def _batch_size(spec: ModelSpec) -> str:
    why = (
        "" if spec.max_batch else "# No batch dimension: a request is one image, with any number of boxes.\n"
    )
    return f"{why}max_batch_size: {spec.max_batch}"


def _tensor(kind: str, tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f'{kind} [ {{ name: "{tensor.name}" data_type: TYPE_{tensor.dtype} dims: [ {dims} ] }} ]'


def _instances(spec: ModelSpec, variant: Variant) -> str:
    if spec.kind == "scene":
        return (
            "# It waits for the other models most of the time: a second one works meanwhile.\n"
            f"instance_group [ {{ count: {SCENES} kind: KIND_CPU }} ]"
        )
    if variant in ("cpu", "ort_cpu"):
        return "# onnxruntime takes all cores for one request: a second instance would only compete.\n" + (
            "instance_group [ { count: 1 kind: KIND_CPU } ]"
        )
    return (
        "# One per GPU: batching gains far more than a second instance, which doubles the memory.\n"
        "instance_group [ { count: 1 kind: KIND_GPU } ]"
    )


def _batching(spec: ModelSpec) -> str:
    policy = (
        f"  default_queue_policy {{ max_queue_size: {QUEUE} timeout_action: REJECT "
        f"default_timeout_microseconds: {QUEUE_US} }}\n"
    )
    if not spec.max_batch:
        return ""
    sizes = ", ".join(map(str, sorted({spec.usual_batch, spec.max_batch} - {1})))
    return (
        "# Preferred are the sizes that the engines are tuned for. The delay is small beside the time of\n"
        "# one batch. A full queue turns requests away: clients come back later, and memory stays bounded.\n"
        "dynamic_batching {\n"
        f"  preferred_batch_size: [ {sizes} ]\n"
        f"  max_queue_delay_microseconds: {spec.delay_us}\n"
        f"{policy}}}"
    )


def _warmup(spec: ModelSpec) -> str:
    batches = sorted({1, spec.usual_batch}) if spec.max_batch else [0]
    samples = []
    for batch in batches:
        inputs = "".join(
            f'\n  inputs {{ key: "{tensor.name}" value {{ data_type: TYPE_{tensor.dtype} '
            f"dims: [ {', '.join(map(str, tensor.at('usual')))} ] "
            f"{'random_data: true' if tensor.dtype == 'UINT8' else 'zero_data: true'} }} }}"
            for tensor in spec.inputs
        )
        samples.append(f'model_warmup {{\n  name: "batch {batch}"\n  batch_size: {batch}{inputs}\n}}')
    return "# The server is ready when these have run: no request pays for the first one.\n" + "\n".join(
        samples
    )


def _parameters(spec: ModelSpec, fingerprint: str | None) -> list[str]:
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "{_quoted(value)}" }} }}'
        for key, value in specs.describe(spec, fingerprint).items()
    ]
    return ["# What clients compare with what they expect. The fingerprint comes with the weights.", *lines]


def _acceleration(spec: ModelSpec, engines: str) -> str:
    parameters = {
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": f"{ENGINE_CACHE}/{engines}",
        "trt_profile_min_shapes": profile(spec, "min"),
        "trt_profile_opt_shapes": profile(spec, "usual"),
        "trt_profile_max_shapes": profile(spec, "max"),
    }
    lines = "".join(
        f'\n    parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items()
    )
    return (
        "# Without shape profiles a shape outside of what was seen rebuilds the engine within a request,\n"
        "# which takes minutes. Precision is that of the ONNX file (soir export --precision).\n"
        "optimization { execution_accelerators {\n"
        f'  gpu_execution_accelerator [ {{\n    name: "tensorrt"{lines}\n  }} ]\n}} }}'
    )


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


if __name__ == "__main__":  # the checked-in trees, after a change of the specs
    write(PROFILES["paper"], Path("model_repository"))
    write(PROFILES["embedded"], Path("model_repository_embedded"))
