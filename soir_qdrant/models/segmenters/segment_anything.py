"""Masks from SAM through the package `segment_anything` and its own checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from soir_qdrant.config import SegmentAnythingSettings
from soir_qdrant.contracts import Segmenter
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.geometry.crops import cut_mask
from soir_qdrant.kinds import Parts
from soir_qdrant.models.devices import pick_device
from soir_qdrant.types import RGB, Mask

ARCHITECTURES = ("vit_h", "vit_l", "vit_b")


class SegmentAnythingSegmenter(Segmenter):
    """As `SamSegmenter`, from a checkpoint of the `segment_anything` package, such as sam_vit_b_01ec64.pth.

    checkpoint: the file; its name says the architecture (vit_h, vit_l or vit_b). Raises ConfigError where
    the package, or torchvision, which it imports, is missing; WeightsError where the file is.
    """

    name = "segment-anything"

    def __init__(self, checkpoint: str, *, device: str = "auto") -> None:
        registry, predictor = _segment_anything()
        kind = next((a for a in ARCHITECTURES if a in checkpoint), None)
        if kind is None:
            raise WeightsError(
                f"segmenter weights {checkpoint!r}: name a checkpoint file of segment_anything; its "
                f"name must say the architecture, one of {', '.join(ARCHITECTURES)}"
            )
        try:
            model = registry[kind](checkpoint=checkpoint)
        except (OSError, RuntimeError, KeyError) as error:
            raise WeightsError(
                f"segmenter weights {checkpoint!r}: not a {kind} checkpoint ({error})"
            ) from error
        self.predictor = predictor(model.eval().to(pick_device(device)))

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        if not len(boxes):
            return []
        self.predictor.set_image(image)
        shape = image.shape[:2]
        prompts = torch.from_numpy(np.asarray(boxes, np.float32)).to(self.predictor.device)
        prompts = self.predictor.transform.apply_boxes_torch(prompts, shape)
        masks, quality, _ = self.predictor.predict_torch(None, None, boxes=prompts, multimask_output=True)
        best = masks[torch.arange(len(boxes)), quality.argmax(dim=1)].cpu().numpy()
        return [cut_mask(plane, row) for plane, row in zip(best, boxes, strict=True)]


def _segment_anything() -> tuple[Any, Any]:
    try:
        from segment_anything import SamPredictor, sam_model_registry
    except (ImportError, RuntimeError) as error:  # torchvision of another build dies with a RuntimeError
        raise ConfigError(
            "the segmenter 'segment-anything' needs the packages segment-anything and torchvision "
            f"({error}): pip install segment-anything and the torchvision that belongs to your torch, or "
            "choose the segmenter 'sam', which reads the same models through transformers"
        ) from error
    return sam_model_registry, SamPredictor


def make(settings: SegmentAnythingSettings, parts: Parts) -> SegmentAnythingSegmenter:
    """The kind `segment-anything`."""
    return SegmentAnythingSegmenter(settings.weights, device=parts.device)
