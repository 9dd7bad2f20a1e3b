"""What stands out in a grid of cells, from features of the cells alone. NumPy and OpenCV; no model here."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NEAREST = 0.03  # share of the cells that count as a cell's own kind
SPARE, ITERATIONS = 16, 8  # of the subspace iteration


def principal(grid: Floats, dims: int) -> tuple[Floats, Floats]:
    """Coordinates of the cells on their principal components, and the variance along each, descending.

    grid: [h, w, D]. Float32 [h, w, k] and [k], k = min(dims, D). By subspace iteration: LAPACK's full
    decomposition takes a hundred times as long where another process holds the cores.
    """
    cells = grid.reshape(-1, grid.shape[-1]).astype(np.float32)
    cells = cells - cells.mean(axis=0)
    covariance = (cells.T @ cells / len(cells)).astype(np.float64)
    width = min(dims + SPARE, len(covariance))
    basis = np.random.default_rng(0).normal(size=(len(covariance), width))
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(covariance @ basis)
    variance, turn = np.linalg.eigh(basis.T @ covariance @ basis)
    axes, variance = (basis @ turn)[:, ::-1][:, :dims], np.maximum(variance[::-1][:dims], 0)
    coordinates = cells @ axes.astype(np.float32)
    return coordinates.reshape(*grid.shape[:2], -1), variance.astype(np.float32)


def whiten(coordinates: Floats, variance: Floats, ridge: float) -> Floats:
    """Each principal coordinate over sqrt(its variance + ridge * mean variance). Float32 [h, w, k]."""
    scale = np.sqrt(variance + ridge * variance.mean() + 1e-9)
    return np.asarray(coordinates / scale, np.float32)


def rarity(grid: Floats, background: NDArray[np.bool_] | None = None) -> Floats:
    """1 - mean cosine with the cells most like it: low for cells of the background, which are many.

    grid: [h, w, D]. background: bool [h, w], the cells to compare with (all). Float32 [h, w], with mean 0 and standard
    deviation 1.
    """
    cells = grid.reshape(-1, grid.shape[-1])
    cells = cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-9)
    others = cells if background is None else cells[background.ravel()]
    count = max(1, int(NEAREST * len(others)))
    nearest = np.partition(cells @ others.T, len(others) - count, axis=1)[:, -count:]
    return _standard(1 - nearest.mean(axis=1).reshape(grid.shape[:2]))


def distance(white: Floats) -> Floats:
    """Distance of each cell from the mean cell. white: [h, w, k], see `whiten`. Float32 [h, w], with mean 0
    and standard deviation 1."""
    return _standard(np.linalg.norm(white, axis=2))


def _standard(plane: Floats) -> Floats:
    return np.asarray((plane - plane.mean()) / (plane.std() + 1e-6), np.float32)


def resample(channels: Floats, *, size: tuple[int, int] | None = None, blur: float = 0.0) -> Floats:
    """Blur, or resize to (width, height), any number of channels. channels: [h, w, C]. Float32 [., ., C]."""
    done = []
    for c in range(channels.shape[2]):
        plane = np.ascontiguousarray(channels[..., c], np.float32)
        plane = cv2.GaussianBlur(plane, (0, 0), blur) if blur else plane
        done.append(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) if size else plane)
    return np.stack(done, axis=2)
