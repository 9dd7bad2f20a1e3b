"""The images of a collection in an order of the user's, and what became of its last ingest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.identity import PointId, visible
from soir_qdrant.qdrant.last_ingest import recall
from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.service.collections import Collections, plain_id
from soir_qdrant.service.schemas import FailedImage, ImagePage
from soir_qdrant.service.schemas_overview import LastIngest

MAX_SORTED = 50_000  # images whose keys are read to sort them
_PAGE = 2000  # payloads of one request
_RETRY = Retry(attempts=2)
# name of an order -> the keys of the payload that it needs
OWN = {
    "name": ["uri"],
    "objects": ["count"],
    "pixels": ["width", "height"],
    "largest": ["objects[].area"],
}


def sorted_page(
    collections: Collections,
    name: str,
    limit: int,
    after: str | None,
    filter: models.Filter | None,
    sort: str,
    *,
    descending: bool = False,
) -> ImagePage:
    """Some images in the order of a key; those without it come last.

    Args:
        collections: of the service.
        name: of the collection.
        limit: images of a page.
        after: `next` of the page before.
        filter: of Qdrant.
        sort: "name", "objects" (how many), "pixels", "largest" (object's share of the image), or a key of the
            payload.
        descending: the largest first.

    Raises:
        NoCollection: where there is none.
        ConfigError: for more images than can be sorted, or an `after` of another order.
    """
    collections.check(name)
    if after is not None and not (after.isdecimal() and len(after) <= len(str(MAX_SORTED))):
        raise ConfigError(f"after {after[:60]!r} is of another order: start at the first page")
    start, condition = int(after or 0), visible(collections.namespace, filter)
    if _RETRY(lambda: collections.client.count(name, condition), "count the images").count > MAX_SORTED:
        raise ConfigError(
            f"more than {MAX_SORTED:,} images cannot be sorted here: narrow them down by a filter"
        )
    keys = [f"{KEY}.{key}" for key in OWN.get(sort, [])] or [sort]
    known: list[tuple[tuple[int, Any], PointId]] = []
    without: list[PointId] = []
    for record in _scrolled(collections, name, condition, keys):
        value, id_ = _comparable(sort, record.payload or {}), plain_id(record.id)
        without.append(id_) if value is None else known.append((value, id_))
    known.sort(key=lambda row: row[0], reverse=descending)
    ids = [id_ for _, id_ in known] + without
    wanted = ids[start : start + limit]
    payloads = collections.stored(name, wanted)
    images = [collections.image(id_, payloads[id_]) for id_ in wanted if id_ in payloads]
    return ImagePage(images=images, next=start + limit if start + limit < len(ids) else None)


def _scrolled(
    collections: Collections, name: str, condition: models.Filter | None, keys: list[str]
) -> Iterator[models.Record]:
    offset = None
    while True:
        records, offset = _RETRY(
            lambda offset=offset: collections.client.scroll(  # type: ignore[misc]
                name, condition, _PAGE, offset=offset, with_payload=keys
            ),
            "read the images",
        )
        yield from records
        if offset is None:
            return


def _comparable(sort: str, payload: Mapping[str, Any]) -> tuple[int, Any] | None:
    """A value of the key's that can be compared with all others: numbers before texts. None where there is
    none."""
    soir = payload.get(KEY) or {}
    if sort == "pixels":
        value: Any = (soir.get("width") or 0) * (soir.get("height") or 0)
    elif sort == "largest":
        value = max((item.get("area") or 0.0 for item in soir.get("objects") or []), default=None)
    elif sort in OWN:
        value = soir.get(OWN[sort][0])
    else:
        value = payload
        for part in sort.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, (int, float)):
        return (0, value)
    return (1, value.casefold()) if isinstance(value, str) else None


def last_ingest(collections: Collections, name: str) -> LastIngest | None:
    """What became of the last ingest, where something remembers it. Raises NoCollection."""
    collections.check(name)
    record = recall(collections.client, name, collections.namespace or None)
    if record is None:
        return None
    failed = []
    for one in record.get("failed") or []:
        shown = _shown(collections, str(one.get("name")))
        reason = str(one.get("reason") or "").replace(str(one.get("name")), shown)
        failed.append(FailedImage(name=shown, reason=reason))
    return LastIngest(
        time=record["time"],
        counts=record.get("counts") or {},
        failures=record.get("failures") or len(failed),
        failed=failed,
        left_out=[_shown(collections, str(path)) for path in record.get("left_out") or []],
    )


def _shown(collections: Collections, name: str) -> str:
    """A file as the ingest named it: below its folder; a whole path, as that of a stored image."""
    return collections.shown_name(name) if Path(name).is_absolute() else name
