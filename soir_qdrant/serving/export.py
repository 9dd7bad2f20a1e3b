"""torch -> ONNX in Triton's layout, each file checked against torch on real pictures before it counts."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.models.detectors.owlv2 import Owlv2Detector
from soir_qdrant.models.encoders.vit import IMAGENET, OPENAI, ViTEncoder
from soir_qdrant.models.segmenters.sam import SamSegmenter
from soir_qdrant.models.tokens import SKIP
from soir_qdrant.models.weights import Weights, resolve
from soir_qdrant.serving import graphs, last_block, spec
from soir_qdrant.serving.repository import VERSION, profile, write
from soir_qdrant.serving.served import fitted, padded, shrunk
from soir_qdrant.serving.spec import ModelSpec, Precision, Tolerance
from soir_qdrant.types import RGB

Backend = Literal["onnxruntime", "tensorrt", "python"]
OPSET = 20  # written without the fallback converter, and read by every onnxruntime since 1.17
PICTURES = Path(str(resources.files("soir_qdrant") / "data" / "pictures"))
CONFIG_NAMES: dict[Backend, str | None] = {"onnxruntime": None, "tensorrt": "trt", "python": "cpu"}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One model to export. checks: inputs it is compared on, at several batch sizes. expected: what torch
    says in float32."""

    spec: ModelSpec
    graph: nn.Module
    fingerprint: str
    checks: Sequence[tuple[NDArray[Any], ...]]
    expected: Callable[..., tuple[NDArray[Any], ...]]
    tolerance: Tolerance


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
        made = done[-1]
        told(
            f"{made.name}: {made.bytes / 1e6:.1f} MB, largest difference {made.error:.1e}, "
            f"least cosine {made.cosine:.7f}, {made.fingerprint}"
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


def parts(settings: Settings, precision: Precision) -> Iterator[Part]:
    """What there is to export for these settings. Loads the weights one model after the other."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    yield from _of_encoder(settings, precision, dtype)
    if settings.detector.kind == "owlv2":
        yield _of_owlv2(settings, precision, dtype)
    if settings.segmenter.kind == "sam":
        yield from _of_sam(settings, precision, dtype)


def _of_encoder(settings: Settings, precision: Precision, dtype: torch.dtype) -> Iterator[Part]:

    held = settings.encoder
    encoder = ViTEncoder(
        held.weights, input_size=held.input_size, device="cpu", dtype="float32", adapter=held.adapter
    )
    block = encoder.last_block

    def expected(crops: NDArray[np.uint8], masks: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        found = encoder.encode(crops, masks)
        return found.descriptor, found.layers, found.tokens.numpy()

    if settings.detector.kind == "embedded":
        sides = [(18 * encoder.patch, 25 * encoder.patch), (25 * encoder.patch, 18 * encoder.patch)]
        looks = [
            np.stack([_resized(image, side) for image in grounds()[:n]])
            for side, n in zip(sides, (1, 2), strict=True)
        ]
        yield Part(
            spec.tokens(patch=encoder.patch, dim=block.dim, skip=SKIP),
            graphs.TokensGraph(encoder, SKIP, dtype),
            encoder.fingerprint,
            [(look,) for look in looks],
            lambda images: (encoder.tokens(images, skip=SKIP).numpy(),),
            spec.TOLERANCES[precision],
        )
    crops, masks = real_crops(held.input_size)
    yield Part(
        spec.encoder(
            size=encoder.input_size,
            patch=encoder.patch,
            dim=block.dim,
            dim_out=block.dim_out,
            cls=int(block.has_cls),
        ),
        graphs.EncoderGraph(encoder, dtype),
        encoder.fingerprint,
        [(crops[:1], masks[:1]), (crops, masks)],
        expected,
        spec.TOLERANCES[precision],
    )


def _of_owlv2(settings: Settings, precision: Precision, dtype: torch.dtype) -> Part:

    weights = settings.detector.weights
    detector = Owlv2Detector(weights, device="cpu", dtype="float32")
    made = spec.owlv2(size=detector.size, patch=int(detector.model.config.vision_config.patch_size))
    pixels = graphs.Pixels(OPENAI, torch.float32)
    pictures = np.stack([padded(image, detector.size) for image in grounds()[:2]])

    def expected(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            each = [detector.forward(pixels(torch.from_numpy(image[None]))) for image in images]
        return np.stack([boxes for boxes, _ in each]), np.stack([scores for _, scores in each])

    return Part(
        made,
        graphs.Owlv2Graph(detector.model, dtype),
        _fingerprint(resolve(weights)),
        [(pictures[:1],), (pictures,)],
        expected,
        spec.TOLERANCES[precision],
    )


def _of_sam(settings: Settings, precision: Precision, dtype: torch.dtype) -> Iterator[Part]:

    weights = settings.segmenter.weights
    segmenter = SamSegmenter(weights, device="cpu")
    model, size = segmenter.model, segmenter.size
    facts = {
        "size": size,
        "channels": int(model.config.vision_config.output_channels),
        "grid": int(model.config.prompt_encoder_config.image_embedding_size),
    }
    pixels = graphs.Pixels(IMAGENET, torch.float32)
    pictures = np.stack([shrunk(im, fitted(im.shape[0], im.shape[1], size), size) for im in grounds()[:2]])

    def embeddings(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            return (model.get_image_embeddings(pixels(torch.from_numpy(images))).numpy(),)

    def masks(embedded: NDArray[Any], boxes: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            found = model(image_embeddings=torch.from_numpy(embedded), input_boxes=torch.from_numpy(boxes))
        best = found.iou_scores.argmax(-1)[0]
        rows = torch.arange(len(best))
        return found.pred_masks[:, rows, best].numpy(), found.iou_scores[:, rows, best].numpy()

    fingerprint = _fingerprint(resolve(weights))
    yield Part(
        spec.sam_encoder(**facts),
        graphs.SamEncoderGraph(model, dtype),
        fingerprint,
        [(pictures[:1],), (pictures,)],
        embeddings,
        spec.TOLERANCES[precision],
    )
    embedded = embeddings(pictures[:1])[0]
    boxes = np.array([[[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.7], [0.4, 0.4, 0.6, 0.6]]], np.float32) * size
    yield Part(
        spec.sam_decoder(**facts),
        graphs.SamDecoderGraph(model),
        fingerprint,
        [(embedded, boxes[:, :1]), (embedded, boxes)],
        masks,
        spec.TOLERANCES["fp32"],
    )


def _export(part: Part, folder: Path) -> Exported:
    """Write one ONNX file, check it, and move it to its place."""
    target = folder / part.spec.name / str(VERSION) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        file = Path(scratch) / "model.onnx"
        _write(part, file)
        error, cosine = _compare(part, file)
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


def _write(part: Part, file: Path) -> None:
    try:
        import onnx  # and what torch's exporter is written in:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"exporting needs more packages ({error}): pip install 'soir-qdrant[export]'"
        ) from error
    held = part.spec
    example = part.checks[-1]
    free = torch.export.Dim("batch", min=1, max=1024)
    shapes = []
    for i, tensor in enumerate(held.inputs):
        dims: dict[int, Any] = {0: free} if held.max_batch else {}
        for axis, size in enumerate(tensor.dims, start=1 if held.max_batch else 0):
            if size == -1:
                dims[axis] = (
                    torch.export.Dim.DYNAMIC if held.max_batch else torch.export.Dim("boxes", max=1024)
                )
        shapes.append(dims)
        assert example[i].dtype == {"UINT8": np.uint8, "FP32": np.float32}[tensor.dtype]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.graph.eval(),
            tuple(torch.from_numpy(array) for array in example),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in held.inputs],
            output_names=[tensor.name for tensor in held.outputs],
            dynamic_shapes=tuple(shapes),
            verbose=False,
        )
        assert program is not None
        program.save(str(file))
    model = onnx.load(str(file))
    for key, value in spec.describe(held, part.fingerprint).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(file))


def _compare(part: Part, file: Path) -> tuple[float, float]:
    """The largest relative difference and the least cosine over all checks and outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in part.spec.inputs]
    errors, cosines = [0.0], [1.0]
    for arrays in part.checks:
        found = session.run([t.name for t in part.spec.outputs], dict(zip(names, arrays, strict=True)))
        for one, other in zip(found, part.expected(*arrays), strict=True):
            if one.shape != other.shape:
                raise ConfigError(f"{part.spec.name}: the export gives {one.shape}, torch {other.shape}")
            errors.append(np.abs(one - other).max() / max(np.abs(other).max(), 1e-12))
            cosines.append(_cosines(one, other).min())
    return float(np.max(errors)), float(np.min(cosines))  # NaN, where there is one: it is refused


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Of the rows of vectors and tokens; of maps, [B, C, h, w], as wholes."""
    length = one.shape[-1] if one.ndim < 4 else one[0].size
    a, b = (x.reshape(-1, length).astype(np.float64) for x in (one, other))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = (a * b).sum(1) / np.maximum(lengths, 1e-300)
    return found


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


def grounds() -> list[RGB]:
    """Real photographs to check an export on."""
    files = sorted((PICTURES / "grounds").iterdir())
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def real_crops(size: int, count: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Things in photographs: crops uint8 [count, size, size, 3]; masks float32 [count, size, size], 0..1."""
    things = sorted((PICTURES / "cutouts").iterdir())[:count]
    crops, masks = [], []
    for ground, thing in zip(grounds() * count, things, strict=False):
        cutout = Image.open(thing).convert("RGBA").resize((size * 3 // 4,) * 2)
        picture = Image.fromarray(_resized(ground, (size, size)))
        inside = Image.new("L", (size, size))
        place = (size // 8, size // 8)
        picture.paste(cutout, place, cutout)
        inside.paste(cutout.getchannel("A"), place)
        crops.append(np.asarray(picture))
        masks.append(np.asarray(inside, np.float32) / 255)
    return np.stack(crops), np.stack(masks)


def _resized(image: RGB, shape: tuple[int, int]) -> RGB:
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0])))


def _fingerprint(found: Weights) -> str:
    return f"{found.origin.name}@{found.sha256[:12]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about operators of packages that are not in use."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
