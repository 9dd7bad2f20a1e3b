"""An ONNX file in eight-bit integers, for onnxruntime on CPUs: the linear layers of its transformer, calibrated on
photographs.

Weights by channel, activations by tensor within the range that they have on the photographs, 128 levels, since CPUs
without VNNI add up products of 256 in 16 bits and would clip them. Attention itself, norms, the last block, heads and
projections stay in float32.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError

BODIES = ("trunk", "model", "encoder")  # modules of the graphs that a precision is of


def quantize(file: Path, inputs: Iterable[dict[str, NDArray[Any]]]) -> None:
    """Rewrite a float32 file that torch exported. inputs: of photographs, by name, to calibrate on.

    Raises:
        ConfigError: the graph has no linear layer.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.rest, None)

    model = onnx.load(str(file))
    weights = {weight.name for weight in model.graph.initializer}
    layers = [node.name for node in model.graph.node if _is_linear(node, weights)]
    if not layers:
        raise ConfigError(f"{file}: no linear layer of a transformer to write in int8; export it with fp32")
    quantization.quantize_static(
        str(file),
        str(file),
        Reader(),
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=layers,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )


def _is_linear(node: Any, weights: Container[str]) -> bool:
    """Whether a node is a linear layer of one of `BODIES`, which torch's exporter notes as its scope."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    inside = any(f"'{body}" in scopes for body in BODIES)
    return node.op_type == "MatMul" and inside and any(name in weights for name in node.input)
