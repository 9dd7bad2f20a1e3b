"""MaO: one token per image whose LeGrad maps match all its object masks at once (arXiv 2503.07038)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.errors import ObjectsError
from soir_qdrant.mao.legrad import (
    LegradConstants,
    Workspace,
    maps,
    normalized,
    precompute,
    pull_back,
    upsampled,
)
from soir_qdrant.mao.objective import Target, dice, target
from soir_qdrant.models.last_block import LastBlock

BETAS, TINY, DECAY = (0.9, 0.999), 1e-8, 0.01  # of AdamW, as in torch


@dataclass(frozen=True, slots=True)
class MaoSettings:
    """iterations, lr: of AdamW; alpha: weight of staying near the start. The paper: 80, 0.1, 0.03.

    upsample: compare map and mask at the crop's resolution, as the paper does, instead of on the token grid.
    products: dtype of the large products. budget: bytes of working memory; scenes are refined in groups
    that fit it (a scene that alone is larger goes by itself).
    """

    iterations: int = 80
    lr: float = 0.1
    alpha: float = 0.03
    upsample: bool = False
    products: Literal["float32", "bfloat16"] | None = None
    budget: int = 256 * 2**20


def refine(
    blocks: LastBlock | Sequence[LastBlock],
    tokens: Tensor,
    descriptors: Tensor,
    masks: Tensor,
    scene: Tensor,
    settings: MaoSettings,
) -> Tensor:
    """The joint token of each scene, [S, D_out], unit rows.

    min over t of mean_i dice(E_i(t / |t|), m_i) + alpha (1 - cos(t, t0)), from t0 = mean_i v_i.
    blocks: the last block, or the last few in order (their maps are added). tokens: [K, N, D], entering the
    first of them, of the crops of all scenes. descriptors: the v_i, [K, D_out], as the encoder reads them
    out: their length (32 for DINOv2 ViT-S) decides how far a step of `lr` turns t. masks: [K, S, S], 0..1;
    scene: int64 [K], 0..S-1, rising. Raises ObjectsError for tokens that are no numbers.
    """
    blocks = [blocks] if isinstance(blocks, LastBlock) else blocks
    bad = ~torch.isfinite(tokens).flatten(1).all(1)
    if bad.any():
        raise ObjectsError(f"crop {int(bad.nonzero()[0, 0])}: its tokens are not finite")
    each = sum(bytes_per_crop(block, tokens.shape[1], tokens.dtype) for block in blocks)
    found = []
    for part in parts(scene, max(1, settings.budget // each)):
        held = precompute_all(blocks, tokens[part], settings.products)
        goal = target(masks[part].to(tokens), held[0].values.shape[2], settings.upsample)
        mean = averaging(scene[part] - scene[part.start]).to(tokens)
        start = mean @ descriptors[part]
        found.append(optimize(held, goal, mean, start, settings))
    return torch.cat(found) if found else tokens.new_zeros(0, blocks[-1].dim_out)


def precompute_all(
    blocks: Sequence[LastBlock], tokens: Tensor, products: str | None = None
) -> list[LegradConstants]:
    """The constants of each block in turn. tokens: [B, N, D], entering the first. products: dtype."""
    found = []
    for i, block in enumerate(blocks):
        held = precompute(block, tokens)
        found.append(held if products is None else held.products(getattr(torch, products)))
        if i + 1 < len(blocks):
            tokens = block.forward(tokens)
    return found


def optimize(
    held: Sequence[LegradConstants], goal: Target, mean: Tensor, start: Tensor, settings: MaoSettings
) -> Tensor:
    """AdamW from `start` [S, D_out]; each scene's token is independent of the others'. Unit rows.

    mean: [S, K], see `averaging`. AdamW is written out: torch's own waits for the device at every step.
    """
    t, work = start.clone(), [Workspace(part) for part in held]
    first, second = torch.zeros_like(t), torch.zeros_like(t)
    for step in range(1, settings.iterations + 1):
        _, grad = loss(held, goal, mean, t, start, settings.alpha, work)
        t.mul_(1 - settings.lr * DECAY)
        first.lerp_(grad, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        deviation = second.sqrt().div_((1 - BETAS[1] ** step) ** 0.5).add_(TINY)
        t.addcdiv_(first, deviation, value=-settings.lr / (1 - BETAS[0] ** step))
    return F.normalize(t, dim=-1)


def loss(
    held: Sequence[LegradConstants],
    goal: Target,
    mean: Tensor,
    t: Tensor,
    start: Tensor,
    alpha: float,
    work: Sequence[Workspace] | None = None,
) -> tuple[Tensor, Tensor]:
    """mean_i dice_i + alpha (1 - cos(t, t0)) of each scene, [S], and its gradient to t, [S, D_out]."""
    work = work or [Workspace(part) for part in held]
    length = t.norm(dim=-1, keepdim=True)
    unit, origin = t / length, F.normalize(start, dim=-1)
    rows = mean.T.sign() @ unit
    raw = torch.stack([maps(part, rows, own)[0] for part, own in zip(held, work, strict=True)]).sum(0)
    distance, to_maps = dice(raw, goal)
    to_crops = [pull_back(part, to_maps, own) for part, own in zip(held, work, strict=True)]
    to_unit = mean @ torch.stack(to_crops).sum(0) - alpha * origin
    value = mean @ distance + alpha * (1 - (unit * origin).sum(-1))
    return value, (to_unit - unit * (unit * to_unit).sum(-1, keepdim=True)) / length


def explain_maps(held: Sequence[LegradConstants], t: Tensor, size: int) -> Tensor:
    """The normalised map of each crop, [K, size, size], 0..1. t: [K, D_out], unit rows."""
    return upsampled(normalized(torch.stack([maps(part, t)[0] for part in held]).sum(0)), size)


def averaging(scene: Tensor) -> Tensor:
    """[S, K]: times the rows of K crops, the mean of each scene. scene: int64 [K], 0..S-1."""
    member = F.one_hot(scene).T.float()
    return member / member.sum(1, keepdim=True)


def bytes_per_crop(block: LastBlock, tokens: int, dtype: torch.dtype) -> int:
    """Of one crop in `optimize`: two constants and a buffer of N x H, the relevances, and five of N x D."""
    hidden = sum(len(block.weights[name]) for name in ("fc1.weight", "gate.weight") if name in block.weights)
    numbers = tokens * (3 * hidden + block.heads * tokens + 5 * block.dim)
    return numbers * torch.finfo(dtype).bits // 8


def parts(scene: Tensor, most: int) -> list[slice]:
    """Runs of whole scenes of at most `most` crops (one scene where it alone has more)."""
    ends = (torch.bincount(scene).cumsum(0)).tolist() if len(scene) else []
    found, first, last = [], 0, 0
    for end in ends:
        if end - first > most and last > first:
            found.append(slice(first, last))
            first = last
        last = end
    return [*found, slice(first, last)] if last > first else found
