"""Searches of `qdrant_client.models`, as Qdrant Edge takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from soir_qdrant.qdrant.edge.convert import as_edge


def request_of(request: models.QueryRequest) -> edge.QueryRequest:
    """A whole search, with vectors in place of ids."""
    return edge.QueryRequest(
        limit=request.limit or 10,
        offset=request.offset,
        query=query_of(request.query, request.using),
        prefetches=_prefetches(request.prefetch),
        with_vector=request.with_vector or False,
        with_payload=as_edge(request.with_payload),
        filter=as_edge(request.filter),
        score_threshold=request.score_threshold,
        params=as_edge(request.params),
    )


def _prefetches(prefetch: models.Prefetch | list[models.Prefetch] | None) -> list[edge.Prefetch]:
    listed = prefetch if isinstance(prefetch, list) else [prefetch] if prefetch else []
    return [
        edge.Prefetch(
            limit=one.limit or 10,
            query=query_of(one.query, one.using),
            prefetches=_prefetches(one.prefetch),
            params=as_edge(one.params),
            filter=as_edge(one.filter),
            score_threshold=one.score_threshold,
        )
        for one in listed
    ]


def query_of(query: Any, using: str | None) -> Any:
    """What points are scored by. query: as in `models.QueryRequest`, with vectors in place of ids."""
    if query is None:
        return None
    if isinstance(query, models.NearestQuery):
        return _diverse(query, using) if query.mmr else query_of(query.nearest, using)
    if isinstance(query, models.RecommendQuery):
        return _recommended(query.recommend, using)
    if isinstance(query, models.FusionQuery):
        return edge.Fusion.Rrf(2) if query.fusion == models.Fusion.RRF else edge.Fusion.Dbsf()
    if isinstance(query, models.FormulaQuery):
        return edge.Formula(expression(query.formula), query.defaults)
    if isinstance(query, models.OrderByQuery):
        return order_of(query.order_by)
    if isinstance(query, models.SampleQuery):
        return edge.Sample.Random
    if hasattr(query, "rrf"):
        return edge.Fusion.Rrf(query.rrf.k or 2, query.rrf.weights)
    if isinstance(query, BaseModel):
        return as_edge(query)
    return edge.Query.Nearest(as_edge(query), using=using)


def order_of(order: models.OrderBy | str | None) -> Any:
    """An order by a payload key."""
    return edge.OrderBy(order) if isinstance(order, str) else as_edge(order)


def _diverse(query: models.NearestQuery, using: str | None) -> Any:
    mmr = query.mmr
    diversity = 0.5 if mmr is None or mmr.diversity is None else mmr.diversity
    limit = (mmr.candidates_limit if mmr else None) or 100
    return edge.Mmr(as_edge(query.nearest), 1 - diversity, limit, using)


def _recommended(example: models.RecommendInput, using: str | None) -> Any:
    kind: Any = edge.Query
    positive, negative = as_edge(example.positive or []), as_edge(example.negative or [])
    if example.strategy == models.RecommendStrategy.BEST_SCORE:
        return kind.RecommendBestScore(edge.RecommendQuery(positive, negative), using=using)
    if example.strategy == models.RecommendStrategy.SUM_SCORES:
        return kind.RecommendSumScores(edge.RecommendQuery(positive, negative), using=using)
    mean = np.mean(positive, axis=0)
    vector = 2 * mean - np.mean(negative, axis=0) if negative else mean
    return kind.Nearest(vector.tolist(), using=using)


def expression(value: Any) -> Any:
    """A part of a formula: a number, a variable, a condition or an operation on parts."""
    kind: Any = edge.Expression
    if isinstance(value, bool | int | float):
        return kind.Constant(float(value))
    if isinstance(value, str):
        return kind.Variable(value)
    name, _, rest = type(value).__name__.partition("Expression")
    if rest or name == type(value).__name__:
        return kind.Condition(as_edge(value))
    (inner,) = (getattr(value, field) for field in type(value).model_fields)
    if name.endswith("Decay"):
        return kind.Decay(getattr(edge.DecayKind, name.removesuffix("Decay")), **_operands(inner))
    if name.startswith("Datetime"):
        return getattr(kind, name)(inner)
    if isinstance(inner, list):
        return getattr(kind, name)([expression(part) for part in inner])
    if isinstance(inner, models.DivParams):
        return kind.Div(expression(inner.left), expression(inner.right), inner.by_zero_default)
    if isinstance(inner, models.PowParams):
        return kind.Pow(expression(inner.base), expression(inner.exponent))
    return getattr(kind, name)(expression(inner))


def _operands(parameters: BaseModel) -> dict[str, Any]:
    """Named parts of an operation; those that are plain numbers stay so."""
    plain = ("midpoint", "scale")
    return {
        name: value if name in plain else expression(value)
        for name in type(parameters).model_fields
        if (value := getattr(parameters, name)) is not None
    }


def with_vectors(
    request: models.QueryRequest, vector: Callable[[Any, str | None], Any]
) -> tuple[models.QueryRequest, list[Any]]:
    """The request with the vectors of points in place of their ids, and those ids. vector: of an id, by name."""
    ids: list[Any] = []

    def resolved(query: Any) -> Any:
        if isinstance(query, models.NearestQuery):
            return query.model_copy(update={"nearest": resolved(query.nearest)})
        if isinstance(query, models.RecommendQuery):
            lists = {
                name: [resolved(item) for item in getattr(query.recommend, name) or []]
                for name in ("positive", "negative")
            }
            return models.RecommendQuery(recommend=query.recommend.model_copy(update=lists))
        if not isinstance(query, str | int) and type(query).__name__ != "UUID":
            return query
        ids.append(query)
        return vector(query, request.using)

    return request.model_copy(update={"query": resolved(request.query)}), ids
