"""Writes of `qdrant_client.models`, as Qdrant Edge takes them."""

from __future__ import annotations

from typing import Any, cast

import qdrant_edge as edge
from qdrant_client import models

from soir_qdrant.qdrant.edge.convert import as_edge


def operation_of(operation: models.UpdateOperation) -> edge.UpdateOperation:
    """One of a list of writes."""
    match operation:
        case models.UpsertOperation(upsert=one):
            points = one.points if isinstance(one, models.PointsList) else one.batch
            return upsert(points, getattr(one, "update_filter", None), getattr(one, "update_mode", None))
        case models.DeleteOperation(delete=selector):
            return delete(selector)
        case models.UpdateVectorsOperation(update_vectors=one):
            return update_vectors(one.points, getattr(one, "update_filter", None))
        case models.DeleteVectorsOperation(delete_vectors=one):
            return delete_vectors(one.points or one.filter, one.vector)
        case models.SetPayloadOperation(set_payload=one):
            return selected("set_payload", one.points or one.filter, one.payload, one.key)
        case models.OverwritePayloadOperation(overwrite_payload=one):
            return selected("overwrite_payload", one.points or one.filter, one.payload, one.key)
        case models.DeletePayloadOperation(delete_payload=one):
            return selected("delete_payload", one.points or one.filter, one.keys)
        case models.ClearPayloadOperation(clear_payload=selector):
            return selected("clear_payload", selector)


def upsert(
    points: Any, condition: models.Filter | None, mode: models.UpdateMode | None
) -> edge.UpdateOperation:
    """Points, a list or a Batch of columns. condition: which of those that are there may be overwritten."""
    if isinstance(points, models.Batch):
        points = _rows(points)
    listed = [edge.Point(one.id, as_edge(one.vector), one.payload) for one in points]
    return edge.UpdateOperation.upsert_points(listed, as_edge(condition), as_edge(mode))


def _rows(batch: models.Batch) -> list[models.PointStruct]:
    payloads: Any = batch.payloads or [None] * len(batch.ids)
    columns: Any = batch.vectors
    if isinstance(columns, dict):
        names = list(columns)
        columns = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [
        models.PointStruct(id=id_, vector=vector, payload=payload)
        for id_, vector, payload in zip(batch.ids, columns, payloads, strict=True)
    ]


def update_vectors(
    points: list[models.PointVectors], condition: models.Filter | None
) -> edge.UpdateOperation:
    """Some vectors of points; the others stay."""
    listed = [edge.PointVectors(one.id, as_edge(one.vector)) for one in points]
    return edge.UpdateOperation.update_vectors(listed, as_edge(condition))


def delete_vectors(selector: Any, names: list[str]) -> edge.UpdateOperation:
    ids, condition = _chosen(selector)
    if condition is None:
        return edge.UpdateOperation.delete_vectors(ids, names)
    return edge.UpdateOperation.delete_vectors_by_filter(as_edge(condition), names)


def delete(selector: Any) -> edge.UpdateOperation:
    ids, condition = _chosen(selector)
    if condition is None:
        return edge.UpdateOperation.delete_points(ids)
    return edge.UpdateOperation.delete_points_by_filter(as_edge(condition))


def selected(operation: str, selector: Any, *arguments: Any) -> edge.UpdateOperation:
    """An operation on the payload of points. arguments: after the points."""
    ids, condition = _chosen(selector)
    operations: Any = edge.UpdateOperation
    if condition is None:
        return cast("edge.UpdateOperation", getattr(operations, operation)(ids, *arguments))
    by_filter = getattr(operations, f"{operation}_by_filter")
    return cast("edge.UpdateOperation", by_filter(as_edge(condition), *arguments))


def _chosen(selector: Any) -> tuple[list[Any], models.Filter | None]:
    """A selector's ids or its condition."""
    if isinstance(selector, models.FilterSelector):
        return [], selector.filter
    if isinstance(selector, models.Filter):
        return [], selector
    return list(selector.points if isinstance(selector, models.PointIdsList) else selector or []), None


def field_index(name: str, schema: Any) -> edge.UpdateOperation:
    """An index of a payload key. schema: a kind or its parameters; a kind may be named."""
    schema = models.PayloadSchemaType(schema) if isinstance(schema, str) else schema
    return edge.UpdateOperation.create_field_index(name, as_edge(schema))
