"""Masks from SAM 2 (arXiv 2408.00714), prompted with boxes, through `transformers.Sam2Model`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.config import Sam2Settings
from soir_qdrant.contracts import Segmenter
from soir_qdrant.geometry.crops import cut_mask
from soir_qdrant.kinds import Parts
from soir_qdrant.models.devices import pick_device
from soir_qdrant.models.pretrained import load_of_type
from soir_qdrant.models.segmenters.sam import best_masks
from soir_qdrant.models.squares import squeezed
from soir_qdrant.models.weights import resolve
from soir_qdrant.types import RGB, Mask


class Sam2Segmenter(Segmenter):
    """The image is encoded once, resized to a square; all its boxes go through the decoder in one call, in
    float32. Of the three masks of a box, the one of highest predicted IoU is taken.

    Args:
        weights: a folder saved by `save_pretrained`, or a hub name; of an image model or a video model.
        device: see `pick_device`.

    Raises:
        WeightsError: the weights cannot be loaded or are of another model.
    """

    name = "sam2"

    def __init__(self, weights: str = "facebook/sam2.1-hiera-tiny", *, device: str = "auto") -> None:
        self.device = pick_device(device)
        model = load_of_type(resolve(weights), ("sam2", "sam2_video"), "Sam2Model")
        self.model = model.to(self.device)
        self.size = int(self.model.config.prompt_encoder_config.image_size)

    @torch.inference_mode()
    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        if not len(boxes):
            return []
        height, width = image.shape[:2]
        scale = torch.tensor([self.size / width, self.size / height] * 2)
        prompts = torch.from_numpy(np.asarray(boxes, np.float32)) * scale
        best = best_masks(self.model, squeezed(image, self.size), prompts, self.device)
        return [in_frame(plane, row, (height, width)) for plane, row in zip(best, boxes, strict=True)]


def make(settings: Sam2Settings, parts: Parts) -> Sam2Segmenter:
    """The kind `sam2`."""
    return Sam2Segmenter(settings.weights, device=parts.device)


def in_frame(logits: Tensor, box: NDArray[np.floating], shape: tuple[int, int]) -> Mask:
    """A low-resolution mask of the whole image, [m, m], as the bool mask of a box. shape: H, W."""
    whole = F.interpolate(logits[None, None], shape, mode="bilinear", align_corners=False)
    return cut_mask((whole[0, 0] > 0).cpu().numpy(), box)
