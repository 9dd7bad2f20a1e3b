"""How well maps match masks, and the gradient to the maps: min-max, bilinear upsampling and soft Dice as one.

dice_i = 1 - (2 x . m + eps) / (x . w + |m| + eps),  x = (E - min E) / (max E - min E)

Upsampling is linear, so the sums over pixels become sums over patches: m is the mask, and w a picture of
ones, brought to the patch grid by the transposed upsampling. It costs no more than comparing on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of the Dice ratio


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The masks of K crops on the patch grid. mask, weight: [K, M]; size: sum of the mask, [K]."""

    mask: Tensor
    weight: Tensor
    size: Tensor


def target(masks: Tensor, patches: int, upsample: bool) -> Target:
    """masks: [K, S, S], 0..1. upsample: compare at the masks' resolution, as the paper does; else masks are
    averaged to the grid of M = `patches`."""
    side = round(patches**0.5)
    if not upsample:
        small = F.adaptive_avg_pool2d(masks[:, None], side).flatten(1)
        return Target(small, torch.ones_like(small), small.sum(1))
    along = _upsampling(side, masks.shape[-2]).to(masks)
    across = _upsampling(side, masks.shape[-1]).to(masks)
    small = (along.T @ masks @ across).flatten(1)
    ones = (along.sum(0)[:, None] * across.sum(0)).flatten().expand_as(small)
    return Target(small, ones, masks.sum((1, 2)))


def dice(raw: Tensor, held: Target) -> tuple[Tensor, Tensor]:
    """Soft Dice distance of K raw maps [K, M], 0..1, [K]; and its gradient to the raw maps, [K, M]."""
    low, high = raw.amin(-1, keepdim=True), raw.amax(-1, keepdim=True)
    span = (high - low).clamp_min(1e-12)
    x = (raw - low) / span
    above = 2 * (x * held.mask).sum(-1, keepdim=True) + EPS
    below = (x * held.weight).sum(-1, keepdim=True) + held.size[:, None] + EPS
    to_x = (held.weight * above / below - 2 * held.mask) / below
    at_low, at_high = raw == low, raw == high
    to_low = ((x - 1) * to_x).sum(-1, keepdim=True) / at_low.sum(-1, keepdim=True)
    to_high = (x * to_x).sum(-1, keepdim=True) / at_high.sum(-1, keepdim=True)
    moving = high - low > 1e-12  # a constant map has no gradient
    grad = moving * (to_x + to_low * at_low - to_high * at_high) / span
    return (1 - above / below)[:, 0], grad


def _upsampling(small: int, large: int) -> Tensor:
    """Bilinear upsampling of one axis as a matrix, float64 [large, small]."""
    eye = torch.eye(small, dtype=torch.float64)[None]
    return F.interpolate(eye, large, mode="linear", align_corners=False)[0].T
