"""Models of `transformers`, by the name of their class: one way to load them, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from soir_qdrant.errors import WeightsError
from soir_qdrant.models.weights import Weights


@contextmanager
def quiet() -> Iterator[Any]:
    """`transformers`, without its progress bars and its reports of weights that a part of a model leaves."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(level)


@contextmanager
def loading(weights: Weights, what: str = "the weights") -> Iterator[tuple[Any, dict[str, Any]]]:
    """`transformers`, and the options that every `from_pretrained` is to have: no code out of the folder.

    Raises:
        WeightsError: in place of what `transformers` raises.
    """
    try:
        with quiet() as transformers:
            yield transformers, {"local_files_only": weights.local, "trust_remote_code": False}
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{weights.path}: {what} could not be loaded ({reason}). Offline, give a folder with "
            "the whole model, saved by `save_pretrained`, or take the profile 'embedded'"
        ) from error


def load_config(weights: Weights) -> Any:
    """The configuration of a model. Raises WeightsError."""
    with loading(weights) as (transformers, options):
        return transformers.AutoConfig.from_pretrained(weights.path, **options)


def load_model(weights: Weights, loader: str, what: str = "the weights") -> Any:
    """A model in eval mode, without gradients. loader: the name of its class. Raises WeightsError."""
    with loading(weights, what) as (transformers, options):
        if weights.local:  # what was fingerprinted, and no pickle beside it
            options["use_safetensors"] = True
        model = getattr(transformers, loader).from_pretrained(weights.path, **options)
    return model.eval().requires_grad_(False)


def load_of_type(weights: Weights, model_types: str | tuple[str, ...], loader: str) -> Any:
    """The same for a model that must be of one of some types. Raises WeightsError, which names its type."""
    known = (model_types,) if isinstance(model_types, str) else model_types
    kind = load_config(weights).model_type
    if kind not in known:
        raise WeightsError(f"{weights.path}: a {kind} model where a {' or '.join(known)} one belongs")
    return load_model(weights, loader, f"the {known[0]} weights")
