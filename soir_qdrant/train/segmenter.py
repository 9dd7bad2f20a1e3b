"""Train the segmenter's head on labelled folders with masks: what each box shows once, then the head alone.

Every labelled object counts, under boxes that sit as badly as a detector's. Binary cross-entropy and Dice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant import images as pictures
from soir_qdrant.errors import DatasetError
from soir_qdrant.evaluate.bench import Bench, GalleryImage
from soir_qdrant.pipeline import QUERY_FRAME
from soir_qdrant.train.mask_head import CELLS, MaskHead
from soir_qdrant.train.progress import HeadPlan, Progress, place_of, split, train_epochs, write_once
from soir_qdrant.train.views import jittered
from soir_qdrant.types import RGB, Box, Mask
from soir_qdrant.vision.crops import square_pixels, whole_box
from soir_qdrant.vision.embedded import TokenSource
from soir_qdrant.vision.fitted import trunk
from soir_qdrant.vision.mask_head import SIDE, box_planes, looked_at, picture, window

JITTERS = (0.06, 0.12)  # of a box, one view of the object each; see `views.jittered`
AS_QUERY = 0.04  # the same, in a crop as tight as a query
PARTS = ("small", "planes", "tokens", "mask")  # of a view; see `vision.mask_head`; the mask is uint8


@dataclass(frozen=True, slots=True)
class Plan(HeadPlan):
    """batch: objects."""

    epochs: int = 6
    batch: int = 32


def examples(
    benches: Sequence[Bench], source: TokenSource, cache: Path, advance: Callable[[], None] = lambda: None
) -> list[Path]:
    """What the head sees of each scene's objects, a file a scene, computed once (180 kB a view)."""
    found = []
    for bench in benches:
        place = place_of(cache, bench, f"segmenter {SIDE}", trunk(getattr(source, "fingerprint", "")))
        place.mkdir(parents=True, exist_ok=True)
        for i, entry in enumerate(bench.gallery):
            file = place / f"{i:05d}.npy"
            if entry.mask is not None and entry.objects:
                write_once(file, partial(_write, source, entry, np.random.default_rng(i)))
                found.append(file)
            advance()
    if not found:
        raise DatasetError("no scene with masks in these folders: there is nothing to learn from")
    return found


def train(
    head: MaskHead,
    scenes: Sequence[Path],
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    told: Callable[[dict[str, float]], None] = lambda _: None,
) -> MaskHead:
    """Train in place; returns the head. state, log, data: see `Progress`: it goes on where it was killed, to
    the same result. Memory: of a batch."""
    kept, held = (Views(files) for files in split(scenes, plan))

    def value(rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        small, planes, tokens, mask = _turned(rng, *kept.take(np.sort(rows)))
        return loss(head(small, planes, tokens), mask)

    count, progress = len(kept), Progress(plan, state, log, data)
    steps = max(count // plan.batch, 1)
    train_epochs(head, progress, count, steps, value, lambda: {"iou": measure(head, held)}, told, warm=0.02)
    return head


def loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, and one less Dice. logits, mask (0..1): [B, SIDE, SIDE]."""
    chance = logits.sigmoid()
    both, all_of_it = (chance * mask).sum((1, 2)), (chance + mask).sum((1, 2))
    dice = (2 * both + 1) / (all_of_it + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - dice).mean()


class Views:
    """What the head sees of some scenes' objects, left on disk. files: of `examples`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.ends = np.cumsum([len(np.load(file, mmap_mode="r")) for file in files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def take(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """PARTS of some views, float32 [n, ...], the mask 0..1."""
        places = np.searchsorted(self.ends, rows, side="right")
        firsts = np.concatenate([[0], self.ends])[places]
        seen = [
            np.load(self.files[place], mmap_mode="r")[row]
            for place, row in zip(places.tolist(), (rows - firsts).tolist(), strict=True)
        ]
        small, planes, tokens, mask = (
            torch.from_numpy(np.stack([one[name] for one in seen])).float() for name in PARTS
        )
        return [small, planes, tokens, mask / 255]


def measure(head: MaskHead, views: Views) -> float:
    """Mean IoU of the predicted masks with the true ones, at SIDE pixels."""
    head.eval()
    found: list[float] = []
    for i in range(0, len(views), 64):
        small, planes, tokens, mask = views.take(np.arange(i, min(i + 64, len(views))))
        with torch.inference_mode():
            said = head(small, planes, tokens) > 0
        true = mask > 0.5
        found += ((said & true).sum((1, 2)) / (said | true).sum((1, 2)).clamp_min(1)).tolist()
    return round(float(np.mean(found)), 4) if found else 0.0


def _write(source: TokenSource, entry: GalleryImage, rng: np.random.Generator, out: BinaryIO) -> None:
    """All objects of a scene, under every jitter and as a query shows it, one record each."""
    image = pictures.load(entry.file)
    seen: list[tuple[RGB, Mask, Box]] = []
    for item, mask in zip(entry.objects, entry.masks() or [], strict=True):
        seen += [(image.rgb, mask, jittered(item.box, image, rng, by)) for by in JITTERS]
        seen.append(_as_query(image.rgb, mask, jittered(item.box, image, rng, AS_QUERY)))
    windows = [window(box, rgb.shape) for rgb, _, box in seen]
    tokens = looked_at(source, [rgb for rgb, _, _ in seen], windows, CELLS).astype(np.float16)
    kinds = [
        ("small", np.uint8, (SIDE, SIDE, 3)),
        ("planes", np.float16, (SIDE, SIDE, 2)),
        ("tokens", np.float16, tokens.shape[1:]),
        ("mask", np.uint8, (SIDE, SIDE)),
    ]
    records = np.zeros(len(seen), kinds)
    records["tokens"] = tokens
    for record, (rgb, mask, box), at in zip(records, seen, windows, strict=True):
        record["small"], record["planes"] = picture(rgb, at, SIDE), box_planes(box, at, SIDE)
        record["mask"] = _small_mask(mask, at)
    np.save(out, records)


def _as_query(rgb: RGB, mask: Mask, box: Box) -> tuple[RGB, Mask, Box]:
    """A crop as tight as a query's, and the box that is looked at in it; see `Pipeline.query_crop`."""
    x0, y0, x1, y1 = box
    dx, dy = ((b - a) * QUERY_FRAME / (1 - 2 * QUERY_FRAME) for a, b in ((x0, x1), (y0, y1)))
    framed = (max(x0 - dx, 0), max(y0 - dy, 0), x1 + dx, y1 + dy)
    left, top, right, bottom = whole_box(framed, rgb.shape[1], rgb.shape[0])
    cut = (slice(top, bottom), slice(left, right))
    return rgb[cut], mask[cut], (x0 - left, y0 - top, x1 - left, y1 - top)


def _small_mask(mask: NDArray[np.bool_], at: tuple[int, int, int]) -> NDArray[np.uint8]:
    cut = square_pixels(mask, *at, np.float32(0))
    method = cv2.INTER_AREA if at[2] > SIDE else cv2.INTER_LINEAR
    return np.asarray((cv2.resize(cut, (SIDE, SIDE), interpolation=method) * 255).round(), np.uint8)


def _turned(rng: np.random.Generator, *parts: Tensor) -> list[Tensor]:
    """Half of the batches mirrored, a third upside down. parts: see PARTS."""
    axes = [axis for axis, chance in ((2, 1 / 2), (1, 1 / 3)) if rng.random() < chance]
    small, planes, tokens, mask = parts
    grid = tokens.unflatten(1, (CELLS, CELLS))
    return [small.flip(axes), planes.flip(axes), grid.flip(axes).flatten(1, 2), mask.flip(axes)]
