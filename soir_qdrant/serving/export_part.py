"""One model to export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn

from soir_qdrant.serving.model_spec import ModelSpec, Tolerance


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A graph, and what it is compared with.

    Attributes:
        checks: inputs it is compared on, at several batch sizes.
        expected: what torch says in float32.
    """

    spec: ModelSpec
    graph: nn.Module
    fingerprint: str
    checks: Sequence[tuple[NDArray[Any], ...]]
    expected: Callable[..., tuple[NDArray[Any], ...]]
    tolerance: Tolerance
