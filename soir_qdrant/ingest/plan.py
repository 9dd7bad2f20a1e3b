"""What has become of the files of a folder since they were stored: found without running a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from soir_qdrant.errors import ImageError
from soir_qdrant.images import File, RawImage, ReadOptions, decode, exists, is_address, read, stamp_of, uri_of
from soir_qdrant.qdrant.identity import Place, PointId
from soir_qdrant.qdrant.points import StoredPoint
from soir_qdrant.types import Failure

What: TypeAlias = Literal[
    "new", "changed", "stale", "touched", "moved", "renamed", "copied", "vanished", "kept"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one file.

    Attributes:
        what: "new"; "changed": other pixels; "stale": the same, stored by another recipe; "touched": other
            bytes, the same pixels, such as a corrected title; "moved" to another folder, "renamed" within
            it; "copied": equal to a file that is still there; "vanished"; "kept": vanished, and left.
        name: path within the folder, of a vanished one elsewhere the whole path.
        before: where the file lay, of a moved or renamed one.
    """

    what: What
    name: str
    before: str | None = None


@dataclass(slots=True, eq=False)
class Plan:
    """What is to be done. to_store: names, files and ids of the files that models are run on."""

    changes: list[Change] = field(default_factory=list)
    unchanged: int = 0
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    excluded: int = 0
    to_store: list[tuple[str, File, PointId | None]] = field(default_factory=list)
    met: list[tuple[PointId, Place]] = field(default_factory=list)  # places of points that stay
    left: list[tuple[PointId, str]] = field(default_factory=list)  # uris of points that stay
    touched: list[tuple[StoredPoint, str, Place]] = field(default_factory=list)  # with their new sha256
    vanished: list[tuple[PointId, str]] = field(default_factory=list)  # uris of points, which may go


class Planner:
    """Compares files with points.

    Args:
        root: the folder, a path or an address.
        points: all of the namespace.
        recipes: of a file by its name: short hashes of what would make its point (see `Details.recipes`), or None
            where the objects are not known any more and it is to stay as it is.
        reading: how files are read.
    """

    def __init__(
        self,
        root: str | Path,
        points: Iterable[StoredPoint],
        recipes: Callable[[str, StoredPoint], tuple[str, ...] | None],
        reading: ReadOptions,
    ) -> None:
        self.recipes, self.reading = recipes, reading
        separator = "/" if is_address(root) else os.sep
        self.inside = uri_of(root).rstrip(separator) + separator  # what the uris of its files begin with
        self.by_uri: dict[str, tuple[StoredPoint, Place]] = {}
        self.by_content: dict[str, StoredPoint] = {}
        self.rivals: list[tuple[StoredPoint, str]] = []  # further points that claim a place
        for point in points:
            self.by_content.setdefault(point.sha256, point)
            for place in point.places:
                if place.uri in self.by_uri:  # as where a file was edited and only added again
                    self.rivals.append((point, place.uri))
                self.by_uri.setdefault(place.uri, (point, place))
        self.plan = Plan()
        self.gone: dict[PointId, list[str]] = {}  # places that are empty now and not accounted for yet
        self.alike: list[tuple[str, File, StoredPoint, str, Place]] = []  # other bytes, the same pixels

    def run(self, files: Iterable[tuple[str, File]], unreadable: Callable[[str], bool]) -> Plan:
        """The plan.

        Args:
            files: names and sources of all images of the folder.
            unreadable: whether a uri lies in a folder that cannot be looked into.
        """
        listed = {uri_of(source): (name, source) for name, source in files}
        claims = [(point, uri) for uri, (point, _) in self.by_uri.items()]
        for point, uri in [*claims, *self.rivals]:
            if uri not in listed and uri.startswith(self.inside) and not unreadable(uri):
                self.gone.setdefault(point.id, []).append(uri)
        contents = {}
        for uri, (name, source) in listed.items():
            try:
                contents[uri] = self._file(name, source, uri)
            except ImageError as error:
                self.plan.failed.append(Failure(name, str(error)))
            except OSError as error:
                self.plan.failed.append(Failure(name, f"{name} cannot be read: {error}"))
        self._touched()
        for point, uri in self.rivals:
            if contents.get(uri, point.sha256) != point.sha256:
                self.plan.left.append((point.id, uri))
        self.plan.vanished = [(id_, uri) for id_, uris in self.gone.items() for uri in uris]
        vanished = dict.fromkeys(uri for _, uri in self.plan.vanished)
        self.plan.changes += [Change("vanished", self._name(uri)) for uri in vanished]
        return self.plan

    def _file(self, name: str, source: File, uri: str) -> str:
        """Compare one file. Returns the hash of its content."""
        point, place = self.by_uri.get(uri, (None, None))
        stamp = stamp_of(source)
        if point and place and stamp and place.stamp == stamp:
            self._same(point, name, source)
            return point.sha256
        raw = read(source, name=name, options=self.reading)
        here = Place(uri, raw.stamp)
        if point and point.sha256 == raw.sha256:
            self.plan.met.append((point.id, here))
            self._same(point, name, source)
        elif equal := self.by_content.get(raw.sha256):
            if any(place.uri == uri for place in equal.places):
                self._same(equal, name, source)
            else:
                self._elsewhere(equal, name, source, here)
            if point:
                self.plan.left.append((point.id, uri))
        elif point and len(point.places) == 1 and point.pixels == self._pixels(raw, point):
            self.alike.append((name, source, point, raw.sha256, here))
        else:
            self._store("changed" if point else "new", name, source)
        return raw.sha256

    def _store(self, what: What, name: str, source: File, id_: PointId | None = None) -> None:
        self.plan.to_store.append((name, source, id_))
        self.plan.changes.append(Change(what, name))

    def _touched(self) -> None:
        """Files with the pixels of before take their points along, but where another file has that image now, or
        is as they are."""
        taken, equal = {id_ for id_, _ in self.plan.met}, set()
        for name, source, point, sha256, here in self.alike:
            if point.id in taken or sha256 in equal:
                self._store("changed", name, source)
                continue
            equal.add(sha256)
            self.plan.touched.append((point, sha256, here))
            self.plan.changes.append(Change("touched", name))

    def _pixels(self, raw: RawImage, point: StoredPoint) -> str:
        """Hash of the pixels of a file, decoded as those of the point were."""
        enough = None if point.by_user else self.reading.reduce
        return decode(raw, max_pixels=self.reading.max_pixels, enough=enough).pixels

    def _same(self, point: StoredPoint, name: str, source: File) -> None:
        if self._is_stale(name, point):
            self._store("stale", name, source, point.id)
        else:
            self.plan.unchanged += 1

    def _is_stale(self, name: str, point: StoredPoint) -> bool:
        recipes = self.recipes(name, point)
        return recipes is not None and point.recipe not in recipes

    def _elsewhere(self, point: StoredPoint, name: str, source: File, here: Place) -> None:
        """A file whose image is stored, from another place."""
        self.plan.met.append((point.id, here))
        before = self._empty_place(point)
        if before is None:
            self.plan.changes.append(Change("copied", name))
        else:
            self.plan.left.append((point.id, before))
            what: What = "renamed" if Path(before).parent == Path(here.uri).parent else "moved"
            self.plan.changes.append(Change(what, name, self._name(before)))
        if self._is_stale(name, point):
            self.plan.to_store.append((name, source, point.id))

    def _empty_place(self, point: StoredPoint) -> str | None:
        """Where a file of the image lay and no longer lies."""
        if uris := self.gone.get(point.id):
            uri = uris.pop()
            if not uris:
                del self.gone[point.id]
            return uri
        taken = {uri for id_, uri in self.plan.left if id_ == point.id}
        outside = (p.uri for p in point.places if not p.uri.startswith(self.inside) and p.uri not in taken)
        return next((uri for uri in outside if not exists(uri)), None)

    def _name(self, uri: str) -> str:
        return uri.removeprefix(self.inside).replace(os.sep, "/") if uri.startswith(self.inside) else uri


def lines(changes: Iterable[Change]) -> Iterator[str]:
    """A plan, or what became of it, in words: a line for each file."""
    for change in changes:
        arrow = f"{change.before} -> " if change.before else ""
        yield f"{change.what:9}{arrow}{change.name}"
