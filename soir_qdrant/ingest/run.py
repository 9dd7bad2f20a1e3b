"""One call of `SoirIngestor.add`: the way of a batch from sources to points."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from soir_qdrant import recipe
from soir_qdrant.errors import CollectionError, ConfigError, ImageError, ServerError, SoirError, WeightsError
from soir_qdrant.geometry.user_objects import fit_objects
from soir_qdrant.images import decode, read
from soir_qdrant.ingest.sources import Item
from soir_qdrant.qdrant.payload import PointId, build_payload, check_id, clean_payload, point_id
from soir_qdrant.qdrant.points import Points, StoredPoint, point_id_of
from soir_qdrant.qdrant.schema import as_json
from soir_qdrant.types import Failure, IngestReport, LoadedImage, OnExists, Scene

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.qdrant.schema import Quantization
from soir_qdrant.qdrant.collection import Store

log = logging.getLogger(__name__)
_FATAL = (WeightsError, ConfigError, CollectionError, ServerError)  # would come back for every image


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
    object_codes: int
    object_patches: bool
    max_pixels: int
    seen: dict[PointId, str] = field(default_factory=dict)  # id -> sha256 of what this call has met
    copies: list[Item] = field(default_factory=list)  # of images that were met before
    lost: dict[PointId, str] = field(default_factory=dict)  # id -> why it is not stored
    existing: dict[PointId, StoredPoint] = field(default_factory=dict)  # of those that are made anew
    encoder: str = ""  # short hash of the fingerprint
    recipe: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline

    def all(self, items: Iterator[Item], size: int) -> None:
        """Batch k is stored while k+1 is decoded; k+2 has been read, so that what is stored already need not
        be decoded."""
        batch = list(itertools.islice(items, size))
        if not batch:
            return
        self.open()
        pool = ThreadPoolExecutor(1, thread_name_prefix="soir-images")
        try:
            reading = pool.submit(self.read, batch)
            decoding: Future[tuple[list[Item], float]] | None = None
            while batch:
                fresh = self.fresh(self.loaded(reading))
                following = pool.submit(self.decode, fresh)
                batch = list(itertools.islice(items, size))
                reading = pool.submit(self.read, batch)
                if decoding is not None:
                    self.process(self.loaded(decoding))
                decoding = following
            if decoding is not None:
                self.process(self.loaded(decoding))
        finally:
            self.settle()
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def points(self) -> Points:
        return Points(self.store)

    def open(self) -> None:
        pipeline = self.pipeline()
        fingerprint = as_json(pipeline.fingerprint)
        self.store.create(
            pipeline.dim, fingerprint, keep_objects=self.keep_objects, quantization=self.quantization
        )
        self.encoder = recipe.short_hash(fingerprint)
        self.recipe = pipeline.recipe

    # In the other thread: nothing but files and pixels. The seconds come back with the items.

    def read(self, items: list[Item]) -> tuple[list[Item], float]:
        """Bytes and content hashes."""

        def one(item: Item) -> None:
            source, item.source = item.source, None  # let go of what is not needed any longer
            item.raw = read(source, name=item.name, max_pixels=self.max_pixels)

        return _each(items, one)

    def decode(self, items: list[Item]) -> tuple[list[Item], float]:
        """Pixels."""

        def one(item: Item) -> None:
            raw, item.raw = item.raw, None
            if raw is not None:
                item.image = decode(raw, max_pixels=self.max_pixels)

        return _each(items, one)

    # In the main thread.

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
        start = time.perf_counter()
        new = []
        for item in items:
            sha256 = item.raw.sha256 if item.raw else ""
            try:
                item.id = point_id(sha256) if item.id is None else check_id(item.id)
                item.payload = clean_payload(item.payload)
                if item.objects is not None:
                    item.objects = list(item.objects)
            except (SoirError, TypeError) as error:
                self.fail(item, str(error))
                continue
            item.recipe = recipe.of_point(
                self.recipe, codes=self.object_codes, patches=self.object_patches, objects=item.objects
            )
            if item.id not in self.seen:
                self.seen[item.id], item.first = sha256, True
                new.append(item)
            elif self.seen[item.id] == sha256:
                item.raw = None
                self.copies.append(item)
            else:
                self.fail(item, f"id {item.id} was given to another image before it: ids must differ")
        stored = self.points.stored([item.id for item in new])
        wanted = [item for item in new if item.id not in stored or self.renews(item, stored[item.id])]
        self.existing |= {item.id: stored[item.id] for item in wanted if item.id in stored}
        self.count("store", time.perf_counter() - start)
        return wanted

    def renews(self, item: Item, stored: StoredPoint) -> bool:
        """Whether the point of an image is made anew; one that is not is counted."""
        changed = stored.sha256 != self.seen[item.id]
        stale = stored.recipe != item.recipe
        if self.on_exists == "replace" or (self.on_exists == "update" and (changed or stale)):
            return True
        self.report.changed += changed
        self.report.stale += stale and not changed
        self.skip()
        return False

    def process(self, items: list[Item]) -> None:
        """Pixels to points, and into Qdrant."""
        ready = []
        for item in items:
            image = _decoded(item)
            try:
                if item.objects is not None:
                    item.objects = fit_objects(item.objects, image.width, image.height)
                ready.append(item)
            except (SoirError, TypeError) as error:
                self.fail(item, str(error))
        made = {item.id: (item, scene) for item, scene in self.scenes(ready)}
        start = time.perf_counter()
        points = [point for item, scene in made.values() if (point := self.point(item, scene))]
        for point, refusal in self.points.write(points, self.existing):
            id_ = point_id_of(point)
            if refusal is not None:
                self.fail(made[id_][0], refusal)
                continue
            if self.existing.pop(id_, None) is None:
                self.report.added += 1
            else:
                self.report.updated += 1
            self.advance(1)
        self.count("store", time.perf_counter() - start)

    def point(self, item: Item, scene: Scene) -> models.PointStruct | None:
        try:
            payload = build_payload(
                _decoded(item), scene, self.encoder, item.payload, self.object_codes, item.recipe
            )
            return self.points.point(item.id, scene, payload)
        except SoirError as error:
            self.fail(item, str(error))
            return None

    def scenes(self, items: list[Item]) -> list[tuple[Item, Scene]]:
        """The batch at once; if that fails, image by image, so that only the one at fault is lost."""
        if not items:
            return []
        try:
            images = [_decoded(item) for item in items]
            objects = [item.objects for item in items]
            options = {"patches": True} if self.object_patches else {}
            found = self.pipeline().scenes(images, objects, self.report.seconds, **options)
            return list(zip(items, found, strict=True))
        except _FATAL:
            raise
        except Exception as error:  # whatever a model says to one odd image must not stop the others
            if len(items) > 1:
                return [pair for item in items for pair in self.scenes([item])]
            log.info("%s failed", items[0].name, exc_info=True)
            kind = "" if isinstance(error, SoirError) else f"{type(error).__name__}: "
            self.fail(items[0], f"{kind}{error}")
            return []

    def settle(self) -> None:
        """What became of copies: the same as of what they are copies of."""
        for item in self.copies:
            if item.id in self.lost:
                self.fail(item, f"the same image as one before it: {self.lost[item.id]}")
            else:
                self.skip()
        self.copies.clear()

    def fail(self, item: Item, reason: str) -> None:
        if item.first:
            self.lost[item.id] = reason
        self.report.failed.append(Failure(item.name, reason))
        self.advance(1)

    def skip(self) -> None:
        self.report.skipped += 1
        self.advance(1)

    def count(self, stage: str, seconds: float) -> None:
        self.report.seconds[stage] = self.report.seconds.get(stage, 0.0) + seconds


def _each(items: list[Item], action: Callable[[Item], None]) -> tuple[list[Item], float]:
    start = time.perf_counter()
    for item in items:
        if item.reason is None:
            try:
                action(item)
            except ImageError as error:
                item.reason = str(error)
            except Exception as error:  # no odd file may stop the others
                item.reason = f"{item.name}: {type(error).__name__}: {error}"
    return items, time.perf_counter() - start


def _decoded(item: Item) -> LoadedImage:
    if item.image is None:
        raise ImageError(f"{item.name} was not decoded")
    return item.image
