"""Train the detector's head on labelled folders: tokens once, then the head alone, minutes on a CPU.

Every object that is labelled counts, whatever it is; every cell near an object's middle is to name its box.
Varifocal loss: a cell's score is to be the IoU of the box it names; generalised IoU for the box itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant import images as pictures
from soir_qdrant.errors import DatasetError
from soir_qdrant.evaluate.bench import Bench, GalleryImage
from soir_qdrant.train.head import Head, batched
from soir_qdrant.train.progress import HeadPlan, Progress, place_of, split, train_epochs, write_once
from soir_qdrant.vision.boxes import intersection_over_union
from soir_qdrant.vision.embedded import TokenSource
from soir_qdrant.vision.fitted import trunk
from soir_qdrant.vision.head import chosen, inputs

CORE, LEAST_CORE = 0.5, 0.75  # a cell is near the middle: share of the box, and cells, at least


@dataclass(frozen=True, slots=True)
class Plan(HeadPlan):
    """batch: scenes."""

    epochs: int = 24
    batch: int = 4


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A scene on disk. size: its width and height in pixels; boxes: float32 [k, 4] in pixels."""

    file: Path
    size: tuple[int, int]
    boxes: NDArray[np.float32]


def examples(
    benches: Sequence[Bench], source: TokenSource, cache: Path, advance: Callable[[], None] = lambda: None
) -> list[Example]:
    """What the head sees of each scene, computed once and kept in `cache` (2.5 MB a scene)."""
    found = []
    for bench in benches:
        place = place_of(cache, bench, "detector's tiles", trunk(getattr(source, "fingerprint", "")))
        place.mkdir(parents=True, exist_ok=True)
        for i, entry in enumerate(bench.gallery):
            file = place / f"{i:05d}.npz"
            write_once(file, partial(_write, source, entry))
            with np.load(file) as held:
                width, height = held["size"].tolist()
            found.append(Example(file, (width, height), entry.boxes))
            advance()
    if not any(len(one.boxes) for one in found):
        raise DatasetError("no labelled object in these folders: there is nothing to learn from")
    return found


def _write(source: TokenSource, entry: GalleryImage, out: BinaryIO) -> None:
    image = pictures.load(entry.file).rgb
    grid, small = inputs(source, image)
    np.savez(out, grid=grid.astype(np.float16), small=small, size=image.shape[1::-1])


def train(
    head: Head,
    scenes: Sequence[Example],
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    told: Callable[[dict[str, float]], None] = lambda _: None,
) -> Head:
    """Train in place; returns the head. state: written after every epoch; where it is there, training goes on
    from it, to the same result as without the interruption. log: one JSON line per epoch. data: see
    `Progress`.

    Raises ConfigError where `state` belongs to another plan or other data.
    """
    kept, held = split(scenes, plan)

    def value(rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        return torch.stack(list(_losses(head, [kept[i] for i in rows], rng))).mean()

    steps = math.ceil(len(kept) / plan.batch)
    progress = Progress(plan, state, log, data)
    train_epochs(head, progress, len(kept), steps, value, lambda: measure(head, held), told)
    return head


def measure(head: Head, scenes: Sequence[Example], most: int = 25) -> dict[str, float]:
    """recall: of the labelled objects, by IoU >= 0.5, at `most` boxes a scene; precision: average precision
    of all boxes in the order of their scores."""
    head.eval()
    hits: list[tuple[float, bool]] = []
    total = found = 0
    for one in scenes:
        with torch.inference_mode():
            logits, named = head(*batched([_read(one)]))
        scores, boxes = logits[0].sigmoid().numpy(), named[0].numpy()
        seen = chosen(scores, boxes, one.size, threshold=0.0, iou=0.5, most=most)
        overlaps = (
            intersection_over_union(seen.boxes, one.boxes)
            if len(one.boxes)
            else np.zeros((len(seen.boxes), 0))
        )
        total += len(one.boxes)
        taken: set[int] = set()
        for score, row in zip(seen.scores, overlaps, strict=True):
            best = int(row.argmax()) if row.size else -1
            right = best >= 0 and row[best] >= 0.5 and best not in taken
            taken |= {best} if right else set()
            hits.append((float(score), right))
        found += len(taken)
    right = np.array([ok for _, ok in sorted(hits, key=lambda hit: -hit[0])], bool)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return {
        "recall": round(found / max(total, 1), 4),
        "precision": round(float((precision * right).sum() / max(total, 1)), 4),
    }


def _losses(head: Head, picked: Sequence[Example], rng: np.random.Generator) -> Iterator[Tensor]:
    """One loss per scene; half of the scenes are mirrored."""
    for one in picked:
        grid, small = _read(one)
        h, w = grid.shape[:2]
        boxes = one.boxes * np.array([w / one.size[0], h / one.size[1]] * 2, np.float32)
        if rng.random() < 0.5:
            grid, small = grid[:, ::-1].copy(), small[:, ::-1].copy()
            boxes = np.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1)
        logits, named = head(*batched([(grid, small)]))
        yield loss(logits[0], named[0], torch.from_numpy(np.ascontiguousarray(boxes)))


def loss(logits: Tensor, named: Tensor, boxes: Tensor) -> Tensor:
    """Of one scene. logits: [h, w]; named: [h, w, 4], boxes: [k, 4], in cells."""
    owner = assign(boxes, logits.shape[0], logits.shape[1])
    near = owner >= 0
    goal, weight = torch.zeros_like(logits), logits.detach().sigmoid() ** 2
    regression = logits.new_zeros(())
    if near.any():
        owners = owner[near]
        share = 1 / owners.bincount()[owners]  # of its object's cells: small objects count like large ones
        share = share / share.mean()
        overlap, generalised = _overlaps(named[near], boxes[owners])
        goal[near] = overlap.detach().clamp(min=0)
        regression = (share * (1 - generalised)).mean()
        weight[near] = share * goal[near].clamp(min=0.1)
    scored = (weight * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")).sum()
    return scored / max(int(near.sum()), 1) + 2 * regression


def assign(boxes: Tensor, h: int, w: int) -> Tensor:
    """Which box each cell is to name, int64 [h, w], -1 for none: the smallest whose middle is near."""
    owner = torch.full((h, w), -1)
    x, y = torch.arange(w) + 0.5, torch.arange(h) + 0.5
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in area.argsort(descending=True).tolist():
        x0, y0, x1, y1 = boxes[i].tolist()
        dx, dy = max(CORE * (x1 - x0) / 2, LEAST_CORE), max(CORE * (y1 - y0) / 2, LEAST_CORE)
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


def _read(one: Example) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    with np.load(one.file) as held:
        return held["grid"], held["small"]
