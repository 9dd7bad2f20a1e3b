"""What a collection holds, for the page: its images, its size, what they can be filtered by."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdrant_client import models
from qdrant_client.client_base import QdrantBase

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.identity import PointId, check_namespace, visible
from soir_qdrant.qdrant.payload import KEY, PATCHES
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.service.errors import NoCollection, NoImage
from soir_qdrant.service.schemas import Facet, Facets, ImagePage, StoredImage, StoredObject

SAMPLE = 400  # images that the filters are learnt from
MAX_VALUES, MAX_KEYS, MAX_TEXT = 30, 20, 80
MAX_DIGITS = len(str(2**64))  # of an id
_RETRY = Retry(attempts=2)
_READABLE = models.PayloadSelectorExclude(exclude=[f"{KEY}.{PATCHES}"])


def point_id(text: int | str) -> PointId:
    """An id as Qdrant takes it, from a part of an address. Raises ConfigError for what is none."""
    if isinstance(text, int) or (text.isdecimal() and len(text) <= MAX_DIGITS):
        if 0 <= int(text) < 2**64:
            return int(text)
    else:
        try:
            return str(uuid.UUID(text))
        except ValueError:
            pass
    raise ConfigError(f"id {str(text)[:80]!r}: ids are whole numbers from 0 or UUIDs")


class Collections:
    """The collections of one client that this service may show.

    Args:
        client: may be shared by threads.
        allowed: names; None for all.
        folders: of the images, resolved; names are shown as paths below them.
        namespace: whose images are shown alone; None for all.
        stores: addresses; names are shown as paths below them too.

    Raises:
        ConfigError: for an empty namespace.
    """

    def __init__(
        self,
        client: QdrantBase,
        allowed: Sequence[str] | None = None,
        folders: Sequence[Path] | None = None,
        namespace: str | None = None,
        stores: Sequence[str] = (),
    ) -> None:
        self.client, self.allowed, self.folders, self.stores = client, allowed, folders, stores
        self.namespace = check_namespace(namespace)

    def names(self) -> list[str]:
        """Those that exist and may be used, aliases too, sorted. Raises ServerError where Qdrant does not answer."""
        collections = _RETRY(self.client.get_collections, "list the collections").collections
        aliases = _RETRY(self.client.get_aliases, "list the aliases").aliases
        existing = sorted({item.name for item in collections} | {item.alias_name for item in aliases})
        return [name for name in existing if self.allowed is None or name in self.allowed]

    def named(self, name: str | None) -> str:
        """The collection that is meant: the one of this name, or the only one there is.

        Raises:
            NoCollection: where there is none of this name, or several to choose from.
        """
        if name is not None:
            self.check(name)
            return name
        names = self.names()
        if len(names) != 1:
            raise NoCollection(f"collection: choose one of {', '.join(names) or 'none: ingest images first'}")
        return names[0]

    def check(self, name: str) -> None:
        """Raises NoCollection where there is none of this name, or it is not allowed."""
        allowed = self.allowed is None or name in self.allowed
        if allowed and _RETRY(lambda: self.client.collection_exists(name), "look for the collection"):
            return
        raise NoCollection(
            f"there is no collection {name[:80]!r} here: choose another, or ingest images into it with "
            "`soir ingest FOLDER --collection NAME`"
        )

    def count(self, name: str) -> int:
        """How many images it holds."""
        own = visible(self.namespace)
        return _RETRY(lambda: self.client.count(name, count_filter=own), "count the images").count

    def payload(self, name: str, id_: int | str) -> dict[str, Any]:
        """All that is stored beside the vector of an image. Raises NoImage where there is none."""
        key = point_id(id_)
        self.check(name)
        stored = self.stored(name, [key])
        if key not in stored:
            raise NoImage(f"collection {name!r} has no image {key}: it was deleted, or the address is old")
        return stored[key]

    def stored(self, name: str, ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        """The payloads of those of the ids that exist, in the namespace."""
        records = _RETRY(
            lambda: self.client.retrieve(name, list(ids), with_payload=_READABLE, with_vectors=False),
            "look up the image",
        )
        payloads = {plain_id(record.id): dict(record.payload or {}) for record in records}
        return {id_: payload for id_, payload in payloads.items() if self._is_visible(payload)}

    def _is_visible(self, payload: Mapping[str, Any]) -> bool:
        return not self.namespace or (payload.get(KEY) or {}).get("namespace") == self.namespace

    def page(self, name: str, limit: int, after: int | str | None, filter: models.Filter | None) -> ImagePage:
        """Some images in order of their ids. after: `next` of the page before."""
        self.check(name)
        offset = None if after is None else point_id(after)
        condition = visible(self.namespace, filter)
        points, following = _RETRY(
            lambda: self.client.scroll(
                name, limit=limit, offset=offset, scroll_filter=condition, with_payload=_READABLE
            ),
            "list the images",
        )
        images = [self.image(plain_id(point.id), point.payload or {}) for point in points]
        return ImagePage(images=images, next=None if following is None else plain_id(following))

    def facets(self, name: str) -> Facets:
        """What a sample of the images can be filtered by."""
        self.check(name)
        points, _ = _RETRY(
            lambda: self.client.scroll(
                name, limit=SAMPLE, scroll_filter=visible(self.namespace), with_payload=_READABLE
            ),
            "read some images",
        )
        return facets_of([point.payload or {} for point in points])

    def image(self, id_: PointId, payload: Mapping[str, Any]) -> StoredImage:
        """A stored image as it is shown."""
        return StoredImage(id=id_, **self.fields(payload))

    def fields(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What is shown of a payload: not the codes, and no path outside the folders."""
        soir = payload.get(KEY) or {}
        return {
            "name": self.shown_name(soir.get("uri")),
            "width": soir.get("width"),
            "height": soir.get("height"),
            "objects": [
                StoredObject(**{key: item.get(key) for key in ("box", "score", "area", "label", "text")})
                for item in soir.get("objects") or []
            ],
            "labels": list(soir.get("labels") or []),
            "payload": {key: value for key, value in payload.items() if key != KEY},
        }

    def shown_name(self, uri: object) -> str:
        """Of a file: its path below the folders, or its name alone."""
        if not isinstance(uri, str):
            return "image without a file"
        for folder in self.folders or ():
            if Path(uri).is_relative_to(folder):
                return Path(uri).relative_to(folder).as_posix()
        for store in self.stores:
            if uri.startswith(below := f"{store.rstrip('/')}/"):
                return uri.removeprefix(below)
        return Path(uri).name


def plain_id(id_: Any) -> PointId:
    """An id as Qdrant returned it, as a number or a text."""
    return id_ if isinstance(id_, int) else str(id_)


def facets_of(payloads: Iterable[Mapping[str, Any]]) -> Facets:
    """The labels and the users' keys of some payloads, each with its most frequent values or its range."""
    labels: Counter[str] = Counter()
    values: defaultdict[str, list[Any]] = defaultdict(list)
    sampled, max_count = 0, 0
    for payload in payloads:
        sampled += 1
        soir = payload.get(KEY) or {}
        labels.update(soir.get("labels") or [])
        max_count = max(max_count, int(soir.get("count") or 0))
        for key, value in payload.items():
            if key != KEY:
                values[key] += value if isinstance(value, list) else [value]
    keys = [facet for key, items in sorted(values.items()) if (facet := _facet(key, items)) is not None]
    top = [label for label, _ in labels.most_common(200)]
    return Facets(labels=sorted(top), keys=keys[:MAX_KEYS], max_count=max_count, sampled=sampled)


def _facet(key: str, items: Sequence[Any]) -> Facet | None:
    """A key that all images use in one way; None for nested, long or mixed values."""
    if items and all(isinstance(item, bool) for item in items):
        return Facet(key=key, kind="boolean", values=[True, False])
    if items and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        return Facet(key=key, kind="number", min=min(items), max=max(items))
    if items and all(isinstance(item, str) and len(item) <= MAX_TEXT for item in items):
        frequent = [value for value, _ in Counter(items).most_common(MAX_VALUES)]
        return Facet(key=key, kind="text", values=sorted(frequent))
    return None
