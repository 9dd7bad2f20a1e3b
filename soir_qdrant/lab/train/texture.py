"""Train the head that reads textures: two looks at a thing are to be alike, those at all others not.

Where a thing comes again, in another place, the two looks are of two places; else of one, as two cameras might have
taken it. InfoNCE both ways, and a spread over the sphere (KoLeo: Sablayrolles et al., 1806.03198), as copy detectors
are trained (Pizzi et al., 2202.10261).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.lab.train.progress import Progress, set_rate
from soir_qdrant.lab.train.surfaces import Looks, view, weights_of
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.heads.texture import TextureHead

TEMPERATURE, SPREAD = 0.07, 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """steps of `batch` things, each looked at twice; again: share of things that come again; every: steps between two
    lines of the log, and states."""

    steps: int = 1500
    batch: int = 128
    lr: float = 1e-3
    decay: float = 0.02
    seed: int = 0
    again: float = 0.35
    every: int = 50


def loss(rows: Tensor) -> Tensor:
    """rows: [2 B, L], unit; the two looks at a thing follow one another."""
    things = torch.arange(len(rows), device=rows.device) // 2
    alike = rows @ rows.T
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    others = alike.masked_fill(things[:, None] == things, -1)
    nearest = (2 - 2 * others.amax(1)).clamp_min(1e-4).sqrt()
    known = F.cross_entropy((alike / TEMPERATURE).masked_fill(itself, -torch.inf), _partners(rows))
    return known - SPREAD * nearest.log().mean()


def train(
    head: TextureHead,
    examples: Looks,
    encoder: ViTEncoder,
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> TextureHead:
    """Train in place; returns the head. state, log, data: see `Progress`: it goes on where it was killed, to the same
    result. Memory: of a few batches."""
    progress = Progress(plan, state, log, data)
    head.to(encoder.device)
    adam = torch.optim.AdamW(head.parameters(), lr=plan.lr, weight_decay=plan.decay)
    total = right = 0.0
    first = progress.resume(head, adam)
    head.train()
    device = encoder.device.type
    for step, (tokens, weights) in enumerate(_batches(examples, encoder, plan, first), first):
        set_rate(adam, plan.lr, step / plan.steps, 0.02)
        with torch.autocast(device, torch.bfloat16, enabled=encoder.dtype is torch.bfloat16):
            rows = head(tokens, weights)
        value = loss(rows.float())
        adam.zero_grad()
        value.backward()
        adam.step()
        total += float(value.detach())
        right += _first(rows.detach().float())
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            since = (step % plan.every) + 1
            line = {"step": step + 1, "loss": round(total / since, 4), "first": round(right / since, 4)}
            progress.keep(step + 1, head, adam, line)
            report(line)
            total = right = 0.0
    return head.eval()


def _partners(rows: Tensor) -> Tensor:
    """The places of the other looks."""
    return torch.arange(len(rows), device=rows.device) ^ 1


def _first(rows: Tensor) -> float:
    """Share of looks whose nearest is the other look at their thing."""
    alike = (rows @ rows.T).fill_diagonal_(-1)
    return float((alike.argmax(1) == _partners(rows)).float().mean())


def _batches(
    examples: Looks, encoder: ViTEncoder, plan: Plan, first: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What the head reads in each step, the same whatever was done before; the next ones are prepared meanwhile."""

    def batch(step: int) -> tuple[list[Tensor], Tensor]:
        rng = np.random.default_rng((plan.seed, step))
        size = encoder.texture_size
        views = np.stack(
            [
                view(examples.pixels[i], examples.pixels[int(rng.integers(len(examples)))], size, rng)
                for pair in examples.pairs(plan.batch, plan.again, rng)
                for i in pair
            ]
        )
        weights = torch.from_numpy(weights_of(views)).to(encoder.device)
        return [x.clone() for x in encoder.texture_tokens(views[..., :3])], weights  # learnt from

    ahead = os.cpu_count() or 1  # the head learns meanwhile, but for less than they take
    with ThreadPoolExecutor(ahead) as pool:
        waiting = [pool.submit(batch, step) for step in range(first, min(first + 2 * ahead, plan.steps))]
        for step in range(first, plan.steps):
            yield waiting.pop(0).result()
            if step + 2 * ahead < plan.steps:
                waiting.append(pool.submit(batch, step + 2 * ahead))
