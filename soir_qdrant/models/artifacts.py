"""Files of what was learnt (safetensors): written whole or not at all, read with an error that says how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError


def save(file: Path, arrays: Mapping[str, NDArray[Any]], **about: str) -> None:
    """about: what is to be known of them beside the arrays. Makes the folder where there is none."""
    from safetensors.numpy import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, str(part), metadata=about)
    part.replace(file)


def load(file: Path, what: str, command: str, *needed: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a file, and what is to be known of them. what, command: for the error: what it should be,
    and what makes one. needed: arrays that tell it from others. Raises ConfigError where it is not there, or
    something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "np") as held:
            arrays = {name: held.get_tensor(name) for name in list(held.keys())}
            about = dict(held.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: no {what} there ({error}); make one with `{command}`") from error
    missing = [name for name in needed if name not in arrays]
    if missing or "fitted_for" not in about:
        raise ConfigError(f"{file}: not the file of a {what}; make one with `{command}`")
    return arrays, about
