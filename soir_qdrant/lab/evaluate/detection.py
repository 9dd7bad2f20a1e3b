"""`soir evaluate-detector`: how much of what is labelled a detector boxes, on folders of COCO's layout."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant import images as image_io
from soir_qdrant.config import Settings
from soir_qdrant.contracts import Detector
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.lab.evaluate.cache import ArrayCache, Arrays, recipe_of
from soir_qdrant.lab.evaluate.datasets import COCO, load
from soir_qdrant.lab.evaluate.metrics import box_shares, recall_by_size
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import RGB

SEED = 0  # of the choice of `max_images`
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
CAPS = (10, 25, 100)  # boxes an image
WIDE = {"threshold": 0.02, "max_objects": max(CAPS)}  # settings of a detector that holds nothing back
COCO_FILE = "coco.json"  # where a folder has other JSON files too
UNMATCHED = 10**6  # comes after every box


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """boxes: float32 [n, 4], x0 y0 x1 y1 in pixels. exhaustive: whether everything there is labelled."""

    file: Path
    boxes: NDArray[np.float32]
    exhaustive: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """Of one image. first: int [10, n], by IoU of `IOUS`, which of the first 100 boxes matched each object
    (UNMATCHED: none); default: the same, int [n], at IoU 0.5 with the default settings, of `boxes` boxes.
    scores: float [k], of the 100. shares: float [n], of the objects. seconds: of detecting as by default."""

    first: NDArray[np.int64]
    default: NDArray[np.int64]
    boxes: int
    scores: NDArray[np.float32]
    shares: NDArray[np.float64]
    seconds: float
    exhaustive: bool


def labelled_images(path: Path, layout: str = COCO, max_images: int | None = None) -> list[LabelledImage]:
    """The images of a folder.

    Args:
        path: the folder, or its file of annotations.
        layout: of `datasets.load`. "exhaustive" of COCO's images is read; elsewhere nothing is known to be.
        max_images: take so many, the same ones each time, whatever others are there.

    Raises:
        DatasetError: what is missing, or not as the layout says.
    """
    if layout == COCO and (path / COCO_FILE).is_file():
        path = path / COCO_FILE
    gallery = load(path, layout).gallery
    whole = _exhaustive(path) if layout == COCO else set()
    images = [LabelledImage(entry.file, entry.boxes, entry.file.name in whole) for entry in gallery]
    if max_images is None or max_images >= len(images):
        return images
    chosen = sorted(range(len(images)), key=lambda i: _order(images[i].file.name))[:max_images]
    return [images[i] for i in sorted(chosen)]


def evaluate_detector(
    images: Sequence[LabelledImage],
    settings: Settings,
    *,
    advance: Callable[[], None] = lambda: None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Measure the detector of some settings; docs/how-to/evaluation.md has every definition.

    Args:
        images: see `labelled_images`.
        settings: of the pipeline.
        advance: called once per image.
        cache: folder that keeps what was detected, so that a killed measurement goes on.

    Returns:
        "images", "objects", "exhaustive" (counts); "AR@10", "AR@25", "AR@100"; "recall@10", ... at IoU 0.5;
        "by_size@100"; "recall@0.5", "by_size" and "boxes" at the default threshold and cap; "AP" and "AP50",
        None where no image is exhaustive. 0..1, boxes per image. "core_seconds" per image.

    Raises:
        ConfigError: the settings name no detector.
        DatasetError: there are no images.
    """
    if not images:
        raise DatasetError("no images, so that there is nothing to measure")
    pipeline = Pipeline(settings)
    wide = Pipeline(settings.but(detector=WIDE), encoder=pipeline.encoder)
    if pipeline.detector is None or wide.detector is None:
        raise ConfigError("detector.kind 'none' detects nothing, so that there is nothing to measure")
    stored = ArrayCache(cache, {"detections": WIDE, **recipe_of(pipeline)} if cache else None)
    judged = []
    for image in images:
        arrays = _detected(image.file, pipeline.detector, wide.detector, stored)
        judged.append(_judged(image, arrays, settings.detector.max_objects))
        advance()
    return _summary(judged)


def _detected(file: Path, detector: Detector, wide: Detector, cache: ArrayCache) -> Arrays:
    """Boxes and scores by both detectors, and the size of the image."""
    image = image_io.load(file)
    key = image.sha256[:24]
    arrays = cache.load(key)
    if arrays is None:
        boxes, scores, seconds = _detect(detector, image.rgb)
        wide_boxes, wide_scores, _ = _detect(wide, image.rgb)
        arrays = {
            "size": np.array([image.width, image.height]),
            "boxes": boxes,
            "scores": scores,
            "seconds": np.array(seconds),
            "wide_boxes": wide_boxes,
            "wide_scores": wide_scores,
        }
        cache.save(key, arrays)
    return arrays


def _detect(detector: Detector, image: RGB) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    start = time.process_time()
    (detections,) = detector.detect([image])
    return detections.boxes, detections.scores, time.process_time() - start


def _judged(image: LabelledImage, arrays: Arrays, cap: int) -> Judged:
    width, height = arrays["size"].tolist()
    boxes, wide = arrays["boxes"][:cap], arrays["wide_boxes"][: max(CAPS)]
    return Judged(
        first=np.stack([matches(image.boxes, wide, iou) for iou in IOUS]),
        default=matches(image.boxes, boxes, IOUS[0]),
        boxes=len(boxes),
        scores=arrays["wide_scores"][: max(CAPS)],
        shares=box_shares(image.boxes, (width, height)),
        seconds=float(arrays["seconds"]),
        exhaustive=image.exhaustive,
    )


def matches(true: NDArray[np.floating], boxes: NDArray[np.floating], iou: float) -> NDArray[np.int64]:
    """Which box each object goes to, as COCO matches: every box, best score first, takes the free object that
    it overlaps most, from `iou` on.

    true: [n, 4]; boxes: [k, 4], by descending score. int [n], UNMATCHED for none; so an object is among the
    first m boxes' where its number is below m.
    """
    matches = np.full(len(true), UNMATCHED, np.int64)
    if not len(true) or not len(boxes):
        return matches
    overlaps = intersection_over_union(boxes, true)
    for i, row in enumerate(overlaps):
        free = np.where(matches == UNMATCHED, row, -1.0)
        best = int(free.argmax())
        if free[best] >= iou:
            matches[best] = i
    return matches


def precision_over_recall(right: NDArray[np.bool_], scores: NDArray[np.floating], objects: int) -> float:
    """COCO's average precision, 0..1: precision, at 101 recalls, of the best threshold from there on.

    right: bool [n], boxes that matched an object; scores: [n]; objects: how many there are.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(hits / max(objects, 1), np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[np.minimum(place, len(precision))].mean())


def _summary(judged: Sequence[Judged]) -> dict[str, Any]:
    first = np.concatenate([one.first for one in judged], axis=1)
    shares = np.concatenate([one.shares for one in judged])
    default = np.concatenate([one.default for one in judged]) != UNMATCHED
    whole = [one for one in judged if one.exhaustive]
    precisions = [_precision(whole, i) for i in range(len(IOUS))] if whole else []
    return {
        "images": len(judged),
        "objects": len(shares),
        "exhaustive": len(whole),
        **{f"AR@{cap}": _mean(first < cap) for cap in CAPS},
        **{f"recall@{cap}": _mean(first[0] < cap) for cap in CAPS},
        f"by_size@{max(CAPS)}": recall_by_size(first[0] < max(CAPS), shares),
        "recall@0.5": _mean(default),
        "by_size": recall_by_size(default, shares),
        "boxes": round(float(np.mean([one.boxes for one in judged])), 2),
        "AP": round(float(np.mean(precisions)), 4) if whole else None,
        "AP50": round(precisions[0], 4) if whole else None,
        "core_seconds": round(float(np.mean([one.seconds for one in judged])), 3),
    }


def _precision(judged: Sequence[Judged], i: int) -> float:
    """Average precision at the i-th of `IOUS`."""
    right = [np.isin(np.arange(len(one.scores)), one.first[i]) for one in judged]
    scores = np.concatenate([one.scores for one in judged])
    return precision_over_recall(np.concatenate(right), scores, sum(len(one.shares) for one in judged))


def _mean(hit: NDArray[np.bool_]) -> float:
    return round(float(hit.mean()), 4) if hit.size else 0.0


def _order(name: str) -> str:
    return hashlib.sha256(f"{SEED}:{name}".encode()).hexdigest()


def _exhaustive(path: Path) -> set[str]:
    """Names of the images that the annotations call exhaustive."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    images = json.loads(files[0].read_text(encoding="utf-8"))["images"]
    return {Path(str(image["file_name"])).name for image in images if image.get("exhaustive") is True}
