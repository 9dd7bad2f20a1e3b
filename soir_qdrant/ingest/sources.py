"""The images of one call of `SoirIngestor.add`, each with the id, payload and objects that belong to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from soir_qdrant.errors import ConfigError
from soir_qdrant.images import Images, LeftOut, RawImage, ReadOptions, Source, count_sources, iter_sources
from soir_qdrant.qdrant.identity import Place
from soir_qdrant.qdrant.points import StoredPoint
from soir_qdrant.types import LoadedImage

log = logging.getLogger(__name__)
_MISSING: Any = object()


@dataclass(slots=True, eq=False)
class Item:
    """One image on its way. reason: why it failed, once it has. first: of its id, in this call. recipes:
    see `Details.recipes`. place: where its file lies; before: the point of another image that lay there."""

    name: str
    source: Any
    id: Any = None
    payload: Any = None
    objects: Any = None
    raw: RawImage | None = None
    image: LoadedImage | None = None
    reason: str | None = None
    first: bool = False
    recipes: tuple[str, ...] = ()
    place: Place | None = None
    before: StoredPoint | None = None


def items_of(
    images: Images, ids: Any, payloads: Any, objects: Any, left_out: LeftOut, options: ReadOptions
) -> tuple[Iterator[Item], int | None]:
    """The images with what belongs to each, and how many they are, where that is known. Raises at once for a
    missing folder and for lists of unequal length; what is given by a name that no image has is logged at the
    end."""
    sources = iter_sources(images, left_out, options)
    count = count_sources(images, options)
    if isinstance(images, (str, os.PathLike)):  # a folder is walked once
        listed = list(sources)
        sources, count = iter(listed), len(listed)
    by_user = {"id": _named(ids), "payload": _named(payloads), "objects": _named(objects)}
    unused = {what: dict.fromkeys(values) for what, values in by_user.items() if isinstance(values, dict)}
    pick = {what: _picker(values, what, count) for what, values in by_user.items()}

    def one(name: str, source: Source) -> Item:
        if isinstance(source, np.ndarray):
            source = source.copy()  # read later, in another thread: its owner may have reused it by then
        values = {what: of(name) for what, of in pick.items()}
        item = Item(name, source, values["id"], values["payload"], values["objects"])
        absent = [what for what, value in values.items() if value is _MISSING]
        if absent:
            item.reason = f"no {' and no '.join(absent)} given for it: fewer were given than images"
        return item

    def all_of_them() -> Iterator[Item]:
        for name, source in sources:
            for left in unused.values():
                left.pop(name, None)
            yield one(name, source)
        for what, left in unused.items():
            if left:
                log.warning(
                    "%s: given for %d names that no image has, such as %r (of a folder's images the name is "
                    "the path within it, of others the path as given)",
                    *(what, len(left), next(iter(left))),
                )

    return all_of_them(), count


def _named(values: Any) -> Any:
    """Of what is given by name a copy, with paths as text."""
    if not isinstance(values, Mapping):
        return values
    return {os.fspath(name) if isinstance(name, os.PathLike) else name: x for name, x in values.items()}


def _picker(values: Any, what: str, count: int | None) -> Callable[[str], Any]:
    if values is None:
        return lambda _: None
    if isinstance(values, dict):
        return values.get
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ConfigError(f"{what}: give one per image, in a list, any iterable, or a dict by name")
    if count is not None and isinstance(values, Sized) and len(values) != count:
        raise ConfigError(f"{len(values)} {what} values for {count} images: give one, or None, per image")
    rest = iter(values)
    return lambda _: next(rest, _MISSING)
