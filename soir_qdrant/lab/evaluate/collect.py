"""One pass over a labelled folder: what every row of `soir evaluate` needs, and nothing larger.

The ingestor itself makes the pass, with a pipeline that also keeps each object's rows. So `default` is
what the ingestor stores, and the other rows see the same objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from soir_qdrant import images as image_io
from soir_qdrant.config import Settings
from soir_qdrant.errors import DatasetError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.evaluate.cache import Entry, SceneCache, recipe_of
from soir_qdrant.lab.evaluate.plain_rows import OF_PAPER, PLAIN, PlainRows
from soir_qdrant.lab.evaluate.searched import SearchResults, asking
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import RGB, Box, Encoding, LoadedImage, Mask, QueryLook, Scene, SceneObject, Vector

if TYPE_CHECKING:
    from soir_qdrant.serving.runtime import Runtime

COLLECTION = "evaluate"
BATCH = 4  # images ingested at once: what a kill loses at most


@dataclass(slots=True)
class Collected:
    """Of the gallery, in order: rows float32 [K, F] before whitening, objects and core-seconds of each image;
    vectors [D] of the plain rows. Of the queries: vectors, rows and, by plain row, descriptors. encoders: of
    rows that have one of their own. searches: what was searched through Qdrant, by row."""

    rows: list[Vector] = field(default_factory=list)
    objects: list[tuple[SceneObject, ...]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    plain: dict[str, list[Vector]] = field(default_factory=dict)
    query_vectors: list[Vector] = field(default_factory=list)
    query_rows: list[Vector] = field(default_factory=list)
    query_plain: dict[str, list[Vector]] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)
    searches: dict[str, SearchResults] = field(default_factory=dict)


class RecordingPipeline(Pipeline):
    """The pipeline of `settings`, which also records into `collected`.

    rows: of `soir evaluate`. runtime: where the models run, None is here. cache: a folder that keeps each image's
    part; what is there already is not computed again. advance: called once per image.
    """

    def __init__(
        self,
        settings: Settings,
        rows: Sequence[str],
        *,
        runtime: Runtime | None = None,
        cache: Path | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(settings, **(runtime.parts(settings) if runtime else {}))
        self._place = {"runtime": runtime.place} if runtime else {}
        self.collected = Collected()
        self.plain_rows = [name for name in PLAIN if name in rows]
        self.advance = advance
        self._cache = cache
        self._last: Vector = np.zeros((0, 0), np.float32)
        self.last_query: Vector = np.zeros(0, np.float32)
        self.plain = PlainRows(self)

    def describe(
        self,
        encoding: Encoding,
        masks: NDArray[np.float32] | None = None,
        scene_of: NDArray[np.int64] | None = None,
    ) -> Vector:
        self._last = self.features(encoding)
        return super().describe(encoding, masks, scene_of)

    def query_look(
        self, image: RGB, *, box: Box | None = None, mask: Mask | None = None, patches: bool = False
    ) -> QueryLook:
        look = super().query_look(image, box=box, mask=mask, patches=patches)
        self.last_query = look.row
        return look

    @cached_property
    def cache(self) -> SceneCache:
        return SceneCache(self._cache, recipe_of(self) | self._place if self._cache else None)

    def scenes(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None] | None = None,
        seconds: dict[str, float] | None = None,
        *,
        patches: bool = False,
    ) -> list[Scene]:
        labels = objects or [None] * len(images)
        stored = [
            self.cache.entry(image, items, patches=patches)
            for image, items in zip(images, labels, strict=True)
        ]
        fresh = [i for i, entry in enumerate(stored) if entry is None]
        computed = iter(
            self._computed([images[i] for i in fresh], [labels[i] for i in fresh], seconds, patches=patches)
        )
        scenes = []
        for image, items, old in zip(images, labels, stored, strict=True):
            entry = old or next(computed)
            missing = [name for name in self.plain_rows if name not in entry.plain]
            entry.plain |= self.plain.image(image.rgb, entry.scene.objects, missing)
            if old is None or missing:
                self.cache.add(image, items, entry)
            self._record(entry)
            scenes.append(entry.scene)
        return scenes

    def _computed(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None],
        seconds: dict[str, float] | None,
        *,
        patches: bool,
    ) -> list[Entry]:
        if not images:
            return []
        self._last = np.zeros((0, 0), np.float32)
        start = time.process_time()
        scenes = super().scenes(images, objects, seconds, patches=patches)
        spent = (time.process_time() - start) / len(images)
        ends = np.cumsum([len(scene.objects) for scene in scenes])
        if len(self._last) != ends[-1]:  # a scene encoder described them: its vectors are all there is
            return [Entry(scene, scene.object_vectors, spent) for scene in scenes]
        features = np.split(self._last, ends[:-1])
        return [Entry(scene, rows, spent) for scene, rows in zip(scenes, features, strict=True)]

    def _record(self, entry: Entry) -> None:
        self.collected.rows.append(entry.features)
        self.collected.objects.append(tuple(replace(item, mask=None) for item in entry.scene.objects))
        self.collected.seconds.append(entry.seconds)
        for name in self.plain_rows:
            self.collected.plain.setdefault(name, []).append(entry.plain[name])
        self.advance()


def collect(
    bench: Bench,
    settings: Settings,
    rows: Sequence[str],
    labelled_objects: bool,
    advance: Callable[[], None] = lambda: None,
    *,
    cache: Path | None = None,
    runtime: Runtime | None = None,
) -> Collected:
    """Ingest the gallery into embedded Qdrant in memory, search every query, and return what was collected.

    Args:
        bench: the labelled folder.
        settings: of the pipeline.
        rows: names of `soir evaluate`'s rows.
        labelled_objects: use the labelled boxes and masks instead of the detector.
        advance: called once per image.
        cache: folder that keeps what was ingested of each image.
        runtime: where the models run; None is here.

    Raises:
        DatasetError: an image of the gallery could not be ingested.
    """
    pipeline = RecordingPipeline(settings, rows, runtime=runtime, cache=cache, advance=advance)
    client = QdrantClient(":memory:")
    _ingest(bench, client, pipeline, rows, labelled_objects)
    searcher = SoirSearcher(client, COLLECTION, pipeline=pipeline)
    with asking(searcher, rows, len(bench.gallery)) as session:
        for query in bench.queries:
            image = image_io.load(query.file)
            vector = pipeline.query(image.rgb, box=query.box, mask=image.alpha)
            pipeline.collected.query_rows.append(pipeline.last_query)
            pipeline.collected.query_vectors.append(vector)
            plain = pipeline.plain.query(image.rgb, pipeline.plain_rows, box=query.box, mask=image.alpha)
            for name, descriptor in plain.items():
                pipeline.collected.query_plain.setdefault(name, []).append(descriptor)
            session.ask(query, vector)
            advance()
    pipeline.collected.searches = session.searches
    for name in OF_PAPER:
        if name in rows:
            pipeline.collected.encoders[name] = pipeline.plain.paper.encoder.name
    return pipeline.collected


def _ingest(
    bench: Bench,
    client: QdrantClient,
    pipeline: RecordingPipeline,
    rows: Sequence[str],
    labelled_objects: bool,
) -> None:
    """The gallery into a collection. Raises DatasetError where an image is not stored."""
    report = SoirIngestor(
        client,
        COLLECTION,
        pipeline=pipeline,
        keep_objects="rerank-objects" in rows,
        object_patches=None if "search" in rows else False,
    ).add(
        [str(entry.file) for entry in bench.gallery],
        ids=range(len(bench.gallery)),
        objects=map(_objects, bench.gallery) if labelled_objects else None,
        batch_size=BATCH,
        progress=False,
    )
    if report.failed or report.skipped:
        first = report.failed[0] if report.failed else None
        reason = f"{first.name}: {first.reason}" if first else "the same picture stands in the gallery twice"
        raise DatasetError(f"{bench.root}: the gallery could not be ingested whole ({reason})")


def _objects(entry: GalleryImage) -> list[SceneObject] | None:
    """Those of `labelled`; None, what is detected, where nothing is labelled and things may be."""
    return labelled(entry) if entry.objects or entry.exhaustive else None


def labelled(entry: GalleryImage) -> list[SceneObject]:
    """The labelled objects of a scene, with their masks, of the whole picture."""
    masks: Sequence[Mask | None] = entry.masks() or [None] * len(entry.objects)
    return [SceneObject(item.box, mask) for item, mask in zip(entry.objects, masks, strict=True)]
