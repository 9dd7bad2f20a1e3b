"""Conditions and settings of `qdrant_client.models`, as Qdrant Edge takes them.

Most of its classes have the names and fields of those models: `as_edge` turns one into the other by name. What
differs is spelt out below it.
"""

from __future__ import annotations

from enum import Enum
from functools import singledispatch
from typing import Any

import numpy as np
import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from soir_qdrant.errors import ConfigError

_OTHER_NAMES = {"Range": "RangeFloat", "Datatype": "VectorStorageDatatype"}
_GRAPH = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}  # the server's, where nothing is said


@singledispatch
def as_edge(value: Any) -> Any:
    """The same for Qdrant Edge: a model, a list of them, or a plain value.

    Raises:
        ConfigError: for what it has no counterpart of.
    """
    return value.tolist() if isinstance(value, np.ndarray) else value


@as_edge.register
def _(value: BaseModel) -> Any:
    name = type(value).__name__
    fields = fields_of(value)
    if name.endswith("Quantization"):  # a wrapper around one kind
        (kind,) = fields.values()
        return kind
    return _class(name)(**fields)


@as_edge.register
def _(value: Enum) -> Any:
    kind, wanted = _class(type(value).__name__), _letters(value.name)
    for name in dir(kind):
        if _letters(name) == wanted:
            return getattr(kind, name)
    raise ConfigError(f"Qdrant Edge has no {type(value).__name__} {value.value!r}")


@as_edge.register(list)
def _(value: list[Any]) -> Any:
    return value if value and isinstance(value[0], float) else [as_edge(item) for item in value]


def fields_of(value: BaseModel) -> dict[str, Any]:
    """The fields that say something. A `type` that only repeats the name of the class is none."""
    named = {name: getattr(value, name) for name in type(value).model_fields}
    if not isinstance(value, models.ScalarQuantizationConfig):
        named.pop("type", None)
    return {name: as_edge(part) for name, part in named.items() if part is not None}


def _class(name: str) -> Any:
    try:
        return getattr(edge, _OTHER_NAMES.get(name, name))
    except AttributeError:
        raise ConfigError(f"Qdrant Edge has no {name}") from None


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


# -- conditions --------------------------------------------------------------------------------------------


@as_edge.register
def _(value: models.Filter) -> Any:
    lists = {name: getattr(value, name) for name in ("must", "should", "must_not")}
    parts = {
        name: as_edge(part if isinstance(part, list) else [part])
        for name, part in lists.items()
        if part is not None
    }
    return edge.Filter(**parts, min_should=as_edge(value.min_should))


@as_edge.register
def _(value: models.DatetimeRange) -> Any:
    bounds = {name: getattr(value, name) for name in ("gt", "gte", "lt", "lte")}
    return edge.RangeDateTime(**{name: bound.isoformat() for name, bound in bounds.items() if bound})


@as_edge.register
def _(value: models.MatchValue) -> Any:
    """qdrant-edge-py 0.9 takes Python's bool for a whole number, but not NumPy's."""
    plain: Any = np.bool_(value.value) if isinstance(value.value, bool) else value.value
    return edge.MatchValue(plain)


@as_edge.register
def _(value: models.MatchExcept) -> Any:
    return edge.MatchExcept(value.except_)


@as_edge.register
def _(value: models.IsEmptyCondition) -> Any:
    return edge.IsEmptyCondition(value.is_empty.key)


@as_edge.register
def _(value: models.IsNullCondition) -> Any:
    return edge.IsNullCondition(value.is_null.key)


@as_edge.register
def _(value: models.HasIdCondition) -> Any:
    return edge.HasIdCondition(set(value.has_id))


@as_edge.register
def _(value: models.HasVectorCondition) -> Any:
    return edge.HasVectorCondition(value.has_vector)


@as_edge.register
def _(value: models.NestedCondition) -> Any:
    return edge.NestedCondition(value.nested.key, as_edge(value.nested.filter))


@as_edge.register
def _(value: models.GeoLineString) -> Any:
    return as_edge(value.points)


# -- settings ----------------------------------------------------------------------------------------------


@as_edge.register
def _(value: models.HnswConfigDiff) -> Any:
    return edge.HnswIndexConfig(**{**_GRAPH, **fields_of(value)})


@as_edge.register
def _(value: models.VectorParams) -> Any:
    return edge.EdgeVectorParams(**fields_of(value))


@as_edge.register
def _(value: models.PayloadSelectorInclude) -> Any:
    choice: Any = edge.PayloadSelector
    return choice.Include(value.include)


@as_edge.register
def _(value: models.PayloadSelectorExclude) -> Any:
    choice: Any = edge.PayloadSelector
    return choice.Exclude(value.exclude)
