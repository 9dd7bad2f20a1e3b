"""A model that runs elsewhere, in onnxruntime or Triton: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError, ServerError
from soir_qdrant.serving.model_spec import ModelSpec

T = TypeVar("T")
U = TypeVar("U")
Arrays = Mapping[str, NDArray[Any]]


class InputRefused(ServerError):
    """The model answers, and not to this input."""


class Session(Protocol):
    """One served model. spec, fingerprint: as it was exported."""

    spec: ModelSpec
    fingerprint: str

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The named outputs. inputs: all of the spec's, by name, B rows each (of a model without a batch
        dimension, as the spec says). B is at least 1; the session cuts it into batches.

        Raises ServerError where the model did not answer, InputRefused where the input is to blame.
        """
        ...

    def each(self, action: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """The results of `action` in the order of `items`; several may run at once."""
        ...


def in_batches(
    run: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]],
    inputs: Arrays,
    outputs: Sequence[str],
    size: int,
) -> dict[str, NDArray[Any]]:
    """The outputs of `run` on at most `size` rows at a time, joined; 0: all at once."""
    rows = len(next(iter(inputs.values())))
    if not size or rows <= size:
        return run(dict(inputs))
    parts = [run({k: v[i : i + size] for k, v in inputs.items()}) for i in range(0, rows, size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def of_kind(session: Session, kind: str) -> ModelSpec:
    """The spec of a session. Raises ConfigError where its model is of another kind."""
    if session.spec.kind != kind:
        raise ConfigError(
            f"{session.spec.name} is a model of kind {session.spec.kind!r}, and {kind!r} is asked for: "
            "was it exported for another profile?"
        )
    return session.spec
