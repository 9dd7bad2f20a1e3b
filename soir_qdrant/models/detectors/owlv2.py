"""OWLv2 in objectness mode: boxes around anything, no text prompt. Its vision tower and two heads run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from soir_qdrant.config import Owlv2Settings
from soir_qdrant.contracts import Detector
from soir_qdrant.geometry.boxes import from_square
from soir_qdrant.kinds import Parts
from soir_qdrant.models.devices import pick_device, pick_dtype
from soir_qdrant.models.encoders.backbone import OPENAI
from soir_qdrant.models.padding import padded
from soir_qdrant.models.pretrained import load_of_type
from soir_qdrant.models.weights import resolve
from soir_qdrant.types import RGB, Detections

GREY = 0.5


class Owlv2Detector(Detector):
    """weights: a folder saved by `save_pretrained`, or a hub name. threshold: least objectness; iou: of the
    suppression; max_objects: boxes per image. device, dtype: see `pick_dtype`.

    Raises WeightsError where the weights cannot be loaded or are of another model.
    """

    name = "owlv2"

    def __init__(
        self,
        weights: str = "google/owlv2-base-patch16-ensemble",
        *,
        threshold: float = 0.2,
        iou: float = 0.4,
        max_objects: int = 25,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.threshold = threshold
        self.iou = iou
        self.max_objects = max_objects
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.model = load_of_type(resolve(weights), "owlv2", "Owlv2ForObjectDetection")
        self.model = self.model.to(self.device, self.dtype)
        self.size = int(self.model.config.vision_config.image_size)

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`. One at a time: the model's input is large."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        with torch.inference_mode():
            boxes, scores = self.forward(preprocess(image, self.size).to(self.device, self.dtype))
        return from_square(
            boxes, scores, image.shape, threshold=self.threshold, iou=self.iou, max_objects=self.max_objects
        )

    def forward(self, pixels: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Boxes as x0 y0 x1 y1 in shares of the padded square, [n, 4], and their objectness, [n]."""
        grid = self.model.image_embedder(pixel_values=pixels)[0]
        features = grid.flatten(1, 2)
        logits = self.model.objectness_predictor(features)[0].float()
        centre, sides = self.model.box_predictor(features, grid)[0].float().chunk(2, dim=-1)
        boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=-1)
        return boxes.cpu().double().numpy(), logits.sigmoid().cpu().double().numpy()


def make(settings: Owlv2Settings, parts: Parts) -> Owlv2Detector:
    """The kind `owlv2`."""
    return Owlv2Detector(settings.weights, device=parts.device, dtype=parts.dtype, **settings.limits)


def preprocess(image: RGB, size: int) -> Tensor:
    """Pad to a square with grey (right, bottom), resize smoothly, normalise. Float32 [1, 3, size, size].

    image: uint8 [H, W, 3]. The resize is an antialiased bilinear one, where the processor of
    `transformers` blurs and interpolates with SciPy: the same picture but for the last few grey levels.
    The grey is what OWLv2 was trained with; transformers 5 pads with black.
    """
    planes = [padded(image[:, :, channel].astype(np.float32), size, 255 * GREY) for channel in range(3)]
    pixels = torch.from_numpy(np.stack(planes))[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in OPENAI)
    return (pixels.clamp(0, 1) - mean) / std
