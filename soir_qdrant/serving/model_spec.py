"""What a served model takes and gives, as data: names, shapes, dtypes, tolerances. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DType = Literal["UINT8", "INT64", "FP16", "FP32"]
Precision = Literal["fp32", "fp16", "int8"]
Which = Literal["min", "usual", "max"]


def facts(**values: int) -> tuple[tuple[str, int], ...]:
    """The facts of a `ModelSpec`, by name."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Attributes:
        dims: without the batch; -1 where the size is free.
        min_dims, usual_dims, max_dims: the same with the free ones filled in, for TensorRT's shape profiles
            and the warm-up; empty where none is free.
    """

    name: str
    dtype: DType
    dims: tuple[int, ...]
    min_dims: tuple[int, ...] = ()
    usual_dims: tuple[int, ...] = ()
    max_dims: tuple[int, ...] = ()

    def at(self, which: Which) -> tuple[int, ...]:
        """The dims with no free one."""
        filled = {"min": self.min_dims, "usual": self.usual_dims, "max": self.max_dims}[which]
        return filled or self.dims


@dataclass(frozen=True, slots=True)
class Tolerance:
    """error: largest difference, as a share of the largest value of the output. cosine: the smallest, over the
    rows of an output."""

    error: float
    cosine: float


# Of an exported model against torch in float32. Half precision and integers are judged by directions, which is
# what retrieval sees, rather than by single numbers.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(error=1e-3, cosine=0.99999),
    "fp16": Tolerance(error=0.1, cosine=0.999),
    "int8": Tolerance(error=0.3, cosine=0.95),
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model.

    Attributes:
        kind, facts: what `spec.make` needs to build this spec again.
        max_batch: 0 where the model takes no batch dimension; its dims are then whole shapes.
        usual_batch: what clients send at once.
        delay_us: how long the server waits for more requests to join a batch.
    """

    name: str
    kind: str
    facts: tuple[tuple[str, int], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int = 0
    usual_batch: int = 0
    delay_us: int = 0

    @property
    def hash(self) -> str:
        """16 hex digits that change with what client and model must agree on; not with the batching."""
        tensors = [[(t.name, t.dtype, t.dims) for t in side] for side in (self.inputs, self.outputs)]
        text = json.dumps([self.name, self.kind, self.facts, tensors, self.max_batch > 0])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fact(self, name: str, default: int | None = None) -> int:
        """A fact by its name; the default, where the spec may be without it."""
        facts = dict(self.facts)
        return facts[name] if default is None else facts.get(name, default)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The whole shape, -1 where it is free."""
        return (-1, *tensor.dims) if self.max_batch else tensor.dims
