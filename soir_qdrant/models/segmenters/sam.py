"""Masks from SAM, prompted with boxes: through `transformers.SamModel`, or `segment_anything` checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.geometry.crops import cut_mask
from soir_qdrant.models.detectors.owlv2 import load
from soir_qdrant.models.encoders.vit import IMAGENET, pick_device
from soir_qdrant.types import RGB, Mask

ARCHITECTURES = ("vit_h", "vit_l", "vit_b")


class SamSegmenter:
    """The image is encoded once; all its boxes go through the decoder in one call, in float32.

    Of the three masks that SAM proposes for a box, the one that it gives the highest predicted IoU is
    taken. weights: a folder saved by `save_pretrained`, or a hub name. Raises WeightsError.
    """

    name = "sam"

    def __init__(self, weights: str = "facebook/sam-vit-base", *, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.model = load("SamModel", weights, "sam").to(self.device)
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
            found = self.model(
                pixel_values=preprocess(image, self.size).to(self.device),
                input_boxes=prompts[None].to(self.device),
                multimask_output=True,
            )
            logits, quality = found.pred_masks[0].float(), found.iou_scores[0].float()
            best = logits[torch.arange(len(boxes)), quality.argmax(dim=1)]
            return [
                in_frame(plane, row, (height, width), inner, self.size)
                for plane, row in zip(best, boxes, strict=True)
            ]


class SegmentAnythingSegmenter:
    """The same from a checkpoint of the `segment_anything` package, such as sam_vit_b_01ec64.pth.

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
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return F.pad((pixels - mean) / deviation, (0, size - width, 0, size - height))


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
