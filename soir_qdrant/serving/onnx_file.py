"""One ONNX file: written with its description inside, and compared with torch."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.serving import int8, spec
from soir_qdrant.serving.export_part import Part

OPSET = 20  # written without the fallback converter, and read by every onnxruntime since 1.17


def write_onnx(part: Part, file: Path) -> None:
    """Write a part, its spec and fingerprint in the metadata. Raises ConfigError where packages lack."""
    try:
        import onnx  # and what torch's exporter is written in, and what the file is compared by:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"exporting needs more packages ({error}): pip install 'soir-qdrant[export]'"
        ) from error
    example = part.checks[-1]
    for tensor, array in zip(part.spec.inputs, example, strict=True):
        assert array.dtype == {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32}[tensor.dtype]
    if isinstance(part.graph, Path):
        shutil.copyfile(part.graph, file)
    else:
        _traced(part, part.graph, file)
    model = onnx.load(str(file))
    for key, value in spec.describe(part.spec, part.fingerprint).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(file))


def _traced(part: Part, graph: nn.Module, file: Path) -> None:
    """Write what torch does."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            tuple(torch.from_numpy(array) for array in part.checks[-1]),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in part.spec.inputs],
            output_names=[tensor.name for tensor in part.spec.outputs],
            dynamic_shapes=tuple(_free_sizes(part.spec)),
            verbose=False,
        )
        assert program is not None
        program.save(str(file))
        if part.precision == "int8":
            names = [tensor.name for tensor in part.spec.inputs]
            int8.quantize(file, (dict(zip(names, arrays, strict=True)) for arrays in part.samples()))


def _free_sizes(model: spec.ModelSpec) -> list[dict[int, Any]]:
    """Of each input: its axes of free size, as torch's exporter wants them."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    only_one = sum(tensor.dims.count(-1) for tensor in model.inputs) == 1 and not model.max_batch
    shapes = []
    for tensor in model.inputs:
        axes: dict[int, Any] = {0: batch} if model.max_batch else {}
        for axis, size in enumerate(tensor.dims, start=1 if model.max_batch else 0):
            if size == -1:
                axes[axis] = torch.export.Dim("boxes", max=1024) if only_one else torch.export.Dim.DYNAMIC
        shapes.append(axes)
    return shapes


def compare(part: Part, file: Path) -> tuple[float, float]:
    """The largest relative difference and the least cosine over all checks and outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in part.spec.inputs]
    errors, cosines = [0.0], [1.0]
    for arrays in part.checks:
        answers = session.run([t.name for t in part.spec.outputs], dict(zip(names, arrays, strict=True)))
        for one, other in zip(answers, part.expected(*arrays), strict=True):
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
    cosines: NDArray[np.float64] = (a * b).sum(1) / np.maximum(lengths, 1e-300)
    return cosines


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about operators of packages that are not in use, and onnxruntime, in the root's
    name, about shaping a graph that torch has shaped."""
    names = ("root", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")
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
