"""Masks from SAM (arXiv 2304.02643), prompted with boxes, through `transformers.SamModel`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.config import SamSettings
from soir_qdrant.contracts import Segmenter
from soir_qdrant.geometry.crops import cut_mask
from soir_qdrant.kinds import Parts
from soir_qdrant.models.devices import pick_device
from soir_qdrant.models.encoders.backbone import IMAGENET
from soir_qdrant.models.pretrained import load_of_type
from soir_qdrant.models.weights import resolve
from soir_qdrant.types import RGB, Mask


class SamSegmenter(Segmenter):
    """The image is encoded once; all its boxes go through the decoder in one call, in float32.

    Of the three masks that SAM proposes for a box, the one that it gives the highest predicted IoU is
    taken. weights: a folder saved by `save_pretrained`, or a hub name. Raises WeightsError.
    """

    name = "sam"

    def __init__(self, weights: str = "facebook/sam-vit-base", *, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.model = load_of_type(resolve(weights), "sam", "SamModel").to(self.device)
        self.size = int(self.model.config.vision_config.image_size)

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        if not len(boxes):
            return []
        height, width = image.shape[:2]
        inner = fitted(height, width, self.size)
        scale = torch.tensor([inner[1] / width, inner[0] / height] * 2)
        prompts = torch.from_numpy(np.asarray(boxes, np.float32)) * scale
        with torch.inference_mode():
            best = best_masks(self.model, preprocess(image, self.size), prompts, self.device)
            return [
                in_frame(plane, row, (height, width), inner, self.size)
                for plane, row in zip(best, boxes, strict=True)
            ]


def make(settings: SamSettings, parts: Parts) -> SamSegmenter:
    """The kind `sam`."""
    return SamSegmenter(settings.weights, device=parts.device)


def best_masks(model: Any, pixels: Tensor, prompts: Tensor, device: torch.device) -> Tensor:
    """Of each box the mask of highest predicted quality, as logits, float32 [k, m, m], for SAM and SAM 2.

    Args:
        model: of `transformers`.
        pixels: float32 [1, 3, size, size].
        prompts: float32 [k, 4], boxes in those pixels.
        device: of the model.
    """
    answer = model(
        pixel_values=pixels.to(device), input_boxes=prompts[None].to(device), multimask_output=True
    )
    logits, quality = answer.pred_masks[0].float(), answer.iou_scores[0].float()
    best: Tensor = logits[torch.arange(len(prompts)), quality.argmax(dim=1)]
    return best


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the image with its longest side at `size`."""
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def preprocess(image: RGB, size: int) -> Tensor:
    """Longest side to `size`, normalised, then padded with zeros at the right and bottom.

    image: uint8 [H, W, 3]. Float32 [1, 3, size, size].
    """
    height, width = fitted(image.shape[0], image.shape[1], size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return F.pad((pixels - mean) / std, (0, size - width, 0, size - height))


def in_frame(
    logits: Tensor, box: NDArray[np.floating], shape: tuple[int, int], inner: tuple[int, int], size: int
) -> Mask:
    """A low-resolution mask of the padded square, [m, m], as the bool mask of a box of the image.

    shape: H, W of the image; inner: of what of the square, `size` pixels wide, is not padding.
    """
    whole = F.interpolate(logits[None, None], (size, size), mode="bilinear", align_corners=False)
    whole = whole[..., : inner[0], : inner[1]]
    whole = F.interpolate(whole, shape, mode="bilinear", align_corners=False)
    return cut_mask((whole[0, 0] > 0).cpu().numpy(), box)
