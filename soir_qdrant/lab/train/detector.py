"""Train the detector's head on labelled folders: tokens once, then the head alone, minutes on a CPU.

Every object that is labelled counts, whatever it is; every cell near an object's middle, on the levels of
its size, is to name its box. Varifocal loss (arXiv 2008.13367): a cell's score is to be the IoU of the box it
names; generalised IoU (1902.09630) for the box itself. What is not labelled is background only where all is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.lab.train.looks import Example
from soir_qdrant.lab.train.progress import HeadPlan, Progress, split, starting_head, train_epochs
from soir_qdrant.models.detectors.choice import chosen
from soir_qdrant.models.detectors.token_head import batched, named
from soir_qdrant.models.heads.boxes import STRIDES, Head, TrainedHead, flat

CORE, MIN_CORE = 0.5, 0.75  # a cell is near the middle: share of the box, and cells, at least
RANGES = {1: (0.0, 7.0), 2: (5.0, 16.0), 4: (12.0, math.inf)}  # by stride: sides of its objects, in tokens
UNSURE = 0.3  # chance above which no cell is taught more strongly that it is background, if that is not known


@dataclass(frozen=True, slots=True)
class Plan(HeadPlan):
    """batch: scenes. start: digest of the head that training starts from; see `untrained`."""

    epochs: int = 24
    batch: int = 4
    start: str = ""


def untrained(start: Path | None, fitted_for: str) -> tuple[Callable[[int], Head], str]:
    """The head to train, new or of a file; see `starting_head`."""

    def load(file: Path) -> tuple[Head, str]:
        trained = TrainedHead.load(file)
        return trained.network, trained.fitted_for

    return starting_head(start, fitted_for, Head, load)


def average(file: Path, start: Path, share: float) -> None:
    """Write the weighted mean of two heads, that of a training and the one it started from: it keeps what the
    first knew where the new folders are of another kind (arXiv 2109.01903).

    Args:
        file: the trained head, which is replaced by the mean.
        start: the head that its training started from.
        share: 0..1, weight of the trained one.

    Raises:
        ConfigError: where one of them is no head, or they are of different encoders or sizes.
    """
    trained, first = TrainedHead.load(file), TrainedHead.load(start)
    mine, other = trained.network.state_dict(), first.network.state_dict()
    if trained.fitted_for != first.fitted_for or any(mine[n].shape != x.shape for n, x in other.items()):
        raise ConfigError(f"{file}, {start}: heads of different encoders or sizes have no mean")
    mean = {name: share * x + (1 - share) * other[name] for name, x in mine.items()}
    trained.network.load_state_dict(mean)
    trained.network.save(file, trained.fitted_for)


def train(
    head: Head,
    scenes: Sequence[Example],
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> Head:
    """Train in place; returns the head. state: written after every epoch; where it is there, training goes on
    from it, to the same result as without the interruption. log: one JSON line per epoch. data: see
    `Progress`.

    Raises ConfigError where `state` belongs to another plan or other data.
    """
    training, holdout = split(scenes, plan)

    def value(rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        return torch.stack(list(_losses(head, [training[i] for i in rows], rng))).mean()

    steps = math.ceil(len(training) / plan.batch)
    progress = Progress(plan, state, log, data)
    train_epochs(head, progress, len(training), steps, value, lambda: measure(head, holdout), report)
    return head


def measure(head: Head, scenes: Sequence[Example], max_boxes: int = 100) -> dict[str, float]:
    """recall at 25 and at `max_boxes` boxes an image: of the labelled objects, by IoU >= 0.5; precision: average
    precision of all boxes in the order of their scores, of the exhaustively labelled images."""
    head.eval()
    hits: list[tuple[float, bool]] = []
    total = labelled = matches = early = 0
    for one in scenes:
        scores, boxes = named(head, one.read(), one.size)
        detections = chosen(scores, boxes, one.size, threshold=0.0, iou=0.5, max_objects=max_boxes)
        matched = _matched(detections.boxes, one.boxes)
        total, matches = total + len(one.boxes), matches + int(matched.sum())
        early += int(matched[:25].sum())
        if one.exhaustive:
            labelled += len(one.boxes)
            hits += zip(detections.scores.tolist(), matched.tolist(), strict=True)
    right = np.array([ok for _, ok in sorted(hits, key=lambda hit: -hit[0])], bool)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return {
        "recall": round(early / max(total, 1), 4),
        f"recall at {max_boxes}": round(matches / max(total, 1), 4),
        "precision": round(float((precision * right).sum() / max(labelled, 1)), 4),
    }


def _matched(boxes: NDArray[np.float32], true: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which boxes, best first, are the first to meet their object by IoU >= 0.5, bool [n]."""
    right = np.zeros(len(boxes), np.bool_)
    if not len(true):
        return right
    taken: set[int] = set()
    for i, row in enumerate(intersection_over_union(boxes, true)):
        best = int(row.argmax())
        right[i] = row[best] >= 0.5 and best not in taken
        taken |= {best} if right[i] else set()
    return right


def _losses(head: Head, picked: Sequence[Example], rng: np.random.Generator) -> Iterator[Tensor]:
    """One loss per image; half of the images are mirrored."""
    for one in picked:
        grid, small = one.read()
        h, w = grid.shape[:2]
        scale = np.array([w / one.size[0], h / one.size[1]] * 2, np.float32)
        boxes, unknown = one.boxes * scale, one.unknown * scale
        if rng.random() < 0.5:
            grid, small = grid[:, ::-1].copy(), small[:, ::-1].copy()
            boxes, unknown = _mirrored(boxes, w), _mirrored(unknown, w)
        levels = head(*batched([(grid, small)]))
        yield loss(levels, torch.from_numpy(boxes), torch.from_numpy(unknown), exhaustive=one.exhaustive)


def _mirrored(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def loss(
    levels: list[tuple[Tensor, Tensor]], boxes: Tensor, unknown: Tensor, *, exhaustive: bool = True
) -> Tensor:
    """Of one image. levels: of `Head`, of a batch of one; boxes: [k, 4], unknown: [u, 4], in tokens.

    Where not all is labelled, a cell that is surely an object's by its own word is hardly taught otherwise.
    """
    logits, corners = (x[0] for x in flat(levels))
    owner = torch.cat([_owners(boxes, logit.shape[1:], stride) for (logit, _), stride in _strided(levels)])
    masked = torch.cat([_inside(unknown, logit.shape[1:], stride) for (logit, _), stride in _strided(levels)])
    near = owner >= 0
    chance = logits.detach().sigmoid()
    goal, weight = torch.zeros_like(logits), chance**2
    if not exhaustive:
        weight = weight.clamp(max=UNSURE**2)
    weight[masked] = 0
    regression = logits.new_zeros(())
    if near.any():
        owners = owner[near]
        share = 1 / owners.bincount()[owners]  # of its object's cells: small objects count like large ones
        share = share / share.mean()
        overlap, generalised = _overlaps(corners[near], boxes[owners])
        goal[near] = overlap.detach().clamp(min=0)
        regression = (share * (1 - generalised)).mean()
        weight[near] = share * goal[near].clamp(min=0.1)
    scored = (weight * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")).sum()
    return scored / max(int(near.sum()), 1) + 2 * regression


def _strided(levels: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
    return zip(levels, STRIDES, strict=False)  # fewer levels: those of the smallest objects


def _owners(boxes: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """`assign`, flat, of the boxes that are of a level's size; the others are none of its business."""
    low, high = RANGES[stride]
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
    mine = ((side >= low) & (side < high)).nonzero()[:, 0]
    owner = assign(boxes[mine] / stride, *shape).flatten()
    return torch.where(owner >= 0, mine[owner.clamp(min=0)], owner) if len(mine) else owner


def _inside(boxes: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """Which cells of a level have their middle in one of the boxes, bool [h * w]."""
    y, x = (torch.arange(side) * stride + stride / 2 for side in shape)
    rows = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:4])
    columns = (x >= boxes[:, 0:1]) & (x <= boxes[:, 2:3])
    return (rows[:, :, None] & columns[:, None]).any(0).flatten()


def assign(boxes: Tensor, h: int, w: int) -> Tensor:
    """Which box each cell is to name, int64 [h, w], -1 for none: the smallest whose middle is near."""
    owner = torch.full((h, w), -1)
    x, y = torch.arange(w) + 0.5, torch.arange(h) + 0.5
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in area.argsort(descending=True).tolist():
        x0, y0, x1, y1 = boxes[i].tolist()
        dx, dy = max(CORE * (x1 - x0) / 2, MIN_CORE), max(CORE * (y1 - y0) / 2, MIN_CORE)
        inside = ((y - (y0 + y1) / 2).abs() <= dy)[:, None] & ((x - (x0 + x1) / 2).abs() <= dx)
        owner[inside] = i
    return owner


def _overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of pairs of boxes, [n, 4] each."""
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - common
    hull = torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])
    whole = hull.prod(1)
    overlap = common / union
    return overlap, overlap - (whole - union) / whole
