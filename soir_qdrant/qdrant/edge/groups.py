"""Groups of hits, which Qdrant Edge has not: the same answer out of plain searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qdrant_client import models
from qdrant_client.local.payload_value_extractor import value_by_key

Search = Callable[[Sequence[models.QueryRequest]], list[list[models.ScoredPoint]]]
_STEP = 4  # times as many hits are looked at, until there are enough groups


def grouped(
    search: Search, request: models.QueryRequest, key: str, limit: int, size: int
) -> list[models.PointGroup]:
    """The best `limit` groups, each with its best `size` hits.

    Args:
        search: answers requests.
        request: what groups are made of; its limit and offset mean nothing.
        key: of the payload; hits where it holds no text or whole number are in no group, those where it holds
            a list in several.
        limit, size: at least 1.
    """
    keys = _best_keys(search, request, key, limit, size)
    requests = []
    for value in keys:
        own: Any = models.FieldCondition(key=key, match=models.MatchValue(value=value))
        condition = models.Filter(must=[own, request.filter] if request.filter else own)
        update = {"filter": condition, "limit": size, "offset": None}
        requests.append(request.model_copy(update=update))
    answers = search(requests) if requests else []
    return [models.PointGroup(id=value, hits=hits) for value, hits in zip(keys, answers, strict=True) if hits]


def _best_keys(
    search: Search, request: models.QueryRequest, key: str, limit: int, size: int
) -> list[int | str]:
    """The values of the key, that of the best hit first."""
    count = limit * size
    only_key = {"offset": None, "with_payload": [key.split("[")[0]], "with_vector": False}
    while True:
        (hits,) = search([request.model_copy(update={**only_key, "limit": count})])
        keys = dict.fromkeys(value for hit in hits for value in _values(hit.payload or {}, key))
        if len(keys) >= limit or len(hits) < count:
            return list(keys)[:limit]
        count *= _STEP


def _values(payload: dict[str, Any], key: str) -> list[int | str]:
    values: list[Any] = []
    for value in value_by_key(payload, key) or []:
        values += value if isinstance(value, list) else [value]
    return [value for value in values if isinstance(value, str | int) and not isinstance(value, bool)]
