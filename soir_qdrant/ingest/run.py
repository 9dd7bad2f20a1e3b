"""One call of `SoirIngestor.add`: the way of a batch from sources to points."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from soir_qdrant import recipe
from soir_qdrant.errors import SoirError, without_password
from soir_qdrant.geometry.user_objects import fit_objects
from soir_qdrant.images import ReadOptions
from soir_qdrant.ingest.details import Details
from soir_qdrant.ingest.places import Places, keeps_own_id, place_of
from soir_qdrant.ingest.reading import decode_all, decoded, read_all, within_budget
from soir_qdrant.ingest.scenes import scenes_of
from soir_qdrant.ingest.sources import Item
from soir_qdrant.ingest.writing import Writer
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.identity import Place, PointId, check_id, point_id, point_id_of, with_places
from soir_qdrant.qdrant.payload import Origin, build_payload, clean_payload
from soir_qdrant.qdrant.points import Points, StoredPoint
from soir_qdrant.qdrant.schema import as_json
from soir_qdrant.types import Failure, IngestReport, OnExists, Scene, SceneObject

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.qdrant.schema import Quantization


@dataclass(slots=True, eq=False)
class Run:
    """One call of `add`. The main thread asks Qdrant and runs the pipeline; another reads and decodes."""

    store: Store
    pipeline: Callable[[], Pipeline]
    report: IngestReport
    advance: Callable[[int], None]
    on_exists: OnExists
    keep_objects: bool
    quantization: Quantization | None
    details: Details
    reading: ReadOptions
    images: dict[PointId, tuple[str, Place | None]] = field(default_factory=dict)  # content and place, by id
    copies: list[Item] = field(default_factory=list)  # of images that were met before
    lost: dict[PointId, str] = field(default_factory=dict)  # id -> why it is not stored
    existing: dict[PointId, StoredPoint] = field(default_factory=dict)  # of those that are made anew
    replaced: dict[PointId, StoredPoint] = field(default_factory=dict)  # of other images at the same place
    own: dict[PointId, PointId] = field(default_factory=dict)  # ids of contents -> those their files have
    broken: Exception | None = None  # what an iterable of the user's raised
    opened: bool = False
    encoder: str = ""  # short hash of the fingerprint
    writing: dict[PointId, Item] = field(default_factory=dict)  # that were handed to the writer last
    points: Points = field(init=False)
    writer: Writer = field(init=False)
    places: Places = field(init=False)

    def __post_init__(self) -> None:
        self.write_to(Points(self.store))

    def write_to(self, points: Points) -> None:
        """Hand what is made to these."""
        self.points, self.writer, self.places = points, Writer(points), Places(points)

    def all(self, items: Iterator[Item], size: int) -> None:
        """Batch k is written while k+1 is with the models, k+2 is decoded and k+3 has been read."""
        if not (batch := self.take(items, size)):
            return
        self.open()
        pool = ThreadPoolExecutor(1, thread_name_prefix="soir-images")
        try:
            reading = pool.submit(read_all, batch, self.reading)
            decoding: Future[tuple[list[Item], float]] | None = None
            while batch:
                fresh = self.fresh(self.loaded(reading))
                batch = self.take(items, size)
                reading = pool.submit(read_all, batch, self.reading)
                for part in within_budget(fresh, self.reading):
                    following = pool.submit(decode_all, part, self.reading)
                    if decoding is not None:
                        self.process(self.loaded(decoding))
                    decoding = following
            if decoding is not None:
                self.process(self.loaded(decoding))
            self.book()
            self.settle()
            self.places.write(self.lost)
        finally:
            with suppress(Exception):  # another one is under way
                self.book()
            self.settle()
            self.count("store", self.writer.seconds)
            pool.shutdown(wait=False, cancel_futures=True)
            self.writer.close()

    def take(self, items: Iterator[Item], size: int) -> list[Item]:
        """The next items, as far as the user's iterables give them."""
        batch: list[Item] = []
        try:
            for item in itertools.islice(items, size):
                batch.append(item)
        except Exception as error:  # raised at the end, when what came before it is stored
            self.broken = error
        return batch

    def open(self) -> None:
        """Once: make the collection, if need be, and check it."""
        if self.opened:
            return
        dim, fingerprint = self.prepare()
        keep = self.keep_objects or recipe.SCENE in fingerprint  # regions of a whole image are searched
        details, quantization = self.details.chosen, self.quantization
        self.store.create(dim, fingerprint, keep_objects=keep, quantization=quantization, details=details)
        self.opened = True
        self.places.looks = self.store.info is None or self.store.info.points_count != 0

    def open_existing(self) -> None:
        """Check the collection."""
        self.store.open(*self.prepare())

    def prepare(self) -> tuple[int, dict[str, Any]]:
        """Length of vectors, and fingerprint."""
        pipeline = self.pipeline()
        fingerprint = as_json(pipeline.fingerprint)
        self.encoder = recipe.short_hash(fingerprint)
        return pipeline.dim, fingerprint

    def recipes(self, objects: Iterable[SceneObject] | None) -> tuple[str, ...]:
        """Short hashes of all that makes a point; see `Details.recipes`."""
        return self.details.recipes(self.store, self.pipeline(), objects, self.reading.reduce)

    def loaded(self, future: Future[tuple[list[Item], float]]) -> list[Item]:
        """Those that the other thread got through; the rest have failed."""
        items, seconds = future.result()
        self.count("load", seconds)
        for item in items:
            if item.reason is not None:
                self.fail(item, item.reason)
        return [item for item in items if item.reason is None]

    def fresh(self, items: list[Item]) -> list[Item]:
        """Those that are to be stored: with a good id and payload, and not there already."""
        start, earlier = time.perf_counter(), len(self.copies)
        new = [item for item in items if self.identified(item)]
        if self.on_exists != "skip":
            self.places.look_back([*new, *self.copies[earlier:]], self.images)
        for item in new:
            self.keep_id(item)
        stored = self.points.stored([item.id for item in new])
        for item in new:
            self.take_over(item, stored)
        if self.on_exists == "skip":
            self.places.look_back([item for item in new if item.id not in stored], self.images)
            self.report.superseded += sum(item.before is not None for item in new)
        wanted = [item for item in new if item.id not in stored or self.renews(item, stored[item.id])]
        self.existing |= {item.id: stored[item.id] for item in wanted if item.id in stored}
        self.count("store", time.perf_counter() - start)
        return wanted

    def identified(self, item: Item) -> bool:
        """Whether the item is the first of its id in this call, which it then has."""
        sha256 = item.raw.sha256 if item.raw else ""
        try:
            id_ = point_id(sha256, self.store.namespace) if item.id is None else check_id(item.id)
            item.id = self.own.get(id_, id_)
            item.payload = clean_payload(item.payload)
            if item.objects is not None:
                item.objects = list(item.objects)
        except SoirError as error:
            self.fail(item, str(error))
            return False
        except Exception as error:  # such as of an iterable of the user's
            self.fail(item, f"its objects: {type(error).__name__}: {error}")
            return False
        item.recipes = self.recipes(item.objects)
        item.place = place_of(item)
        if item.id not in self.images:
            self.images[item.id], item.first = (sha256, item.place), True
            return True
        if self.images[item.id][0] == sha256:
            item.raw = None
            self.copies.append(item)
        else:
            self.fail(item, f"id {item.id} was given to another image before it: ids must differ")
        return False

    def keep_id(self, item: Item) -> None:
        """An id that the user once gave to this file alone stays, unless it has another one now."""
        point, own = item.before, item.id == point_id(self.images[item.id][0], self.store.namespace)
        alone = point and len(point.places) == 1 and point.id not in self.images
        if point and own and alone and keeps_own_id(point):
            self.images[point.id], self.own[item.id] = self.images.pop(item.id), point.id
            item.id = point.id

    def take_over(self, item: Item, stored: Mapping[PointId, StoredPoint]) -> None:
        """What becomes of the point of another image that lay where this one lies."""
        if item.before and item.id not in stored and item.before.id not in self.images:
            self.replaced[item.id] = item.before
        else:
            self.places.supersede(item)

    def renews(self, item: Item, stored: StoredPoint) -> bool:
        """Whether the point of an image is made anew; one that is not is counted."""
        if stored.namespace != self.store.namespace:
            self.fail(item, f"id {item.id} belongs to the namespace {stored.namespace!r}: give another one")
            return False
        changed = stored.sha256 != self.images[item.id][0]
        stale = stored.recipe not in item.recipes and not (stored.by_user and item.objects is None)
        if self.on_exists == "replace" or (self.on_exists == "update" and (changed or stale)):
            return True
        self.report.changed += changed
        self.report.stale += stale and not changed
        if not changed:
            self.report.relocated += self.places.note(item.id, item.place, stored)
        self.skip()
        return False

    def process(self, items: list[Item]) -> None:
        """Pixels to points, and into Qdrant."""
        ready = []
        for item in items:
            image = decoded(item)
            if image.further and not self.reading.pages:
                self.report.left_out.append(f"{item.name} (further pages or frames)")
            try:
                if item.objects is not None:
                    item.objects = fit_objects(item.objects, image.width, image.height)
                ready.append(item)
            except (SoirError, TypeError) as error:
                self.fail(item, str(error))
        _, patches = self.details.of(self.store, self.pipeline())
        scenes = scenes_of(ready, self.pipeline, self.report.seconds, patches, self.fail)
        points = [point for item, scene in scenes if (point := self.point(item, scene))]
        self.book()
        self.writer.write(points, self.existing)
        self.writing = {item.id: item for item in ready}
        for item in ready:
            item.image = None

    def book(self) -> None:
        """What became of the points that were written last."""
        for point, refusal in self.writer.outcomes():
            id_ = point_id_of(point)
            if refusal is not None:
                self.fail(self.writing[id_], refusal)
                continue
            if self.existing.pop(id_, None) is None and id_ not in self.replaced:
                self.report.added += 1
            else:
                self.report.updated += 1
            self.advance(1)

    def point(self, item: Item, scene: Scene) -> models.PointStruct | None:
        before = self.existing.get(item.id)
        equal = before is not None and before.sha256 == self.images[item.id][0]
        places = with_places([item.place] if item.place else [], before.places if before and equal else [])
        codes, _ = self.details.of(self.store, self.pipeline())
        of_this = item.recipes[0 if decoded(item).full_size is None else -1]
        origin = Origin(self.encoder, of_this, self.store.namespace, codes, item.objects is not None)
        try:
            payload = build_payload(decoded(item), scene, origin, item.payload, places)
            point = self.points.point(item.id, scene, payload)
        except SoirError as error:
            self.fail(item, str(error))
            return None
        replaced = self.replaced.get(item.id)
        if replaced and item.place and self.places.succeed(replaced, item.id, item.place, self.images):
            self.existing[item.id] = replaced
        return point

    def settle(self) -> None:
        """What became of copies: the same as of what they are copies of."""
        for item in self.copies:
            item.id = self.own.get(item.id, item.id)
            if item.id in self.lost:
                self.fail(item, f"the same image as one before it: {self.lost[item.id]}")
                continue
            self.places.note(item.id, self.images[item.id][1])
            self.places.copied(item)
            self.skip()
        self.copies.clear()

    def fail(self, item: Item, reason: str) -> None:
        if item.first:
            self.lost[item.id] = reason
        self.report.failed.append(Failure(without_password(item.name), reason))
        self.advance(1)

    def skip(self) -> None:
        self.report.skipped += 1
        self.advance(1)

    def count(self, stage: str, seconds: float) -> None:
        self.report.seconds[stage] = self.report.seconds.get(stage, 0.0) + seconds
