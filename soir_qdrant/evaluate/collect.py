"""One pass over a labelled folder: what every method of `soir evaluate` needs, and nothing larger.

The ingestor itself makes the pass, with a pipeline that also keeps each object's rows. So `default` is
what the ingestor stores, and the other methods see the same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from soir_qdrant import images as pictures
from soir_qdrant.config import Settings
from soir_qdrant.errors import DatasetError
from soir_qdrant.evaluate.bench import Bench, GalleryImage
from soir_qdrant.evaluate.searched import Found, asking
from soir_qdrant.ingest import SoirIngestor
from soir_qdrant.objects import clip_box
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.search import SoirSearcher
from soir_qdrant.types import RGB, Box, Encoding, LoadedImage, Mask, Scene, SceneObject, Vector
from soir_qdrant.vision.crops import whole_box

PLAIN = ("global", "mean", "paper")  # methods of plain crops: no masks, no whitening
COLLECTION = "evaluate"


@dataclass(slots=True)
class Seen:
    """Of the gallery, in order: rows float32 [K, F] before whitening and objects of each image; vectors
    [D] of the plain methods. Of the queries: vectors, rows and plain descriptors. found: what was searched
    through Qdrant, by method."""

    rows: list[Vector] = field(default_factory=list)
    objects: list[tuple[SceneObject, ...]] = field(default_factory=list)
    plain: dict[str, list[Vector]] = field(default_factory=dict)
    query_vectors: list[Vector] = field(default_factory=list)
    query_rows: list[Vector] = field(default_factory=list)
    query_plain: list[Vector] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)


class RecordingPipeline(Pipeline):
    """The pipeline of `settings`, which also records into `seen`."""

    def __init__(self, settings: Settings, methods: tuple[str, ...]) -> None:
        super().__init__(settings)
        self.seen = Seen()
        self.methods = methods
        self._last: Vector = np.zeros((0, 0), np.float32)

    def features(self, encoding: Encoding) -> Vector:
        self._last = super().features(encoding)
        return self._last

    def scenes(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> list[Scene]:
        found = super().scenes(images, objects, seconds)
        ends = np.cumsum([len(scene.objects) for scene in found])
        self.seen.rows += np.split(self._last, ends[:-1])
        self.seen.objects += [tuple(replace(o, mask=None) for o in scene.objects) for scene in found]
        for image, scene in zip(images, found, strict=True):
            for method, vector in self._plain(image.rgb, scene.objects).items():
                self.seen.plain.setdefault(method, []).append(vector)
        return found

    def _plain(self, image: RGB, objects: tuple[SceneObject, ...]) -> dict[str, Vector]:
        out: dict[str, Vector] = {}
        if "global" in self.methods:
            out["global"] = self.plain(whole_crop(self, image))[0]
        if {"mean", "paper"} & set(self.methods):
            crops, masks = self.as_paper.crops([image], [list(objects)])
            encoding = self.encoder.encode(crops)
            scene_of, ones = np.zeros(len(crops), np.int64), np.ones(len(crops), np.float32)
            if "mean" in self.methods:
                rows = self.as_paper.describe(encoding)
                out["mean"] = self.as_mean.pool(rows, scene_of, ones, encoding, masks)[0]
            if "paper" in self.methods:
                out["paper"] = self.as_paper.pool(encoding.descriptor, scene_of, ones, encoding, masks)[0]
        return out

    def plain(self, crops: NDArray[np.uint8]) -> Vector:
        """The encoder's own descriptor of crops, unit rows."""
        return self.as_paper.describe(self.encoder.encode(crops))

    @property
    def as_paper(self) -> Pipeline:
        """The paper's crops and refinement on this encoder."""
        paper = Settings.for_profile("paper")
        return Pipeline(
            self.settings.but(crop=paper.crop.model_dump(), vector=paper.vector.model_dump()),
            encoder=self.encoder,
        )

    @property
    def as_mean(self) -> Pipeline:
        return Pipeline(self.as_paper.settings.but(vector={"pooling": "mean"}), encoder=self.encoder)


def collect(
    bench: Bench, settings: Settings, methods: tuple[str, ...], given: bool, advance: Callable[[], None]
) -> Seen:
    """Ingest the gallery into embedded Qdrant in memory, search every query, and return what was seen.

    given: use the labelled boxes and masks instead of the detector. advance: called once per picture.
    """
    pipeline = RecordingPipeline(settings, tuple(methods))
    client = QdrantClient(":memory:")

    def files() -> Iterator[str]:
        for entry in bench.gallery:
            yield str(entry.file)
            advance()

    keep = "rerank-objects" in methods
    report = SoirIngestor(client, COLLECTION, pipeline=pipeline, keep_objects=keep).add(
        files(),
        ids=range(len(bench.gallery)),
        objects=(labelled(entry) for entry in bench.gallery) if given else None,
        batch_size=4,
        progress=False,
    )
    if report.failed or report.skipped:
        first = report.failed[0] if report.failed else None
        reason = f"{first.name}: {first.reason}" if first else "the same picture stands in the gallery twice"
        raise DatasetError(f"{bench.root}: the gallery could not be ingested whole ({reason})")
    searcher = SoirSearcher(client, COLLECTION, pipeline=pipeline)
    with asking(searcher, methods, len(bench.gallery)) as asked:
        for query in bench.queries:
            image = pictures.load(query.file)
            vector = pipeline.query(image.rgb, box=query.box, mask=image.alpha)
            pipeline.seen.query_rows.append(pipeline._last[0])
            pipeline.seen.query_vectors.append(vector)
            if set(PLAIN) & set(methods):
                seen = image.rgb if query.box is None else cut(image.rgb, query.box)
                pipeline.seen.query_plain.append(pipeline.plain(whole_crop(pipeline, seen))[0])
            asked.ask(query, vector)
            advance()
    pipeline.seen.found = asked.found
    return pipeline.seen


def labelled(entry: GalleryImage) -> list[SceneObject]:
    """The labelled objects of a scene, with their masks, of the whole picture."""
    masks: Sequence[Mask | None] = entry.masks() or [None] * len(entry.objects)
    return [SceneObject(item.box, mask) for item, mask in zip(entry.objects, masks, strict=True)]


def cut(image: RGB, box: Box) -> RGB:
    """The pixels of the box, rounded outwards."""
    x0, y0, x1, y1 = whole_box(clip_box(box, image.shape[1], image.shape[0]), image.shape[1], image.shape[0])
    return image[y0:y1, x0:x1]


def whole_crop(pipeline: Pipeline, image: RGB) -> NDArray[np.uint8]:
    """The whole picture, squeezed into one crop, uint8 [1, S, S, 3]."""
    import cv2

    size = pipeline.encoder.input_size
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))[None]
