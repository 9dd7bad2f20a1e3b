"""k object vectors into one, in closed form: mean, PCA whitening, generalized max pooling. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.types import Vector

Floats = NDArray[np.floating]


def normalize(x: Floats) -> Vector:
    """Rows of unit length; a zero row stays zero. x: float [..., D]."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


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


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """x -> normalize((x - mean) @ matrix). mean: float32 [D]; matrix: float32 [D, D_out], D_out <= D.

    Columns stand in falling order of variance, so that the first c of them are a whitening to c.
    """

    mean: Vector
    matrix: Vector

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    def __call__(self, x: Floats) -> Vector:
        """x: float [..., D] -> float32 [..., D_out], unit rows."""
        return normalize((np.asarray(x, np.float32) - self.mean) @ self.matrix)

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}, str(path))

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """Raises ConfigError where the file is no whitening."""
        from safetensors.numpy import load_file

        try:
            held = load_file(str(path))
            return cls(held["mean"].astype(np.float32), held["matrix"].astype(np.float32))
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: no whitening there ({error}); make one with `soir calibrate`") from error


def fit_whitening(x: Floats, dim: int | None = None, shrink: float = 0.05) -> Whitening:
    """PCA whitening of rows: W = U (S + shrink * mean(S))^-1/2.

    x: float [n, D], n >= 2 rows, not all equal; dim: columns kept (all); shrink: share of the mean
    eigenvalue added to each, so that directions of little data are not blown up.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ConfigError(f"whitening needs a finite [n, D] array with n >= 2, got shape {x.shape}")
    mean = x.mean(0)
    values, axes = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    if values[0] <= 0:
        raise ConfigError("whitening: all rows are equal; give more varied pictures")
    scale = 1 / np.sqrt(values + shrink * values.mean())
    matrix = (axes * scale)[:, :dim]
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))
