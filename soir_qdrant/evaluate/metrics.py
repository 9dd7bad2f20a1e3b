"""Retrieval metrics. All in percent, 0..100, but for detection recall, 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.types import Box
from soir_qdrant.vision.boxes import intersection_over_union

Bools = NDArray[np.bool_]


def average_precision(ranked: Bools, relevant: int | None = None) -> float:
    """Mean precision at each relevant rank, over ALL relevant images: one that was not retrieved counts 0.

    ranked: bool [n], best first. relevant: how many there are (those in `ranked`); 0 gives 0.
    """
    total = int(ranked.sum()) if relevant is None else relevant
    ranks = np.flatnonzero(ranked) + 1
    return float(100 * (np.arange(1, len(ranks) + 1) / ranks).sum() / total) if total else 0.0


def recall_at(ranked: Bools, k: int) -> float:
    """100 where at least one relevant image is among the first k, else 0. ranked: bool [n], best first."""
    return 100.0 * bool(ranked[:k].any())


def chance_precision(relevant: int, n: int) -> float:
    """Expected average precision of a random order of n images of which `relevant` >= 1 are right."""
    if n == 1:
        return 100.0
    ranks = np.arange(1, n + 1)
    return float(100 / n * ((1 + (ranks - 1) * (relevant - 1) / (n - 1)) / ranks).sum())


def chance_recall(relevant: int, n: int, k: int) -> float:
    """Expected `recall_at` k of a random order."""
    draws = np.arange(min(k, n))
    return float(100 * (1 - np.prod(np.maximum(n - relevant - draws, 0) / (n - draws))))


def ranking(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Indices by falling score; equal scores in rising index, so that the order is the same every time."""
    return np.argsort(-np.asarray(scores), kind="stable")


def placed(box: Box | None, true: Sequence[Box]) -> bool:
    """Whether a box lies on one of some true ones, IoU >= 0.5."""
    told = np.array([box] if box else np.zeros((0, 4)), np.float32)
    return bool(intersection_over_union(told, np.array(true, np.float32)).max(initial=0) >= 0.5)
