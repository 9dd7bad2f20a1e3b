"""A picture's tokens from overlapping tiles.

Attention costs the square of the tokens that see one another, and a ViT knows best the grid that it learnt
its positions on: tiles no larger than that are faster than the whole picture, and tell more
(docs/concepts/detector.md).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import FeatureSource
from soir_qdrant.geometry.boxes import Floats
from soir_qdrant.models.tokens import LAYER, gridded
from soir_qdrant.types import RGB

AREA = 518 * 690  # pixels at which detector and segmenter look at an image
LARGEST = 37  # tokens along a side of a tile: DINOv2's own grid
SHARED = 6  # tokens that neighbours have in common, at least
MAX_GRIDS = 16  # that are remembered of a source, 3 MB each: an image's, from its detection to its masks


class GridMemory:
    """The last grids of a source, by the pixels that they were computed of. Threads may share it."""

    def __init__(self) -> None:
        self._grids: OrderedDict[bytes, Floats] = OrderedDict()
        self._lock = Lock()

    def get(self, key: bytes) -> Floats | None:
        with self._lock:
            return self._grids.get(key)

    def put(self, key: bytes, grid: Floats) -> None:
        with self._lock:
            self._grids[key] = grid
            while len(self._grids) > MAX_GRIDS:
                self._grids.popitem(last=False)


_memories: WeakKeyDictionary[FeatureSource, GridMemory] = WeakKeyDictionary()


def tiled_grid(
    source: FeatureSource, image: RGB, area: int, *, max_cells: int | None = None, keep: bool = True
) -> Floats:
    """An image's tokens after the block `LAYER`, from tiles. Where these overlap, a token is
    the mean of theirs, weighted by how far it lies inside them. What was computed of the last few images is
    remembered: the segmenter reads the grid that the detector has read.

    Args:
        source: whose tokens.
        image: uint8 [H, W, 3].
        area: at about how many pixels it is looked at.
        max_cells: tokens along a side; see `tokens.gridded`.
        keep: whether what is computed is remembered.

    Returns:
        float32 [h, w, D], not to be written to.
    """
    fitted, (width, height) = gridded(image, source.patch, area, max_cells)
    grid = _memory(source).get(_key(fitted))
    if grid is None:
        grid = from_tiles(source, fitted, places(height), places(width))
        if keep:
            remember(source, fitted, grid)
    return grid


def remember(source: FeatureSource, fitted: RGB, grid: Floats) -> None:
    """Have `tiled_grid` return a grid that was computed elsewhere. fitted: uint8, the image as `gridded` made
    it; grid: float32 [h, w, D]."""
    _memory(source).put(_key(fitted), grid)


def _key(fitted: RGB) -> bytes:
    return hashlib.blake2b(f"{fitted.shape}".encode() + fitted.tobytes(), digest_size=16).digest()


def _memory(source: FeatureSource) -> GridMemory:
    try:
        return _memories.setdefault(source, GridMemory())
    except TypeError:  # a source that cannot be hashed, or referred to weakly: nothing is remembered
        return GridMemory()


def from_tiles(
    source: FeatureSource, fitted: RGB, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Floats:
    """The tokens of an image, float32 [h, w, D], where tiles overlap the weighted mean of theirs.

    Args:
        source: whose tokens.
        fitted: uint8, the image in whole cells.
        rows: int64 [n, t], the tokens of each row of tiles, of `places`.
        columns: int64 [m, u], those of each column.
    """
    cell, tall, wide = source.patch, rows.shape[1], columns.shape[1]
    tiles = np.stack(
        [
            fitted[y * cell : (y + tall) * cell, x * cell : (x + wide) * cell]
            for y in rows[:, 0]
            for x in columns[:, 0]
        ]
    )
    grids = source.features(tiles, [LAYER]).reshape(len(rows), len(columns), tall, wide, -1)
    share = (_inside(tall)[:, None] * _inside(wide))[..., None]
    height, width = fitted.shape[0] // cell, fitted.shape[1] // cell
    total = np.zeros((height, width, grids.shape[-1]), np.float32)
    weight = np.zeros((height, width, 1), np.float32)
    for i, y in enumerate(rows[:, 0]):
        for j, x in enumerate(columns[:, 0]):
            total[y : y + tall, x : x + wide] += grids[i, j] * share
            weight[y : y + tall, x : x + wide] += share
    return np.asarray(total / weight, np.float32)


def spans(length: int) -> tuple[int, list[int]]:
    """Of `length` tokens in a row: how many a tile has, at most LARGEST, and where tiles start."""
    count = max(-(-(length - SHARED) // (LARGEST - SHARED)), 1)
    side = -(-(length + (count - 1) * SHARED) // count)
    return side, [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def places(length: int) -> NDArray[np.int64]:
    """The tokens of each tile of `length` in a row, int64 [n, t]."""
    side, starts = spans(length)
    return np.array(starts, np.int64)[:, None] + np.arange(side)


def _inside(length: int) -> Floats:
    """How far each token lies inside its tile, from 1 at the ends up to SHARED."""
    places = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(np.minimum(places, places[::-1]), SHARED)
