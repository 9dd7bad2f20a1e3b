"""Fit the projection that ships: what the same thing looks like twice, learnt from labelled folders.

Each thing is seen as the ingestor will see it: under its true mask, under the segmenter's mask from a box
that sits about as well as a detector's, in several scenes, and as the query sees it. What differs between
those views is noise, and is divided out (`refine.pooling.fit_discriminative`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from soir_qdrant import images as pictures
from soir_qdrant.calibrate import Moments
from soir_qdrant.errors import ConfigError
from soir_qdrant.evaluate.bench import Bench
from soir_qdrant.evaluate.collect import labelled
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.refine.pooling import Whitening, fit_discriminative
from soir_qdrant.types import Box, LoadedImage, SceneObject, Vector

JITTER = 0.07  # standard deviation of a box's sides, as a share of its width or height


class Scatter:
    """Running scatter of rows [n, F] that carry names: within names, and in all. Memory: names x F."""

    def __init__(self) -> None:
        self.all = Moments()
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}

    def add(self, rows: Vector, names: Sequence[str]) -> None:
        self.all.add(rows)
        for row, name in zip(rows.astype(np.float64), names, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + row
            self._counts[name] = self._counts.get(name, 0) + 1

    @property
    def things(self) -> int:
        """How many names were seen."""
        return len(self._sums)

    @property
    def within(self) -> NDArray[np.float64]:
        """Covariance about each name's mean, [F, F]."""
        spare = self.all.count - self.things
        if spare < 1:
            raise ConfigError("no thing was seen twice: a projection is learnt from things that come again")
        counts = np.array(list(self._counts.values()), np.float64)
        sums = np.stack(list(self._sums.values())) / np.sqrt(counts)[:, None]
        return np.asarray((self.all.square - sums.T @ sums) / spare, np.float64)


def fit(
    benches: Sequence[Bench],
    pipeline: Pipeline,
    *,
    dim: int = 1024,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Whitening, Scatter]:
    """The projection to `dim` components, and what it was fitted on; objects of no instance are left out."""
    scatter, rng = Scatter(), np.random.default_rng(seed)
    for bench in benches:
        for entry in bench.gallery:
            image, objects = pictures.load(entry.file), labelled(entry)
            keep = [i for i, item in enumerate(entry.objects) if item.instance]
            names = [str(entry.objects[i].instance) for i in keep]
            if keep:
                given = [objects[i] for i in keep]
                noisy = [SceneObject(jittered(item.box, image, rng)) for item in given]
                for items in (given, pipeline.segment(image.rgb, noisy)):
                    scatter.add(_rows(pipeline, image, items), names)
            advance()
        for query in bench.queries:
            image = pictures.load(query.file)
            scatter.add(
                pipeline.query_row(image.rgb, box=query.box, mask=image.alpha)[None], [query.instance]
            )
            advance()
    made = fit_discriminative(
        scatter.within, scatter.all.covariance, scatter.all.mean, dim, fitted_for=pipeline.whitened
    )
    return made, scatter


def _rows(pipeline: Pipeline, image: LoadedImage, items: list[SceneObject]) -> Vector:
    crops, masks = pipeline.crops([image.rgb], [items])
    return pipeline.features(pipeline.encoder.encode(crops, masks))


def jittered(box: Box, image: LoadedImage, rng: np.random.Generator, by: float = JITTER) -> Box:
    """A box whose sides are off by `by` of its width or height (a standard deviation), inside the image."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    a, b, c, d = rng.normal(0, by, 4) * (w, h, w, h)
    x0, y0 = max(0.0, x0 + a), max(0.0, y0 + b)
    return x0, y0, min(float(image.width), max(x1 + c, x0 + 8)), min(float(image.height), max(y1 + d, y0 + 8))
