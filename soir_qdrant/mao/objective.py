"""How well maps match masks, and the gradient to the maps: min-max, bilinear upsampling and soft Dice as one.

dice_i = 1 - (2 x . m + eps) / (x . w + |m| + eps),  x = (E - low) / (high - low)

low and high are those of the upsampled map where masks are compared at their own resolution, as in LeGrad's code, else
those of the map on the patch grid; of one crop, or of all crops of an image ("batch", as in the code of MaO's authors).
Upsampling is linear, so the sums over pixels become sums over patches: m is the mask, and w an image of ones, brought
to the patch grid by the transposed upsampling. It costs little more than comparing on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of the Dice ratio


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The masks of K crops on the patch grid. mask, weight: [K, M]; size: sum of the mask, [K]. upsampling: of rows
    and of columns, [S, side] each; None compares on the grid. batch: int64 [K], crops of the same number are normalised
    together; None: each by itself."""

    mask: Tensor
    weight: Tensor
    size: Tensor
    upsampling: tuple[Tensor, Tensor] | None = None
    batch: Tensor | None = None


def target(masks: Tensor, patches: int, upsample: bool, batch: Tensor | None = None) -> Target:
    """masks: [K, S, S], 0..1. upsample: compare at the masks' resolution, as the paper does; else masks are
    averaged to the grid of M = `patches`. batch: see `Target`."""
    side = round(patches**0.5)
    if not upsample:
        small = F.adaptive_avg_pool2d(masks[:, None], side).flatten(1)
        return Target(small, torch.ones_like(small), small.sum(1), batch=batch)
    along = _upsampling(side, masks.shape[-2]).to(masks)
    across = _upsampling(side, masks.shape[-1]).to(masks)
    small = (along.T @ masks @ across).flatten(1)
    ones = (along.sum(0)[:, None] * across.sum(0)).flatten().expand_as(small)
    return Target(small, ones, masks.sum((1, 2)), (along, across), batch)


def dice(raw: Tensor, goal: Target) -> tuple[Tensor, Tensor]:
    """Soft Dice distance of K raw maps [K, M], 0..1, [K]; and the gradient of their sum to the raw maps, [K, M]."""
    low, at_low = _extreme(raw, goal, "amin")
    high, at_high = _extreme(raw, goal, "amax")
    span = (high - low).clamp_min(1e-12)
    x = (raw - low) / span
    above = 2 * (x * goal.mask).sum(-1, keepdim=True) + EPS
    below = (x * goal.weight).sum(-1, keepdim=True) + goal.size[:, None] + EPS
    to_x = (goal.weight * above / below - 2 * goal.mask) / below
    to_low = _over_batch(((x - 1) * to_x).sum(-1, keepdim=True), goal.batch)
    to_high = _over_batch((x * to_x).sum(-1, keepdim=True), goal.batch)
    moving = high - low > 1e-12  # a constant map has no gradient
    grad = moving * (to_x + to_low * at_low - to_high * at_high) / span
    return (1 - above / below)[:, 0], grad


def _extreme(raw: Tensor, goal: Target, which: Literal["amin", "amax"]) -> tuple[Tensor, Tensor]:
    """The lowest or highest value that each map is normalised by, [K, 1], and its gradient to the maps, [K, M]."""
    values = raw if goal.upsampling is None else _pixels(raw, *goal.upsampling)
    extreme = getattr(values, which)(-1, keepdim=True)
    if goal.batch is not None:
        everywhere = extreme.new_zeros(int(goal.batch.max()) + 1, 1)
        places = goal.batch[:, None]
        extreme = everywhere.scatter_reduce(0, places, extreme, which, include_self=False)[goal.batch]
    there = (values == extreme).to(raw)
    share = there / _over_batch(there.sum(-1, keepdim=True), goal.batch)
    if goal.upsampling is None:
        return extreme, share
    along, across = goal.upsampling
    return extreme, (along.T @ share.view(len(raw), len(along), -1) @ across).flatten(1)


def _pixels(raw: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """[K, M] -> upsampled, [K, S * S]."""
    return (along @ raw.view(len(raw), along.shape[1], -1) @ across.T).flatten(1)


def _over_batch(values: Tensor, batch: Tensor | None) -> Tensor:
    """[K, 1] -> for each crop the sum over those that are normalised with it, [K, 1]."""
    if batch is None:
        return values
    sums = values.new_zeros(int(batch.max()) + 1, 1).index_add(0, batch, values)
    return sums[batch]


def _upsampling(small: int, large: int) -> Tensor:
    """Bilinear upsampling of one axis as a matrix, float64 [large, small]."""
    eye = torch.eye(small, dtype=torch.float64)[None]
    return F.interpolate(eye, large, mode="linear", align_corners=False)[0].T
