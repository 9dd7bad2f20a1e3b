"""Fit the whitening on pictures of one's own: no labels, memory bounded by one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soir_qdrant import images as image_io
from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.lab.evaluate.bench import ANNOTATIONS, load
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.whitening import Whitening, adapt, whitening_of
from soir_qdrant.types import LoadedImage, SceneObject

Labelled = tuple[str, image_io.Source, list[SceneObject] | None]

MIN_OBJECTS = 200  # objects below which a covariance of many dimensions means little


def labelled_images(folder: Path) -> Iterator[Labelled]:
    """The pictures of a folder, one at a time; with their labelled objects where it is a NeedleBench."""
    if (folder / ANNOTATIONS).is_file():
        for entry in load(folder).gallery:
            yield entry.file.name, entry.file, labelled(entry)
        return
    for name, source in image_io.iter_sources(folder):
        yield name, source, None


def count_images(folder: Path) -> int:
    """How many `labelled_images` will yield."""
    if (folder / ANNOTATIONS).is_file():
        return len(load(folder).gallery)
    return sum(1 for _ in image_io.iter_sources(folder))


class Moments:
    """Running mean and covariance of rows [n, D], in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: NDArray[np.float64] = np.zeros(0)
        self.square: NDArray[np.float64] = np.zeros(0)

    def add(self, rows: NDArray[np.floating]) -> None:
        x = np.asarray(rows, np.float64)
        if not self.count:
            self._sum, self.square = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        self.count += len(x)
        self._sum += x.sum(0)
        self.square += x.T @ x

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._sum / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        centred = self.square - self.count * np.outer(self.mean, self.mean)
        return np.asarray(centred / (self.count - 1), np.float64)


def calibrate(
    sources: Iterable[Labelled],
    pipeline: Pipeline,
    *,
    dim: int | None = None,
    batch_size: int = 4,
    min_objects: int = MIN_OBJECTS,
    alone: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Whitening, int, list[str]]:
    """Fit a whitening on the objects of many pictures.

    sources: name, picture, and its objects where they are known (None: detected). dim: components kept
    (those of the prior). alone: start from nothing instead of from `Pipeline.prior`; wants many thousand
    objects. Returns the whitening, how many objects it saw, and a line for each picture that could not be
    read. Raises ConfigError where fewer than `min_objects` objects were found.
    """
    moments, bad = Moments(), []
    batch: list[tuple[LoadedImage, list[SceneObject] | None]] = []

    def flush() -> None:
        if batch:
            moments.add(object_rows(pipeline, [b[0] for b in batch], [b[1] for b in batch]))
            batch.clear()

    for name, source, objects in sources:
        try:
            batch.append((image_io.load(source, name=name), objects))
        except ImageError as error:
            bad.append(str(error))
        if len(batch) >= batch_size:
            flush()
        advance()
    flush()
    if moments.count < min_objects:
        raise ConfigError(
            f"{moments.count} objects found, and a whitening needs at least {min_objects}: give more pictures"
        )
    prior = None if alone else pipeline.prior
    if prior is None:
        fitted = whitening_of(moments.mean, moments.covariance, dim, fitted_for=pipeline.whitened)
    else:
        fitted = adapt(prior, moments.mean, moments.covariance, moments.count, dim)
    return fitted, moments.count, bad


def object_rows(
    pipeline: Pipeline, images: list[LoadedImage], objects: list[list[SceneObject] | None]
) -> NDArray[np.float32]:
    """The rows of all objects of some images before whitening, float32 [K, F]; the faint ones as clear ones are
    described, since a projection is of all features."""
    clear = [[replace(item, score=1.0) for item in items] for items in pipeline.find(images, objects)]
    return pipeline.features(pipeline.encode(pipeline.crops([image.rgb for image in images], clear)))
