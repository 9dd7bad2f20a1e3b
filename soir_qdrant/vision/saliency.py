"""What stands out in a grid of cells, from features of the cells alone. NumPy and OpenCV; no model here."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NEAREST = 0.03  # share of the cells that count as a cell's own kind


def whiten(grid: Floats, dims: int, ridge: float) -> Floats:
    """Principal components of the cells, each scaled by 1 / sqrt(variance + ridge * mean variance).

    grid: [h, w, D]. Float32 [h, w, min(dims, D)].
    """
    cells = grid.reshape(-1, grid.shape[-1]).astype(np.float64)
    cells = cells - cells.mean(axis=0)
    variance, axes = np.linalg.eigh(cells.T @ cells / len(cells))
    variance, axes = np.maximum(variance[::-1][:dims], 0), axes[:, ::-1][:, :dims]
    scale = np.sqrt(variance + ridge * variance.mean() + 1e-9)
    return np.asarray((cells @ axes / scale).reshape(*grid.shape[:2], -1), np.float32)


def rarity(grid: Floats) -> Floats:
    """1 - mean cosine with the cells most like it: low for cells of the background, which are many.

    grid: [h, w, D]. Float32 [h, w].
    """
    cells = grid.reshape(-1, grid.shape[-1])
    cells = cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-9)
    likeness = cells @ cells.T
    count = max(1, int(NEAREST * len(cells)))
    nearest = np.partition(likeness, len(cells) - count, axis=1)[:, -count:]
    return np.asarray((1 - nearest.mean(axis=1)).reshape(grid.shape[:2]), np.float32)


def maps(grid: Floats) -> Floats:
    """Two maps of what stands out, each with mean 0 and deviation 1 over the image: rarity, and the
    distance from the mean cell among whitened ones. Float32 [h, w, 2].
    """
    found = rarity(grid), np.linalg.norm(whiten(grid, 32, 1.0), axis=2)
    return np.stack([(m - m.mean()) / (m.std() + 1e-6) for m in found], axis=2).astype(np.float32)


def resample(channels: Floats, *, size: tuple[int, int] | None = None, blur: float = 0.0) -> Floats:
    """Blur, or resize to (width, height), any number of channels. channels: [h, w, C]. Float32 [., ., C]."""
    done = []
    for c in range(channels.shape[2]):
        plane = np.ascontiguousarray(channels[..., c], np.float32)
        plane = cv2.GaussianBlur(plane, (0, 0), blur) if blur else plane
        done.append(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) if size else plane)
    return np.stack(done, axis=2)


def cell_descriptors(rgb: NDArray[np.uint8], cell: int) -> Floats:
    """Classical features, where there are no tokens: mean and deviation of the Lab colour and a histogram
    of gradient directions, of each cell and of its neighbourhood. rgb: [H, W, 3], H and W multiples of
    `cell`. Float32 [H / cell, W / cell, 28], each channel with mean 0 and deviation 1.
    """
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    dx, dy = (cv2.Sobel(lab[..., 0], cv2.CV_32F, *d, ksize=3, scale=1 / 8) for d in ((1, 0), (0, 1)))
    strength, turn = np.hypot(dx, dy), np.mod(np.arctan2(dy, dx), np.pi) / np.pi * 8
    bins = np.stack([strength * np.clip(1 - np.abs((turn - b + 4) % 8 - 4), 0, 1) for b in range(8)], axis=2)
    size = rgb.shape[1] // cell, rgb.shape[0] // cell
    mean, square, edges = (_area(x, size) for x in (lab, lab**2, bins))
    near = np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0)), np.sqrt(edges)], axis=2)
    both = np.concatenate([near, resample(near, blur=1.5)], axis=2)
    return np.asarray((both - both.mean(axis=(0, 1))) / (both.std(axis=(0, 1)) + 1e-3), np.float32)


def _area(channels: Floats, size: tuple[int, int]) -> Floats:
    planes = (np.ascontiguousarray(channels[..., c]) for c in range(channels.shape[2]))
    return np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in planes], axis=2)
