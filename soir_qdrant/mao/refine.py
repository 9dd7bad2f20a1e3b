"""MaO: one token per image whose LeGrad maps match all its object masks at once (arXiv 2503.07038)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

BETAS, TINY = (0.9, 0.999), 1e-8  # of AdamW, as in torch


@dataclass(frozen=True, slots=True)
class MaoSettings:
    """iterations, lr, weight_decay: of AdamW; alpha: weight of staying near the start. The paper: 80, 0.1, 0, 0.03.

    upsample: compare map and mask at the crop's resolution, as the paper does, instead of on the token grid.
    normalise: min-max of each "crop" by itself, or of the "batch" of an image's crops, as the authors' code has it.
    token: one for all crops of an image ("joint", the paper), or one "per-crop" (the authors' code).
    products: dtype of the large products. budget: bytes of working memory; scenes are refined in groups
    that fit it (a scene that alone is larger goes by itself).
    """

    iterations: int = 80
    lr: float = 0.1
    alpha: float = 0.03
    weight_decay: float = 0.01
    upsample: bool = False
    normalise: Literal["crop", "batch"] = "crop"
    token: Literal["joint", "per-crop"] = "joint"
    products: Literal["float32", "bfloat16"] | None = None
    budget: int = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What tokens are refined on.

    constants: of each exposed block, for K crops. goal: their masks. mean: [T, K], see `averaging`. start: the T
    tokens before, [T, D_out].
    """

    constants: Sequence[LegradConstants]
    goal: Target
    mean: Tensor
    start: Tensor


def refine(
    blocks: LastBlock | Sequence[LastBlock],
    tokens: Tensor,
    descriptors: Tensor,
    masks: Tensor,
    scene: Tensor,
    settings: MaoSettings,
) -> Tensor:
    """The joint token of each of S scenes, [S, D_out], or that of each crop, [K, D_out]; unit rows.

    min over t of mean_i dice(E_i(t / |t|), m_i) + alpha (1 - cos(t, t0)), from t0 = mean_i v_i.
    blocks: the last block, or the last few in order (their maps are added). tokens: [K, N, D], entering the
    first of them, of the crops of all scenes. descriptors: the v_i, [K, D_out], as the encoder reads them
    out: their length (32 for DINOv2 ViT-S) decides how far a step of `lr` turns t. masks: [K, S, S], 0..1;
    scene: int64 [K], 0..S-1, ascending. Raises ObjectsError for tokens that are no numbers.
    """
    blocks = [blocks] if isinstance(blocks, LastBlock) else blocks
    bad = ~torch.isfinite(tokens).flatten(1).all(1)
    if bad.any():
        raise ObjectsError(f"crop {int(bad.nonzero()[0, 0])}: its tokens are not finite")
    each = sum(bytes_per_crop(block, tokens.shape[1], tokens.dtype) for block in blocks)
    refined = []
    for part in parts(scene, max(1, settings.budget // each)):
        some = (tokens[part], descriptors[part], masks[part], scene[part] - scene[part.start])
        refined.append(optimize(make_problem(blocks, *some, settings), settings))
    return torch.cat(refined) if refined else tokens.new_zeros(0, blocks[-1].dim_out)


def make_problem(
    blocks: Sequence[LastBlock],
    tokens: Tensor,
    descriptors: Tensor,
    masks: Tensor,
    scene: Tensor,
    settings: MaoSettings,
) -> Problem:
    """That of scenes which are refined at once. See `refine`."""
    constants = precompute_all(blocks, tokens, settings.products)
    patches = constants[0].values.shape[2]
    batch = scene if settings.normalise == "batch" else None
    goal = target(masks.to(tokens), patches, settings.upsample, batch)
    owner = scene if settings.token == "joint" else torch.arange(len(scene), device=scene.device)
    mean = averaging(owner).to(tokens)
    return Problem(constants, goal, mean, mean @ descriptors)


def precompute_all(
    blocks: Sequence[LastBlock], tokens: Tensor, products: str | None = None
) -> list[LegradConstants]:
    """The constants of each block in turn. tokens: [B, N, D], entering the first. products: dtype."""
    constants = []
    for i, block in enumerate(blocks):
        own = precompute(block, tokens)
        constants.append(own if products is None else own.products(getattr(torch, products)))
        if i + 1 < len(blocks):
            tokens = block.forward(tokens)
    return constants


def optimize(problem: Problem, settings: MaoSettings) -> Tensor:
    """The tokens after the last step, [T, D_out], unit rows. See `steps`."""
    t = problem.start
    for t in steps(problem, settings):  # noqa: B007
        pass
    return F.normalize(t, dim=-1)


def steps(problem: Problem, settings: MaoSettings) -> Iterator[Tensor]:
    """The tokens [T, D_out] after each step of AdamW, written over by the next; each is independent of the others but
    for a normalisation that they share.

    AdamW is written out: torch's own waits for the device at every step.
    """
    t, work = problem.start.clone(), [Workspace(part) for part in problem.constants]
    first, second = torch.zeros_like(t), torch.zeros_like(t)
    for step in range(1, settings.iterations + 1):
        _, grad = loss(problem, t, settings.alpha, work)
        t.mul_(1 - settings.lr * settings.weight_decay)
        first.lerp_(grad, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        scale = second.sqrt().div_((1 - BETAS[1] ** step) ** 0.5).add_(TINY)
        t.addcdiv_(first, scale, value=-settings.lr / (1 - BETAS[0] ** step))
        yield t


def loss(
    problem: Problem, t: Tensor, alpha: float, work: Sequence[Workspace] | None = None
) -> tuple[Tensor, Tensor]:
    """mean_i dice_i + alpha (1 - cos(t, t0)) of each token, [T], and the gradient of their sum to t, [T, D_out]."""
    work = work or [Workspace(part) for part in problem.constants]
    length = t.norm(dim=-1, keepdim=True)
    unit, origin = t / length, F.normalize(problem.start, dim=-1)
    pairs = list(zip(problem.constants, work, strict=True))
    rows = problem.mean.T.sign() @ unit
    raw = torch.stack([maps(part, rows, own)[0] for part, own in pairs]).sum(0)
    distance, to_maps = dice(raw, problem.goal)
    to_crops = [pull_back(part, to_maps, own) for part, own in pairs]
    to_unit = problem.mean @ torch.stack(to_crops).sum(0) - alpha * origin
    value = problem.mean @ distance + alpha * (1 - (unit * origin).sum(-1))
    return value, (to_unit - unit * (unit * to_unit).sum(-1, keepdim=True)) / length


def explain_maps(constants: Sequence[LegradConstants], t: Tensor, size: int) -> Tensor:
    """The normalised map of each crop, [K, size, size], 0..1. t: [K, D_out], unit rows."""
    return upsampled(normalized(torch.stack([maps(part, t)[0] for part in constants]).sum(0)), size)


def averaging(scene: Tensor) -> Tensor:
    """[S, K]: times the rows of K crops, the mean of each scene. scene: int64 [K], 0..S-1."""
    member = F.one_hot(scene).T.float()
    return member / member.sum(1, keepdim=True)


def bytes_per_crop(block: LastBlock, tokens: int, dtype: torch.dtype) -> int:
    """Of one crop in `optimize`: two constants and a buffer of N x H, the relevances, and five of N x D."""
    hidden = sum(len(block.weights[name]) for name in ("fc1.weight", "gate.weight") if name in block.weights)
    numbers = tokens * (3 * hidden + block.heads * tokens + 5 * block.dim)
    return numbers * torch.finfo(dtype).bits // 8


def parts(scene: Tensor, max_crops: int) -> list[slice]:
    """Runs of whole scenes of at most `max_crops` crops (one scene where it alone has more)."""
    ends = (torch.bincount(scene).cumsum(0)).tolist() if len(scene) else []
    runs, first, last = [], 0, 0
    for end in ends:
        if end - first > max_crops and last > first:
            runs.append(slice(first, last))
            first = last
        last = end
    return [*runs, slice(first, last)] if last > first else runs
