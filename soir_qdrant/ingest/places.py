"""Where the images of one call lie: files that are stored already but were met elsewhere, equal files, and
files whose content has changed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

from soir_qdrant.ingest.sources import Item
from soir_qdrant.qdrant.identity import Place, PointId, Stamp, point_id, with_places
from soir_qdrant.qdrant.points import Points, StoredPoint

AT_ONCE = 256


def place_of(item: Item) -> Place | None:
    """Where an item that has been read lies; None for one that came as bytes or pixels."""
    raw = item.raw
    return Place(raw.uri, raw.stamp) if raw and raw.uri else None


@dataclass(slots=True, eq=False)
class Places:
    """What is to be written about places when everything else is: only then is it known which image lies
    where, as after two files have swapped their names.

    looks: whether other images may have lain where these lie. removed: points that went, since no file of their
    image is left.
    """

    points: Points
    looks: bool = True
    met: dict[PointId, list[Place]] = field(default_factory=dict)  # of points that are left as they are
    left: dict[PointId, set[str]] = field(default_factory=dict)  # uris where an image lies no longer
    removed: list[PointId] = field(default_factory=list)

    def note(self, id_: PointId, place: Place | None, stored: StoredPoint | None = None) -> bool:
        """A place of an image whose point stays as it is. Whether that place is new to the point, as far as
        `stored` tells."""
        if place is None or (stored and any(place.uri == known.uri for known in stored.places)):
            return False
        self.met.setdefault(id_, []).append(place)
        return True

    def leave(self, id_: PointId, *uris: str) -> None:
        """An image lies there no longer; without any other place, its point goes."""
        self.left.setdefault(id_, set()).update(uris)

    def write(self, lost: Iterable[PointId] = ()) -> None:
        """Write what was noted. lost: points that are not there after all."""
        for id_ in lost:
            self.met.pop(id_, None)
        ids = list(dict.fromkeys([*self.met, *self.left]))
        for i in range(0, len(ids), AT_ONCE):
            stored = self.points.stored(ids[i : i + AT_ONCE])
            changed, gone = {}, []
            for id_, point in stored.items():
                places = with_places(self.met.get(id_, ()), point.places)
                rest = tuple(place for place in places if place.uri not in self.left.get(id_, ()))
                if places and not rest:
                    gone.append(id_)
                elif _known(rest) != _known(point.places):
                    changed[id_] = rest
            if changed:
                self.points.set_places(changed)
            if gone:
                self.points.remove(gone)
            self.removed += gone
        self.met.clear()
        self.left.clear()

    def look_back(self, items: Iterable[Item], images: Mapping[PointId, tuple[str, Place | None]]) -> None:
        """Set `before` of the items, where other images lay where they lie now. images: their contents, by id."""
        by_uri: dict[str, list[Item]] = {}
        for item in items:
            if item.place:
                by_uri.setdefault(item.place.uri, []).append(item)
        for point in self.points.at(by_uri) if by_uri and self.looks else ():
            for item in (item for place in point.places for item in by_uri.get(place.uri, ())):
                if images[item.id][0] != point.sha256:
                    item.before = point

    def copied(self, item: Item) -> None:
        """A further file of an image that is stored under the item's id."""
        self.note(item.id, replace(item.place, payload=item.payload) if item.place else None)
        self.supersede(item)

    def supersede(self, item: Item) -> None:
        """What lay where a stored item lies does so no longer."""
        if item.place and item.before and item.before.id != item.id:
            self.leave(item.before.id, item.place.uri)

    def succeed(self, old: StoredPoint, new: PointId, place: Place, met: Container[PointId]) -> bool:
        """Before an image is stored in place of another one that lay where it lies: hand the old point over,
        with the vectors and keys that others set, unless files of the old image lie elsewhere, as those of the
        points in `met` do. Whether the point is there now under the new id."""
        if old.id in met or len(old.places) > 1:
            self.leave(old.id, place.uri)
            return False
        self.points.rename(old.id, new, {})
        return True


def _known(places: Iterable[Place]) -> set[tuple[str, Stamp | None]]:
    return {(place.uri, place.stamp) for place in places}


def keeps_own_id(point: StoredPoint) -> bool:
    """Whether a point has an id that the user gave, not one of its content."""
    return point.id != point_id(point.sha256, point.namespace)
