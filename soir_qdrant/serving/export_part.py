"""One model to export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from soir_qdrant.serving.model_spec import TOLERANCES, ModelSpec, Precision, Tolerance

# Of the graph that torch exports; integers are made of it afterwards.
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "int8": torch.float32,
}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A graph, and what it is compared with.

    Attributes:
        graph: in torch; or a file of ONNX, which is taken as it is.
        checks: inputs it is compared on, at several batch sizes.
        expected: what the model here says of them, in float32.
        precision: inside the graph.
        samples: called for inputs of photographs, which "int8" is calibrated on.
    """

    spec: ModelSpec
    graph: nn.Module | Path
    fingerprint: str
    checks: Sequence[tuple[NDArray[Any], ...]]
    expected: Callable[..., tuple[NDArray[Any], ...]]
    precision: Precision = "fp32"
    samples: Callable[[], Iterable[tuple[NDArray[Any], ...]]] = tuple

    @property
    def tolerance(self) -> Tolerance:
        """How far the export may be from torch."""
        return TOLERANCES[self.precision]
