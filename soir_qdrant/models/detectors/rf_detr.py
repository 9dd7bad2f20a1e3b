"""RF-DETR (arXiv 2511.09554) in class-agnostic use: the highest of its class scores is the objectness."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.config import RfDetrSettings
from soir_qdrant.contracts import Detector
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import suppressed
from soir_qdrant.kinds import Parts
from soir_qdrant.models.devices import pick_device, pick_dtype
from soir_qdrant.models.pretrained import load_of_type
from soir_qdrant.models.squares import squeezed
from soir_qdrant.models.weights import resolve
from soir_qdrant.types import RGB, Detections


class RfDetrDetector(Detector):
    """Boxes of RF-DETR whatever their class; it was trained on the classes of COCO.

    Args:
        weights: a folder saved by `save_pretrained`, or a hub name.
        size: side of the square that an image is resized to, its shape not kept.
        threshold: lowest score; iou: of the suppression; max_objects: boxes of an image.
        device, dtype: see `pick_device`, `pick_dtype`.

    Raises:
        WeightsError: the weights cannot be loaded or are of another model.
        ConfigError: a size that is no multiple of the model's windows.
    """

    name = "rf-detr"

    def __init__(
        self,
        weights: str = "Roboflow/rf-detr-base",
        *,
        size: int = 560,
        threshold: float = 0.2,
        iou: float = 0.7,
        max_objects: int = 100,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.size, self.threshold, self.iou, self.max_objects = size, threshold, iou, max_objects
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        model = load_of_type(resolve(weights), "rf_detr", "RfDetrForObjectDetection")
        self.model: Any = model.to(self.device, self.dtype)
        backbone = model.config.backbone_config
        step = backbone.patch_size * backbone.num_windows
        if size % step:
            raise ConfigError(f"detector.size {size}: give a multiple of {step}, a window of this RF-DETR")

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`. One at a time."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        boxes, scores = self.forward(squeezed(image, self.size).to(self.device, self.dtype))
        height, width = image.shape[:2]
        corners = boxes * np.array([width, height, width, height])
        limits = {"threshold": self.threshold, "iou": self.iou}
        return suppressed(corners, scores, image.shape, **limits, max_objects=self.max_objects)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes as x0 y0 x1 y1 in shares of the image, [n, 4], and the highest of their class scores, [n]."""
        answer = self.model(pixel_values=pixels)
        centre, sides = answer.pred_boxes[0].double().chunk(2, dim=-1)
        boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=-1)
        scores = answer.logits[0].double().sigmoid().amax(-1)
        return boxes.cpu().numpy(), scores.cpu().numpy()


def make(settings: RfDetrSettings, parts: Parts) -> RfDetrDetector:
    """The kind `rf-detr`."""
    options = {"size": settings.size, "device": parts.device, "dtype": parts.dtype, **settings.limits}
    return RfDetrDetector(settings.weights, **options)
