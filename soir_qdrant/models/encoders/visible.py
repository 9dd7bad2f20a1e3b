"""Which patches of a crop an encoder looks at: all of them, or those that show the object.

Attention and every layer cost by the token, and half of a crop's patches show nothing but grey: left out,
an object takes half the time (docs/concepts/search.md has what that changes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

STEPS = 8  # numbers of patches are multiples of this part of the grid, so that crops fall into few batches


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Crops that run at once.

    Attributes:
        rows: int64 [b], which of all crops.
        patches: int64 [b, m], those that are looked at, by their place in the grid, ascending; None is all.
        weights: float32 [b, m], of those patches in their mean, summing to one.
    """

    rows: NDArray[np.int64]
    patches: Tensor | None
    weights: Tensor


def patch_weights(masks: Tensor, patches: int) -> Tensor:
    """Masks [B, S, S], 0..1, as weights of the patches [B, n]: area share, summing to one per crop.

    patches: n, a square number. A mask without area weighs all patches alike.
    """
    share = F.adaptive_avg_pool2d(masks[:, None].float(), round(patches**0.5)).flatten(1)
    share = torch.where(share.sum(1, keepdim=True) > 1e-6, share, torch.ones_like(share))
    return share / share.sum(1, keepdim=True)


def batches(weights: Tensor, size: int, *, object_only: bool) -> Iterator[Batch]:
    """Crops in batches of at most `size`; those of a batch have equally many patches.

    Args:
        weights: float32 [B, n], of `patch_weights`.
        size: the largest batch.
        object_only: whether patches that show nothing of the object are left out.
    """
    if not object_only:
        for rows in np.array_split(np.arange(len(weights)), range(size, len(weights), size)):
            yield Batch(rows, None, weights[rows])
        return
    chosen = [visible(row) for row in weights.cpu().numpy()]
    counts = np.array([len(patches) for patches in chosen])
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        for rows in np.array_split(alike, range(size, len(alike), size)):
            patches = torch.from_numpy(np.stack([chosen[i] for i in rows])).to(weights.device)
            seen = weights[rows].gather(1, patches)
            yield Batch(rows, patches, seen)


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


def only(tokens: Tensor, patches: Tensor, prefix: int) -> Tensor:
    """Of tokens [B, N, D], the `prefix` first and, of those after them, `patches` [B, m]."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    return torch.cat([tokens[:, :prefix], tokens[rows, prefix + patches]], 1)
