"""Train the segmenter's head on labelled folders with masks: what each box shows once, then the head alone.

Images count alike, however many objects they have, under boxes that sit as badly as a detector's. Binary
cross-entropy and Dice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant import images as image_io
from soir_qdrant.contracts import FeatureSource
from soir_qdrant.errors import DatasetError
from soir_qdrant.geometry.crops import share, square_pixels, whole_box
from soir_qdrant.geometry.plain_background import QUERY_FRAME
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.train.progress import (
    HeadPlan,
    Progress,
    place_of,
    split,
    starting_head,
    train_epochs,
    write_once,
)
from soir_qdrant.lab.train.views import jittered
from soir_qdrant.models.compatibility import trunk
from soir_qdrant.models.heads.masks import CELLS, SIDE, MaskHead
from soir_qdrant.models.segmenters.windows import (
    FEW_CELLS,
    Window,
    box_planes,
    resized_tokens,
    sampled_tokens,
    window,
    window_image,
    window_tokens,
)
from soir_qdrant.models.token_grid import AREA, tiled_grid
from soir_qdrant.types import RGB, Box, Mask

MAX_OBJECTS = 12  # of an image
JITTERS = (0.06, 0.12)  # of a box, one view of the object each; see `views.jittered`
QUERIES, AS_QUERY = 4, 0.04  # objects that are also seen in a crop as tight as a query, and its jitter
PARTS = ("small", "planes", "tokens", "mask")  # of a view; see `MaskHead`; the mask is uint8
MEASURED = 64  # views that are measured at once


@dataclass(frozen=True, slots=True)
class Plan(HeadPlan):
    """batch: views; views: of each image in an epoch, drawn at random; start: digest of the head to start
    from, empty for a new one."""

    epochs: int = 6
    batch: int = 32
    views: int = 6
    start: str = ""


def untrained(start: Path | None, fitted_for: str) -> tuple[Callable[[int], MaskHead], str]:
    """The head to train, new or of a file; see `starting_head`."""
    return starting_head(start, fitted_for, MaskHead, _of_file)


def _of_file(file: Path) -> tuple[MaskHead, str]:
    head = MaskHead.load(file)
    return head, head.fitted_for


def examples(
    benches: Sequence[Bench], source: FeatureSource, cache: Path, advance: Callable[[], None] = lambda: None
) -> list[Path]:
    """What the head reads of each image's objects, a file an image, computed once (180 kB a view)."""
    files = []
    for bench in benches:
        place = place_of(cache, bench, f"segmenter {SIDE} of {AREA}", trunk(source.fingerprint))
        place.mkdir(parents=True, exist_ok=True)
        for i, entry in enumerate(bench.gallery):
            file = place / f"{i:05d}.npy"
            if entry.masked and entry.objects:
                write_once(file, partial(_write, source, entry, np.random.default_rng(i)))
                files.append(file)
            advance()
    if not files:
        raise DatasetError("no scene with masks in these folders: there is nothing to learn from")
    return files


def train(
    head: MaskHead,
    scenes: Sequence[Path],
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> MaskHead:
    """Train in place; returns the head. state, log, data: see `Progress`: it goes on where it was killed, to
    the same result. Memory: of a batch."""
    training, measured = (Views(files) for files in split(scenes, plan))

    def value(draws: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        rows = training.drawn(draws // plan.views, rng)
        small, planes, tokens, mask = _turned(rng, *training.take(np.sort(rows)))
        return loss(head(small, planes, tokens), mask)

    count, progress = len(training.files) * plan.views, Progress(plan, state, log, data)
    steps = max(count // plan.batch, 1)
    iou = partial(measure, head, measured)
    train_epochs(head, progress, count, steps, value, lambda: {"iou": iou()}, report, warm=0.02)
    return head


def loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, and one less Dice. logits, mask (0..1): [B, SIDE, SIDE]."""
    chance = logits.sigmoid()
    both, all_of_it = (chance * mask).sum((1, 2)), (chance + mask).sum((1, 2))
    dice = (2 * both + 1) / (all_of_it + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - dice).mean()


class Views:
    """What the head reads of some images' objects, left on disk. files: of `examples`."""

    def __init__(self, files: Sequence[Path]) -> None:
        sizes = np.array([len(np.load(file, mmap_mode="r")) for file in files], np.int64)
        self.files = [file for file, size in zip(files, sizes, strict=True) if size]
        self.sizes = sizes[sizes > 0]
        self.ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def drawn(self, images: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """A row of each of some images (numbers of their files), drawn at random."""
        sizes = self.sizes[images]
        return self.ends[images] - sizes + (rng.random(len(images)) * sizes).astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """PARTS of some views, float32 [n, ...], the mask 0..1."""
        places = np.searchsorted(self.ends, rows, side="right")
        firsts = (self.ends - self.sizes)[places]
        crops = [
            np.load(self.files[place], mmap_mode="r")[row]
            for place, row in zip(places.tolist(), (rows - firsts).tolist(), strict=True)
        ]
        small, planes, tokens, mask = (
            torch.from_numpy(np.stack([one[name] for one in crops])).float() for name in PARTS
        )
        return [small, planes, tokens, mask / 255]


def measure(head: MaskHead, views: Views) -> float:
    """Mean over images of the mean IoU of the predicted masks with the true ones, at SIDE pixels."""
    return round(float(np.mean([each.mean() for each in overlaps(head, views)])), 4) if len(views) else 0.0


def overlaps(head: MaskHead, views: Views) -> list[NDArray[np.float32]]:
    """IoU of the predicted masks with the true ones, of each image's views, in order."""
    head.eval()
    shares: list[NDArray[np.float32]] = []
    for i in range(0, len(views), MEASURED):
        small, planes, tokens, mask = views.take(np.arange(i, min(i + MEASURED, len(views))))
        with torch.inference_mode():
            predicted = head(small, planes, tokens) > 0
        true = mask > 0.5
        common, either = (predicted & true).sum((1, 2)), (predicted | true).sum((1, 2))
        shares.append((common / either.clamp_min(1)).numpy())
    return np.split(np.concatenate(shares), views.ends[:-1])


def _write(source: FeatureSource, entry: GalleryImage, rng: np.random.Generator, out: BinaryIO) -> None:
    """Some objects of an image, under every jitter and as a query shows them, one record each."""
    image = image_io.load(entry.file)
    masks = [
        (item.box, mask)
        for item, mask in zip(entry.objects, entry.masks() or [], strict=True)
        if mask is not None and mask.any()
    ]
    chosen = [masks[i] for i in rng.permutation(len(masks))[:MAX_OBJECTS]]
    near = [(image.rgb, mask, jittered(box, image, rng, by)) for box, mask in chosen for by in JITTERS]
    tight = [
        _as_query(image.rgb, mask, jittered(box, image, rng, AS_QUERY)) for box, mask in chosen[:QUERIES]
    ]
    crops = near + tight
    windows = [window(box, rgb.shape) for rgb, _, box in crops]
    kinds = [
        ("small", np.uint8, (SIDE, SIDE, 3)),
        ("planes", np.float16, (SIDE, SIDE, 2)),
        ("tokens", np.float16, (CELLS**2, 0)),
        ("mask", np.uint8, (SIDE, SIDE)),
    ]
    if not crops:
        np.save(out, np.zeros(0, kinds))
        return
    grid = tiled_grid(source, image.rgb, AREA)
    sampled = sampled_tokens(grid, image.rgb.shape, windows[: len(near)], CELLS)
    alone = window_tokens(source, [rgb for rgb, _, _ in tight], windows[len(near) :], FEW_CELLS)
    kinds[2] = ("tokens", np.float16, sampled.shape[1:])
    records = np.zeros(len(crops), kinds)
    records["tokens"] = np.concatenate([sampled, resized_tokens(alone, CELLS)])
    for record, (rgb, mask, box), at in zip(records, crops, windows, strict=True):
        record["small"], record["planes"] = window_image(rgb, at, SIDE), box_planes(box, at, SIDE)
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


def _small_mask(mask: NDArray[np.bool_], at: Window) -> NDArray[np.uint8]:
    inside = share(square_pixels(mask.view(np.uint8), *at, np.uint8(0)), SIDE)
    return np.asarray((inside * 255).round(), np.uint8)


def _turned(rng: np.random.Generator, *parts: Tensor) -> list[Tensor]:
    """Half of the batches mirrored, a third upside down. parts: see PARTS."""
    axes = [axis for axis, chance in ((2, 1 / 2), (1, 1 / 3)) if rng.random() < chance]
    small, planes, tokens, mask = parts
    grid = tokens.unflatten(1, (CELLS, CELLS))
    return [small.flip(axes), planes.flip(axes), grid.flip(axes).flatten(1, 2), mask.flip(axes)]
