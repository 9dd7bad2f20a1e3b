"""What the detector's head is trained on: looks at labelled images, some whole, some cropped, at several
sizes; their tokens are computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from soir_qdrant import images as image_io
from soir_qdrant.contracts import FeatureSource
from soir_qdrant.errors import DatasetError
from soir_qdrant.geometry.boxes import areas
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.train.progress import place_of, write_once
from soir_qdrant.models.compatibility import trunk
from soir_qdrant.models.detectors.token_head import inputs
from soir_qdrant.models.token_grid import AREA

ZOOMS = (0.4, 0.6, 0.8, 1.1)  # areas that are looked at, as shares of the usual one
WHOLE = 0.7  # share of images that are looked at whole
MIN_SHARE = 0.67  # of an object that a crop must show


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A look at an image, on disk.

    Attributes:
        file: what the head sees of it.
        size: width and height of what is looked at, in pixels.
        boxes: float32 [k, 4], the objects, in those pixels.
        unknown: float32 [u, 4], where the loss does not look: neither object nor background.
        exhaustive: False where what is not boxed may be an object all the same.
    """

    file: Path
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    unknown: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    exhaustive: bool = True

    def read(self) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """The tokens [h, w, D] and the small image [8 h, 8 w, 3] of this look."""
        with np.load(self.file) as arrays:
            return arrays["grid"], arrays["small"]


@dataclass(frozen=True, slots=True)
class Look:
    """What of an image is looked at, x0, y0, x1, y1 as shares of its sides, and at how many pixels."""

    window: tuple[float, float, float, float]
    area: int

    @classmethod
    def of(cls, number: int, seed: int) -> Look:
        """The look at an image by its number in a folder: most whole, some cropped, at different sizes."""
        rng = np.random.default_rng((seed, number))
        area = round(AREA * float(rng.choice(ZOOMS)))
        if rng.random() < WHOLE:
            return cls((0.0, 0.0, 1.0, 1.0), area)
        side = rng.uniform(0.5, 0.9)
        x, y = rng.uniform(0, 1 - side, 2)
        return cls((x, y, x + side, y + side), area)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The window in whole pixels of an image."""
        x0, y0, x1, y1 = np.round(np.array(self.window) * [width, height, width, height]).astype(int).tolist()
        return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def examples(
    benches: Sequence[Bench],
    source: FeatureSource,
    cache: Path,
    advance: Callable[[], None] = lambda: None,
    *,
    seed: int = 0,
    unknown: Sequence[str] = (),
) -> list[Example]:
    """What the head sees of each image, computed once and kept in `cache` (1.5 MB an image). unknown: names
    of kinds whose boxes are neither objects nor background."""
    collected = []
    for bench in benches:
        depends_on = f"detector's looks {seed}", trunk(source.fingerprint)
        place = place_of(cache, bench, *depends_on, labels=False)
        place.mkdir(parents=True, exist_ok=True)
        for i, entry in enumerate(bench.gallery):
            file, look = place / f"{i:05d}.npz", Look.of(i, seed)
            write_once(file, partial(_write, source, entry, look))
            with np.load(file) as arrays:
                width, height = arrays["size"].tolist()
            collected.append(_example(file, entry, look.pixels(width, height), unknown))
            advance()
    if not any(len(one.boxes) for one in collected):
        raise DatasetError("no labelled object in these folders: there is nothing to learn from")
    return collected


def _write(source: FeatureSource, entry: GalleryImage, look: Look, out: BinaryIO) -> None:
    image = image_io.load(entry.file).rgb
    x0, y0, x1, y1 = look.pixels(image.shape[1], image.shape[0])
    grid, small = inputs(source, np.ascontiguousarray(image[y0:y1, x0:x1]), look.area)
    np.savez(out, grid=grid.astype(np.float16), small=small, size=image.shape[1::-1])


def _example(
    file: Path, entry: GalleryImage, window: tuple[int, int, int, int], unknown: Sequence[str]
) -> Example:
    """The labels as the window shows them: what it cuts off by a third or more is unknown."""
    x0, y0, x1, y1 = window
    size = (x1 - x0, y1 - y0)
    whole = entry.boxes - np.array([x0, y0, x0, y0], np.float32)
    cut = np.clip(whole, 0, np.array([*size, *size], np.float32))
    share = areas(cut) / np.maximum(areas(whole), 1e-6)
    named = np.array([item.name in unknown for item in entry.objects], bool)
    objects = (share >= MIN_SHARE) & ~named
    return Example(file, size, cut[objects], cut[(share > 0) & ~objects], entry.exhaustive)
