"""Retrieval metrics. All in percent, 0..100, but for detection recall, 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.geometry.boxes import areas, intersection_over_union
from soir_qdrant.types import Box

Bools = NDArray[np.bool_]
QUARTER_TURNS = range(5, 9)  # EXIF orientations that swap width and height
SHARES = {  # sizes of objects, as shares of the image
    "<0.5%": (0.0, 0.005),
    "0.5-1%": (0.005, 0.01),
    "1-3%": (0.01, 0.03),
    "3-10%": (0.03, 0.1),
    ">10%": (0.1, inf),
}


def average_precision(ranked: Bools, relevant: int | None = None, depth: int | None = None) -> float:
    """Mean precision at each relevant rank, over ALL relevant images: one that was not retrieved counts 0.

    ranked: bool [n], best first. relevant: how many there are (those in `ranked`); 0 gives 0. depth: ranks that are
    looked at (all), over min(depth, relevant): AP@k as of ILIAS.
    """
    total = int(ranked.sum()) if relevant is None else relevant
    ranks = np.flatnonzero(ranked[:depth]) + 1
    total = total if depth is None else min(total, depth)
    return float(100 * (np.arange(1, len(ranks) + 1) / ranks).sum() / total) if total else 0.0


def recall_at(ranked: Bools, k: int) -> float:
    """100 where at least one relevant image is among the first k, else 0. ranked: bool [n], best first."""
    return 100.0 * bool(ranked[:k].any())


def chance_precision(relevant: int, n: int) -> float:
    """Expected average precision of a random order of n images of which `relevant` >= 1 are right."""
    if n == 1:
        return 100.0
    ranks = np.arange(1, n + 1)
    return float(100 / n * ((1 + (ranks - 1) * (relevant - 1) / (n - 1)) / ranks).sum())


def chance_recall(relevant: int, n: int, k: int) -> float:
    """Expected `recall_at` k of a random order."""
    draws = np.arange(min(k, n))
    return float(100 * (1 - np.prod(np.maximum(n - relevant - draws, 0) / (n - draws))))


def ranking(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Indices by descending score; equal scores by ascending index, so that the order is the same every time."""
    return np.argsort(-np.asarray(scores), kind="stable")


def placed(box: Box | None, true: Sequence[Box]) -> bool:
    """Whether a box lies on one of some true ones, IoU >= 0.5."""
    hit_box = np.array([box] if box else np.zeros((0, 4)), np.float32)
    return bool(intersection_over_union(hit_box, np.array(true, np.float32)).max(initial=0) >= 0.5)


def image_size(file: Path) -> tuple[int, int]:
    """Width and height in pixels, after EXIF rotation; DatasetError where it is no image. Decodes nothing."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS
            return (image.height, image.width) if turned else (image.width, image.height)
    except OSError as error:
        raise DatasetError(f"{file}: not readable as an image ({error})") from error


def box_shares(boxes: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float64]:
    """Area of each box, [k, 4], as a share of an image of size (width, height)."""
    return np.asarray(areas(np.asarray(boxes, np.float64)) / (size[0] * size[1]))


def recall_by_size(hit: Bools, shares: NDArray[np.floating]) -> dict[str, float | None]:
    """Share, 0..1, of the objects of each size that were hit; None where there are none.

    hit: bool [n]; shares: [n], the object's part of its image, 0..1.
    """
    recalls: dict[str, float | None] = {}
    for name, (low, high) in SHARES.items():
        inside = (shares >= low) & (shares < high)
        recalls[name] = round(float(hit[inside].mean()), 4) if inside.any() else None
    return recalls
