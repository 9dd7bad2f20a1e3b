"""MaO: one token per image whose LeGrad maps match all its object masks at once (arXiv 2503.07038)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.errors import ObjectsError
from soir_qdrant.refine.block import LastBlock
from soir_qdrant.refine.legrad import LegradConstants, normalized, precompute, raw_maps, upsampled

EPS = 1e-6  # of the Dice ratio


@dataclass(frozen=True, slots=True)
class MaoSettings:
    """iterations, lr: of AdamW; alpha: weight of staying near the start. The paper: 80, 0.1, 0.03.

    upsample: compare map and mask at the crop's resolution, as the paper does, instead of on the token grid.
    crops: how many crops are held at once; memory grows with it (about 12 MB each for ViT-S/14 at 224 px).
    """

    iterations: int = 80
    lr: float = 0.1
    alpha: float = 0.03
    upsample: bool = False
    crops: int = 32


def refine(
    block: LastBlock, tokens: Tensor, descriptors: Tensor, masks: Tensor, scene: Tensor, settings: MaoSettings
) -> Tensor:
    """The joint token of each scene, [S, D_out], unit rows.

    min over t of mean_i dice(E_i(t / |t|), m_i) + alpha (1 - cos(t, t0)), from t0 = mean_i v_i.
    tokens: [K, N, D], entering the last block, of the crops of all scenes; descriptors: [K, D_out];
    masks: [K, S, S], 0..1; scene: int64 [K], 0..S-1, rising.
    Raises ObjectsError for tokens that are no numbers.
    """
    bad = ~torch.isfinite(tokens).flatten(1).all(1)
    if bad.any():
        raise ObjectsError(f"crop {int(bad.nonzero()[0, 0])}: its tokens are not finite")
    found = []
    for part in _parts(scene, settings.crops):
        local = scene[part] - scene[part.start]
        start = _mean(F.normalize(descriptors[part], dim=-1), local)
        held = precompute(block, tokens[part])
        target = masks[part].to(start)
        if not settings.upsample:
            side = round((tokens.shape[1] - block.has_cls) ** 0.5)
            target = F.adaptive_avg_pool2d(target[:, None], side)[:, 0]
        found.append(optimize(held, target, local, start, settings))
    return torch.cat(found) if found else tokens.new_zeros(0, block.dim_out)


def optimize(
    held: LegradConstants, masks: Tensor, scene: Tensor, start: Tensor, settings: MaoSettings
) -> Tensor:
    """AdamW from `start` [S, D_out]; each scene's token is independent of the others'. Unit rows."""
    t = start.clone().requires_grad_()
    adam = torch.optim.AdamW([t], lr=settings.lr)
    for _ in range(settings.iterations):
        adam.zero_grad(set_to_none=True)
        loss(held, masks, scene, t, start, settings).sum().backward()
        adam.step()
    return F.normalize(t.detach(), dim=-1)


def loss(
    held: LegradConstants, masks: Tensor, scene: Tensor, t: Tensor, start: Tensor, settings: MaoSettings
) -> Tensor:
    """mean_i dice_i + alpha (1 - cos(t, t0)) of each scene, [S]. masks: [K, h, w]; t, start: [S, D_out]."""
    maps = explain(held, F.normalize(t, dim=-1)[scene], masks.shape[-1])
    distance = 1 - F.cosine_similarity(t, start, dim=-1)
    return _mean(dice(maps, masks)[:, None], scene)[:, 0] + settings.alpha * distance


def explain(held: LegradConstants, t: Tensor, size: int) -> Tensor:
    """The normalised map of each crop, [K, size, size], 0..1. t: [K, D_out], unit rows."""
    return upsampled(normalized(raw_maps(held, t)), size)


def dice(maps: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice distance, 0..1, [K]. maps, masks: [K, h, w], 0..1."""
    both = (maps * masks).flatten(1).sum(1)
    return 1 - (2 * both + EPS) / (maps.flatten(1).sum(1) + masks.flatten(1).sum(1) + EPS)


def _mean(rows: Tensor, scene: Tensor) -> Tensor:
    """Mean of the rows [K, D] of each scene, [S, D]."""
    count = torch.bincount(scene).to(rows)
    total = rows.new_zeros(len(count), rows.shape[1]).index_add(0, scene, rows)
    return total / count[:, None]


def _parts(scene: Tensor, most: int) -> list[slice]:
    """Runs of whole scenes of at most `most` crops (one scene where it alone has more)."""
    ends = (torch.bincount(scene).cumsum(0)).tolist() if len(scene) else []
    parts, first, last = [], 0, 0
    for end in ends:
        if end - first > most and last > first:
            parts.append(slice(first, last))
            first = last
        last = end
    return [*parts, slice(first, last)] if last > first else parts
