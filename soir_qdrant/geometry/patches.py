"""Which patches of a crop an encoder looks at: all of them, or those that show the object.

Attention and every layer cost by the token, and half of a crop's patches show nothing but grey: left out,
an object takes half the time (docs/concepts/search.md has what that changes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

STEPS = 8  # numbers of patches are multiples of this part of the grid, so that crops fall into few batches


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Crops that run at once.

    Attributes:
        rows: int64 [b], which of all crops.
        patches: int64 [b, m], those that are looked at, by their place in the grid, ascending.
        weights: float32 [b, m], of those patches in their mean, summing to one.
    """

    rows: NDArray[np.int64]
    patches: NDArray[np.int64]
    weights: NDArray[np.float32]


def patch_weights(masks: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Masks as weights of the patches: area share, summing to one per crop.

    Args:
        masks: float32 [B, S, S], 0..1, S a multiple of `side`. One without area weighs all patches alike.
        side: patches along a side.

    Returns:
        float32 [B, side * side].
    """
    cell = masks.shape[1] // side
    share = masks.reshape(len(masks), side, cell, side, cell).mean((2, 4), dtype=np.float32)
    share = share.reshape(len(masks), side * side)
    share = np.where(share.sum(1, keepdims=True) > 1e-6, share, np.float32(1))
    weights: NDArray[np.float32] = share / share.sum(1, keepdims=True)
    return weights


def batches(weights: NDArray[np.float32], size: int, *, object_only: bool) -> Iterator[Batch]:
    """Crops in batches of at most `size`; those of a batch have equally many patches.

    Args:
        weights: float32 [B, n], of `patch_weights`.
        size: the largest batch.
        object_only: whether patches that show nothing of the object are left out.
    """
    every = np.arange(weights.shape[1])
    chosen = [visible(row) if object_only else every for row in weights]
    counts = np.array([len(patches) for patches in chosen], np.int64)
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        for rows in np.array_split(alike, range(size, len(alike), size)):
            patches = np.stack([chosen[i] for i in rows])
            yield Batch(rows, patches, np.take_along_axis(weights[rows], patches, 1))


def visible(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """The patches of a crop that show its object, and the nearest ones outside it, to make their number a
    multiple of an eighth of the grid.

    Args:
        weights: [n], of a square grid, above 0 where a patch shows the object.

    Returns:
        int64 [m], ascending.
    """
    side, inside = round(len(weights) ** 0.5), weights > 0
    step = max(len(weights) // STEPS, 1)
    outside = (~inside).astype(np.uint8).reshape(side, side)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).ravel()
    count = min(-(-int(inside.sum()) // step) * step, len(weights))
    return np.sort(np.argsort(distance, kind="stable")[:count])
