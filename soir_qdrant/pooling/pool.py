"""k object vectors into one, in closed form: mean and generalized max pooling. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import VectorSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.types import Vector

Floats = NDArray[np.floating]


def normalize(x: Floats) -> Vector:
    """Rows of unit length; a zero row stays zero. x: float [..., D]."""
    x = np.asarray(x, np.float32)
    unit: Vector = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return unit


def mean_pool(vectors: Floats, weights: Floats | None = None) -> Vector:
    """The (weighted) mean of unit rows, at unit length. vectors: float [k, D], k >= 1; weights: float [k]."""
    rows = normalize(vectors)
    weights = np.ones(len(rows), np.float32) if weights is None else np.asarray(weights, np.float32)
    return normalize(weights @ rows)


def generalized_max_pool(vectors: Floats, ridge: float = 1.0, weights: Floats | None = None) -> Vector:
    """One vector that is about equally similar to every row, so that frequent ones drown no rare one.

    v = V^T (V V^T + ridge I)^-1 w at unit length (Murray & Perronnin 2014). vectors: float [k, D], k >= 1;
    weights w: float [k], the similarity each row is to get (1). A large ridge tends to the mean.
    """
    if ridge <= 0:
        raise ConfigError(f"ridge {ridge}: must be positive")
    rows = normalize(vectors).astype(np.float64)
    target = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    dual = np.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), target)
    return normalize(rows.T @ dual)


def pool_scenes(
    vectors: Vector, scene_of: NDArray[np.int64], scores: NDArray[np.float32], settings: VectorSettings
) -> Vector:
    """One vector per scene, float32 [S, D], unit rows: of the pooling "gmp" or "mean", or, where crops were refined
    each by itself, their plain mean.

    Args:
        vectors: float32 [K, D], of the objects of all scenes.
        scene_of: int [K], 0..S-1, ascending.
        scores: float32 [K], 0..1, which objects weigh with in "gmp" and "mean", to the power of `by_score`; where
            all of a scene's are 0, its objects weigh the same.
        settings: pooling, ridge, by_score.
    """
    pooled = []
    for i in range(int(scene_of[-1]) + 1 if len(scene_of) else 0):
        rows, weights = vectors[scene_of == i], scores[scene_of == i] ** settings.by_score
        if not weights.any():
            weights = np.ones_like(weights)
        if settings.pooling == "gmp":
            pooled.append(generalized_max_pool(rows, settings.ridge, weights))
        else:
            pooled.append(mean_pool(rows, weights if settings.pooling == "mean" else None))
    return np.stack(pooled)
