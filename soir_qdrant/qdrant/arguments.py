"""A request as the keyword arguments of the client's methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdrant_client import models


def arguments_of(request: models.QueryRequest) -> dict[str, Any]:
    """A request as the client's methods for one take it."""
    fields = {field: getattr(request, field) for field in models.QueryRequest.model_fields}
    return without_none({_ARGUMENTS.get(field, field): value for field, value in fields.items()})


def without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


_ARGUMENTS = {
    "filter": "query_filter",
    "params": "search_params",
    "with_vector": "with_vectors",
    "shard_key": "shard_key_selector",
}
