"""What a request takes: whole numbers in range, and a request as the keyword arguments of the client's methods."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from qdrant_client import models

from soir_qdrant.errors import ConfigError


def arguments_of(request: models.QueryRequest) -> dict[str, Any]:
    """A request as the client's methods for one take it."""
    fields = {field: getattr(request, field) for field in models.QueryRequest.model_fields}
    return without_none({_ARGUMENTS.get(field, field): value for field, value in fields.items()})


def without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def check_minimum(name: str, value: int, smallest: int) -> None:
    """Raises ConfigError for anything but a whole number of at least `smallest`."""
    try:
        right = operator.index(value) >= smallest
    except TypeError:
        right = False
    if not right:
        raise ConfigError(f"{name} {value!r}: give a whole number, at least {smallest}")


_ARGUMENTS = {
    "filter": "query_filter",
    "params": "search_params",
    "with_vector": "with_vectors",
    "shard_key": "shard_key_selector",
}
