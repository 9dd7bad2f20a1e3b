"""Files of what was learnt (safetensors): written whole or not at all, read with an error that says how."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError


def save(file: Path, arrays: Mapping[str, NDArray[Any]], **about: str) -> None:
    """Write a safetensors file. about: what is to be known of the arrays."""
    from safetensors.numpy import save as packed

    write_whole(file, packed({name: np.ascontiguousarray(x) for name, x in arrays.items()}, metadata=about))


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, through a new file beside it that no link can stand in for. Makes the
    folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", suffix=".part", dir=file.parent)
    part = Path(name)
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - a descriptor
            stream.write(content)
        part.chmod(0o644)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def load(file: Path, what: str, command: str, *needed: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a file, and what is to be known of them. what, command: for the error: what it should be,
    and what makes one. needed: arrays that tell it from others. Raises ConfigError where it is not there, or
    something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "np") as tensors:
            arrays = {name: tensors.get_tensor(name) for name in list(tensors.keys())}
            about = dict(tensors.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: no {what} there ({error}); make one with `{command}`") from error
    missing = [name for name in needed if name not in arrays]
    if missing or "fitted_for" not in about:
        raise ConfigError(f"{file}: not the file of a {what}; make one with `{command}`")
    return arrays, about
