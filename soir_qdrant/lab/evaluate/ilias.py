"""ILIAS (Kordopatis-Zilos et al., CVPR 2025, arXiv 2502.11748) as a `Bench`, out of its published folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, BenchQuery, GalleryImage
from soir_qdrant.lab.evaluate.distractors import distractors
from soir_qdrant.lab.evaluate.metrics import image_size
from soir_qdrant.types import Box

DISTRACTORS = "distractors"  # a folder of images that show none of the things


def load(path: Path, origin: str) -> Bench:
    """PATH/ilias_core/NAME/{query/Q*.jpg, pos/P*.jpg}, or PATH is ilias_core; boxes in Q*_bbox.txt and P*_bbox.txt, a
    line each: x, y, width, height. A query's box holds all of its; without the file it is the whole image.

    Images in PATH/distractors join the gallery without objects. Raises DatasetError where there are no such
    folders, or a file of boxes cannot be read.
    """
    core = path / "ilias_core" if (path / "ilias_core").is_dir() else path
    things = sorted(folder.parent for folder in core.glob("*/query") if (folder.parent / "pos").is_dir())
    if not things:
        raise DatasetError(f"{core}: no folders NAME/query and NAME/pos there, images are missing: {origin}")
    queries, gallery = [], []
    for thing in things:
        for file in sorted((thing / "query").glob("Q*.jpg")):
            boxes = np.array(_boxes(file))
            low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
            queries.append(BenchQuery(file, thing.name, (*low.tolist(), *high.tolist())))
        for file in sorted((thing / "pos").glob("P*.jpg")):
            gallery.append(GalleryImage(file, None, [BenchObject(thing.name, box) for box in _boxes(file)]))
    return Bench(path, [*gallery, *distractors(path / DISTRACTORS)], queries)


def _boxes(image: Path) -> list[Box]:
    """x0, y0, x1, y1 in pixels, inside the image; at least one."""
    width, height = image_size(image)
    file = image.with_name(f"{image.stem}_bbox.txt")
    if not file.is_file():
        return [(0.0, 0.0, float(width), float(height))]
    try:
        rows = np.loadtxt(file, ndmin=2)
        x, y, w, h = rows.T
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not lines of x, y, width, height ({error})") from error
    boxes = np.stack([x, y, x + w, y + h], 1).clip(0, [width, height, width, height])
    inside = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    if not len(inside):
        raise DatasetError(f"{file}: no box inside the image of {width} x {height}")
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in inside.tolist()]
