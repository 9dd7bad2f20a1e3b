"""Which point is an image's: ids by namespace and content, and the places where equal files lie.

Equal files are one point. `payload["soir"]["uris"]` lists where they lie, the one that was met last first,
which `uri` repeats; `files` has, in the same order, size in bytes and time of change in nanoseconds, by which
an unchanged file is known without being read; `payloads` what the user gave for the others than the first,
where there is anything.
"""

from __future__ import annotations

import operator
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from qdrant_client import models

from soir_qdrant.errors import ConfigError

PointId: TypeAlias = int | str
Stamp: TypeAlias = tuple[int, int]  # bytes, and nanoseconds of the last change
KEY = "soir"
ROOT = uuid.uuid5(uuid.NAMESPACE_DNS, "soir-qdrant")
PLACES = ("uri", "uris", "files", "payloads")  # of payload["soir"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file of an image lies. payload: the user's for this file."""

    uri: str
    stamp: Stamp | None = None
    payload: Mapping[str, Any] | None = None


def point_id(sha256: str, namespace: str = "") -> str:
    """The id of an image: UUIDv5 of its content's hex digest in a namespace; without one as in 0.1."""
    return str(uuid.uuid5(uuid.uuid5(ROOT, namespace) if namespace else ROOT, sha256))


def check_namespace(namespace: str | None) -> str:
    """The namespace, "" for None. Raises ConfigError for anything but a text that is not empty."""
    if namespace is None:
        return ""
    if not isinstance(namespace, str) or not namespace:
        raise ConfigError(f"namespace {namespace!r}: give a text that is not empty, or None for none")
    return namespace


def point_id_of(point: models.PointStruct | models.Record | models.ScoredPoint) -> PointId:
    """The id as this package writes it: a whole number, or a UUID as text."""
    return point.id if isinstance(point.id, int) else str(point.id)


def check_id(value: object) -> PointId:
    """A point id as Qdrant takes it. Raises ConfigError for anything but a whole number >= 0 or a UUID."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    elif not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            number = -1
        if 0 <= number < 2**64:
            return number
    raise ConfigError(
        f"id {value!r}: Qdrant takes whole numbers from 0 and UUIDs; make one of a name with "
        "uuid.uuid5(uuid.NAMESPACE_URL, name), or keep the name in the payload"
    )


def visible(namespace: str, condition: models.Filter | None = None) -> models.Filter | None:
    """What a search in a namespace is filtered by; without one, it sees the whole collection."""
    return within(namespace, condition) if namespace else condition


def within(namespace: str, condition: models.Filter | None = None) -> models.Filter:
    """The points of a namespace alone; without one, those that have none. condition: on top of that."""
    if namespace:
        own: Any = models.FieldCondition(key=f"{KEY}.namespace", match=models.MatchValue(value=namespace))
    else:
        own = models.IsEmptyCondition(is_empty=models.PayloadField(key=f"{KEY}.namespace"))
    return both(own, condition)


def both(one: Any, other: models.Filter | None) -> models.Filter:
    """Points for which two conditions hold, or the first alone where there is no other."""
    return models.Filter(must=[one] if other is None else [one, other])


def at(uris: Iterable[str]) -> models.Filter:
    """Images with a file at one of these places."""
    match = models.MatchAny(any=list(uris))
    return models.Filter(
        should=[models.FieldCondition(key=f"{KEY}.{key}", match=match) for key in ("uri", "uris")]
    )


def places_of(soir: Mapping[str, Any]) -> tuple[Place, ...]:
    """The places in `payload["soir"]`; of a point of version 0.1, its one uri."""
    uri = soir.get("uri")
    uris = soir.get("uris") or ([uri] if uri else [])
    files, payloads = soir.get("files") or [], soir.get("payloads") or []
    return tuple(
        Place(
            str(uri),
            (int(files[i][0]), int(files[i][1])) if i < len(files) and files[i] else None,
            payloads[i] if i < len(payloads) else None,
        )
        for i, uri in enumerate(uris)
    )


def as_payload(places: Iterable[Place]) -> dict[str, Any]:
    """Places as they are written into `payload["soir"]`: every key of PLACES, so that none stays behind."""
    listed = list(places)
    return {
        "uri": listed[0].uri if listed else None,
        "uris": [place.uri for place in listed],
        "files": [list(place.stamp) if place.stamp else None for place in listed],
        "payloads": [dict(p.payload) if p.payload else None for p in listed]
        if any(place.payload for place in listed[1:])
        else [],
    }


def with_places(new: Iterable[Place], old: Iterable[Place]) -> tuple[Place, ...]:
    """The new places before the old ones, each uri once. A new one without payload keeps that of the old."""
    before = {place.uri: place for place in old}
    merged = {}
    for place in new:
        known = before.pop(place.uri, place)
        merged[place.uri] = place if place.payload else replace(place, payload=known.payload)
    return (*merged.values(), *before.values())
