"""The trained detector: the head of `heads/boxes.py` on an encoder's tokens, local or served."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.config import TokenHeadSettings
from soir_qdrant.contracts import Detector, FeatureSource
from soir_qdrant.geometry.boxes import Floats
from soir_qdrant.geometry.resize import resized
from soir_qdrant.kinds import Parts
from soir_qdrant.models.compatibility import fitting, trunk
from soir_qdrant.models.detectors import everyday
from soir_qdrant.models.detectors.choice import IOU, THRESHOLD, chosen, combined
from soir_qdrant.models.detectors.proposals import detector as proposals
from soir_qdrant.models.devices import pick_device, pick_dtype
from soir_qdrant.models.heads.boxes import PIXELS, Head, TrainedHead, flat
from soir_qdrant.models.token_grid import AREA, tiled_grid
from soir_qdrant.types import RGB, Detections


def inputs(
    source: FeatureSource, image: RGB, area: int = AREA
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What a head sees of an image at about this area: tokens, float32 [h, w, D], and a small image, uint8
    [8 h, 8 w, 3]."""
    grid = tiled_grid(source, image, area, keep=area == AREA)  # the segmenter reads that of the usual area
    h, w = grid.shape[:2]
    return np.asarray(grid, np.float32), resized(image, w * PIXELS, h * PIXELS, cv2.INTER_AREA)


def batched(looks: list[tuple[NDArray[np.floating], NDArray[np.uint8]]]) -> tuple[Tensor, Tensor]:
    """`inputs` of images of one size, as the head takes them."""
    tokens = torch.stack([torch.from_numpy(grid).float() for grid, _ in looks]).movedim(-1, 1)
    pixels = torch.stack([torch.from_numpy(small).float() / 255 for _, small in looks]).movedim(-1, 1)
    return tokens, pixels


class LearnedDetector(Detector):
    """Class-agnostic.

    Args:
        source: its tokens are read.
        head: trained on the same ones.
        device: where the head runs.
        dtype: in which precision.
        threshold: least score, an expected IoU, 0..1.
        iou: of the non-maximum suppression.
        max_objects: boxes of an image.
        areas: pixels at which an image is looked at, one after the other.
        other: another detector, whose word counts as one more look: an image to scores [n] and boxes [n, 4].
    """

    name = "learned"

    def __init__(
        self,
        source: FeatureSource,
        head: TrainedHead,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        threshold: float = THRESHOLD,
        iou: float = IOU,
        max_objects: int = 25,
        areas: Sequence[int] = (AREA,),
        other: Callable[[RGB], tuple[Floats, Floats]] | None = None,
    ) -> None:
        self.source = source
        self.head = head
        self.network = head.network.to(device, dtype)
        self.threshold = threshold
        self.iou = iou
        self.max_objects = max_objects
        self.areas = areas
        self.other = other

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        size = (image.shape[1], image.shape[0])
        looks = [named(self.network, inputs(self.source, image, area), size) for area in self.areas]
        scores, boxes = combined(looks, None if self.other is None else self.other(image))
        return chosen(
            scores, boxes, size, threshold=self.threshold, iou=self.iou, max_objects=self.max_objects
        )


def make(settings: TokenHeadSettings, parts: Parts) -> Detector:
    """The kind `embedded`: with the head that was trained for the encoder, else without training.

    Raises:
        ConfigError: the settings name a head of another encoder.
    """
    source = parts.source
    head = fitting(settings.head, "detector.head", TrainedHead.load, trunk(source.fingerprint))
    if head is None:
        return proposals.make(settings, parts)
    areas = [round(AREA * scale) for scale in settings.scales]
    device = pick_device(parts.device)
    dtype = pick_dtype(parts.dtype, device)
    other = None
    if settings.everyday:
        other = everyday.say
        everyday.session()  # where it cannot be had, that is said before the first image
    return LearnedDetector(
        source, head, device=device, dtype=dtype, areas=areas, other=other, **settings.limits
    )


@torch.inference_mode()
def named(
    network: Head,
    looked_at: tuple[NDArray[np.floating], NDArray[np.uint8]],
    size: tuple[int, ...],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the cells of all levels say of an image: scores [n], 0..1, and boxes [n, 4] in pixels.

    Args:
        network: on its device, in its dtype.
        looked_at: of `inputs`.
        size: width and height of the image.
    """
    tokens, pixels = (x.to(network.tokens.weight) for x in batched([looked_at]))
    logits, boxes = flat(network(tokens, pixels))
    h, w = looked_at[0].shape[:2]
    scale = np.array([size[0] / w, size[1] / h] * 2, np.float32)
    return logits[0].sigmoid().cpu().numpy(), boxes[0].cpu().numpy() * scale
