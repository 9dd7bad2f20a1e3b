"""Boxes around objects of any class: the embedded detector, which needs no weights of its own, and OWLv2."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import DetectorSettings
from soir_qdrant.types import RGB, Detections, Detector, Encoder

Boxes = NDArray[np.float32]


def make_detector(settings: DetectorSettings, encoder: Encoder | None) -> Detector | None:
    """The detector that the settings name; None where the whole image is to be the one object.

    encoder: its tokens score the proposals of the embedded detector. Raises WeightsError where OWLv2's
    weights cannot be loaded.
    """
    if settings.kind == "none":
        return None
    if settings.kind == "owlv2":
        from soir_qdrant.vision.owlv2 import Owlv2Detector

        return Owlv2Detector(
            settings.weights, threshold=settings.threshold, iou=settings.iou, most=settings.most
        )
    return EmbeddedDetector(encoder, threshold=settings.threshold, iou=settings.iou, most=settings.most)


class EmbeddedDetector:
    """Class-agnostic and training-free: blobs that differ from their surroundings, at several scales."""

    name = "embedded"

    def __init__(
        self, encoder: Encoder | None, *, threshold: float = 0.2, iou: float = 0.4, most: int = 25
    ) -> None:
        self.encoder = encoder
        self.threshold = threshold
        self.iou = iou
        self.most = most

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        height, width = image.shape[:2]
        scale = min(1.0, 512 / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        lab = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
        found = [_blobs(lab.astype(np.float32), sigma) for sigma in (12, 24, 48)]
        boxes = np.concatenate([b for b, _ in found]) * np.tile((width / size[0], height / size[1]), 2)
        scores = np.concatenate([s for _, s in found])
        return select(boxes, scores, image.shape[:2], threshold=self.threshold, iou=self.iou, most=self.most)


def _blobs(lab: NDArray[np.float32], sigma: float) -> tuple[Boxes, NDArray[np.float32]]:
    smooth = cv2.GaussianBlur(lab, (0, 0), 1.5)
    away = np.linalg.norm(smooth - cv2.GaussianBlur(lab, (0, 0), sigma), axis=2)
    area = away.size
    boxes, scores = [np.zeros((0, 4))], [np.zeros(0)]
    for level in (15, 25, 40):
        count, _, stats, _ = cv2.connectedComponentsWithStats((away > level).astype(np.uint8))
        x, y, w, h, pixels = stats[1:count].T
        keep = (w * h > 0.001 * area) & (w * h < 0.06 * area)
        boxes.append(np.stack([x, y, x + w, y + h], 1)[keep])
        scores.append((0.2 + 0.8 * (level / 60) * pixels / (w * h))[keep])
    return np.concatenate(boxes).astype(np.float32), np.concatenate(scores).astype(np.float32)


def select(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    shape: tuple[int, ...],
    *,
    threshold: float,
    iou: float,
    most: int,
) -> Detections:
    """The detections to keep: inside the image, at or above the threshold, not overlapping, the best ones.

    boxes: [n, 4] in pixels; scores: [n], 0..1; shape: H, W of the image.
    """
    limits = np.array([shape[1], shape[0]] * 2, np.float32)
    boxes = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), 0, limits)
    scores = np.asarray(scores, np.float32).reshape(-1)
    sound = np.isfinite(boxes).all(1) & np.isfinite(scores) & (scores >= threshold)
    sound &= (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    boxes, scores = boxes[sound], scores[sound]
    kept = non_maximum_suppression(boxes, scores, iou)[:most]
    return Detections(np.ascontiguousarray(boxes[kept]), np.ascontiguousarray(scores[kept]))


def non_maximum_suppression(boxes: Boxes, scores: NDArray[np.float32], iou: float) -> NDArray[np.int64]:
    """Indices of the boxes to keep, best first: none overlaps a better kept one by more than `iou`."""
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        order = rest[intersection_over_union(boxes[first][None], boxes[rest])[0] <= iou]
    return np.array(kept, np.int64)


def intersection_over_union(one: Boxes, other: Boxes) -> NDArray[np.float32]:
    """one: [n, 4]; other: [m, 4]. float32 [n, m]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.asarray(common / np.maximum(union, 1e-9), np.float32)
