"""The projection that whitens object vectors: PCA, or fitted to tell things apart. NumPy only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.models import artifacts
from soir_qdrant.pooling.pool import Floats, normalize
from soir_qdrant.types import Vector

PRIOR = 5000.0  # rows that a whitening counts for when it is adapted; see docs/lab/decisions.md


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """x -> normalize((x - mean) @ matrix). mean: float32 [D]; matrix: float32 [D, D_out], D_out <= D.

    Columns stand in descending order of variance, so that the first c of them are a whitening to c; where there are
    parts, those of each part do, and how parts take turns was chosen.
    variance: float32 [D_out], of each column over the rows it was fitted on, before normalising.
    fitted_for: names those rows, so that it is not applied to others.
    lengths: float32 [D_out]; columns of one length are a part of the vector, which is normalised by itself to that
    length before all are. None: there are no parts.
    """

    mean: Vector
    matrix: Vector
    variance: Vector
    fitted_for: str = ""
    lengths: Vector | None = None

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    def __call__(self, x: Floats) -> Vector:
        """x: float [..., D] -> float32 [..., D_out], unit rows. A zero in x stands for what was not read, such as the
        texture of a faint object, and counts as the mean."""
        x = np.asarray(x, np.float32)
        rows = np.where(x == 0, np.float32(0), x - self.mean) @ self.matrix
        for columns, length in self.parts if self.lengths is not None else ():
            rows[..., columns] = normalize(rows[..., columns]) * length
        return normalize(rows)

    @property
    def parts(self) -> list[tuple[NDArray[np.bool_], np.float32]]:
        """Columns of each part, bool [D_out], and its length; all columns where there are no parts."""
        lengths = np.ones(self.dim, np.float32) if self.lengths is None else self.lengths
        return [(lengths == length, length) for length in np.unique(lengths)]

    def truncated(self, dim: int | None) -> Whitening:
        """The whitening to the first `dim` components; None keeps all."""
        if dim is not None and dim > self.dim:
            raise ConfigError(f"vector.dim {dim}: the whitening has {self.dim} components")
        lengths = None if self.lengths is None else self.lengths[:dim]
        return Whitening(self.mean, self.matrix[:, :dim], self.variance[:dim], self.fitted_for, lengths)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name its content."""
        lengths = b"" if self.lengths is None else self.lengths.tobytes()
        content = self.mean.tobytes() + np.ascontiguousarray(self.matrix).tobytes() + lengths
        return hashlib.sha256(content).hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        arrays: dict[str, NDArray[Any]] = {
            "mean": self.mean,
            "matrix": self.matrix.astype(np.float16),
            "variance": self.variance,
        }
        if self.lengths is not None:
            arrays["lengths"] = self.lengths
        artifacts.save(path, arrays, fitted_for=self.fitted_for)

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """Raises ConfigError where the file is missing or no whitening."""
        arrays, about = artifacts.load(path, "whitening", "soir calibrate", "mean", "matrix", "variance")
        mean, matrix = arrays["mean"].astype(np.float32), arrays["matrix"].astype(np.float32)
        return cls(mean, matrix, arrays["variance"], about["fitted_for"], arrays.get("lengths"))


def fit_whitening(x: Floats, dim: int | None = None, shrink: float = 0.1, fitted_for: str = "") -> Whitening:
    """PCA whitening of rows, float [n, D], n >= 2, not all equal. See `whitening_of`."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ConfigError(f"whitening needs a finite [n, D] array with n >= 2, got shape {x.shape}")
    return whitening_of(x.mean(0), np.cov(x, rowvar=False), dim, shrink, fitted_for)


def whitening_of(
    mean: Floats, covariance: Floats, dim: int | None = None, shrink: float = 0.1, fitted_for: str = ""
) -> Whitening:
    """W = U (S + shrink * mean(S))^-1/2 of a covariance U S U^T.

    mean: float [D]; covariance: float [D, D]; dim: columns (all); shrink: share of the mean
    eigenvalue added to each, so that directions of little data are not blown up.
    Raises ConfigError where nothing varies.
    """
    values, axes = _descending(np.asarray(covariance, np.float64))
    if values[0] <= 1e-12:
        raise ConfigError("whitening: all rows are equal; give more varied pictures")
    scale = 1 / np.sqrt(values + shrink * values.mean())
    return _rounded(mean, axes * scale, values * scale**2, dim, fitted_for)


def fit_discriminative(
    within: Floats,
    covariance: Floats,
    mean: Floats,
    dim: int | None = None,
    noise: float = 0.1,
    shrink: float = 1.0,
    fitted_for: str = "",
) -> Whitening:
    """Divides out what differs between views of one thing, then whitens what is left, partly.

    within: float [D, D], covariance of rows about the mean of their thing; covariance, mean: of all rows.
    noise, shrink: share of the mean eigenvalue added to each of the first and of the second. Fisher's
    discriminant, shrunk: W = A B (E + shrink * mean(E))^-1/2, A = within^-1/2, A^T covariance A = B E B^T.
    """
    spread, axes = np.linalg.eigh(np.asarray(within, np.float64))
    first = axes / np.sqrt(np.maximum(spread, 0) + noise * spread.mean())
    values, axes = _descending(first.T @ np.asarray(covariance, np.float64) @ first)
    scale = 1 / np.sqrt(values + shrink * values.mean())
    return _rounded(mean, first @ (axes * scale), values * scale**2, dim, fitted_for)


def divided_further(prior: Whitening, within: Floats, weight: float = 1.0) -> Whitening:
    """The prior, with what differs between views of one thing divided out once more, by views of another kind.

    within: float [d, d], covariance of the prior's unit rows about the mean of their thing, d columns. weight: of what
    was measured against none of it: a direction of variance v is scaled by (1 + weight v / mean(v))^-1/2. Columns
    stay what they are but for that, each part by itself.
    """
    matrix = prior.matrix.astype(np.float64)
    for columns, _ in prior.parts:
        values, axes = np.linalg.eigh(np.asarray(within, np.float64)[np.ix_(columns, columns)])
        scale = (1 + weight * np.maximum(values, 0) / values.mean()) ** -0.5
        matrix[:, columns] = matrix[:, columns] @ ((axes * scale) @ axes.T)
    return _rounded(prior.mean, matrix, prior.variance, None, prior.fitted_for, prior.lengths)


def adapt(
    prior: Whitening,
    mean: Floats,
    covariance: Floats,
    count: int,
    dim: int | None = None,
    weight: float = PRIOR,
) -> Whitening:
    """The prior adapted to rows of one's own, as if it had been fitted on `weight` rows beside these.

    mean: float [D]; covariance: float [D, D]; count: rows they were measured on; dim: columns (those
    of the prior). It stays within the prior's columns: thousands of dimensions want more rows than a small
    collection has. Each column was scaled by (e + s)^-1/2, so that its variance v = e / (e + s) tells e / s;
    that scale is undone, the covariances are mixed, and the mixture is scaled in the same way. Columns of a part
    stay in the places of that part.
    """
    share = count / (count + weight)
    rest = np.maximum(1 - prior.variance.astype(np.float64), 1e-6)  # s / (e + s)
    matrix = prior.matrix.astype(np.float64) / np.sqrt(rest)
    variance = prior.variance.astype(np.float64)
    for part, _ in prior.parts:
        columns = matrix[:, part]
        own = columns.T @ np.asarray(covariance, np.float64) @ columns
        values, axes = _descending(share * own + (1 - share) * np.diag((1 - rest[part]) / rest[part]))
        scale = 1 / np.sqrt(values + 1)
        matrix[:, part], variance[part] = columns @ (axes * scale), values * scale**2
    centre = share * np.asarray(mean, np.float64) + (1 - share) * prior.mean
    return _rounded(centre, matrix, variance, dim, prior.fitted_for, prior.lengths)


def _descending(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, none below zero, in descending order, and their axes as columns."""
    values, axes = np.linalg.eigh(symmetric)
    return np.maximum(values[::-1], 0), axes[:, ::-1]


def _rounded(
    mean: Floats,
    matrix: Floats,
    variance: Floats,
    dim: int | None,
    fitted_for: str,
    lengths: Vector | None = None,
) -> Whitening:
    """Rounded as it is saved: half the file, and no mAP lost."""
    rounded = np.asarray(matrix[:, :dim], np.float16).astype(np.float32)
    each = np.asarray(variance[:dim], np.float32)
    of_each = None if lengths is None else lengths[:dim]
    return Whitening(np.asarray(mean, np.float32), rounded, each, fitted_for, of_each)
