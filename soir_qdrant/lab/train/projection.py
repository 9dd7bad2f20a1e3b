"""Fit the projection that ships: what the same thing looks like twice, learnt from labelled folders.

Each thing is seen as the ingestor will see it: under its true mask, under the segmenter's mask from a box
that sits about as well as a detector's, in several scenes, and as the query sees it. What differs between
those views is noise, and is divided out (`pooling.whitening.fit_discriminative`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.lab.calibrate import Moments
from soir_qdrant.lab.train.tail import Tail
from soir_qdrant.lab.train.views import Views
from soir_qdrant.pooling.whitening import Whitening, divided_further, fit_discriminative
from soir_qdrant.types import Vector

BATCH = 64


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


@torch.no_grad()
def fit(
    folders: Sequence[Views],
    tail: Tail,
    *,
    fitted_for: str,
    dim: int = 1024,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Whitening, Scatter]:
    """The projection to `dim` components, and what it was fitted on. tail: the blocks that the views enter.
    advance: called once a folder."""
    scatter = _scatter(folders, tail, lambda rows: rows, advance)
    fitted = fit_discriminative(
        scatter.within, scatter.all.covariance, scatter.all.mean, dim, fitted_for=fitted_for
    )
    return fitted, scatter


@torch.no_grad()
def go_on(
    folders: Sequence[Views],
    tail: Tail,
    start: Whitening,
    *,
    weight: float = 1.0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Whitening, Scatter]:
    """A projection that was fitted elsewhere, with what differs between these views divided out of it too: few things
    are enough. weight: see `divided_further`; the rest as in `fit`."""
    scatter = _scatter(folders, tail, start, advance)
    return divided_further(start, scatter.within, weight), scatter


def _scatter(
    folders: Sequence[Views], tail: Tail, project: Callable[[Vector], Vector], advance: Callable[[], None]
) -> Scatter:
    scatter = Scatter()
    for part in folders:
        for i in range(0, len(part), BATCH):
            rows = range(i, min(i + BATCH, len(part)))
            features = tail.of(part.take(rows))
            scatter.add(project(features.cpu().numpy()), part.things[rows].tolist())
        advance()
    return scatter
