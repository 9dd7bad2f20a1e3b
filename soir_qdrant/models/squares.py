"""An image as a square, whatever its shape: what models take that were trained so."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.models.encoders.backbone import IMAGENET
from soir_qdrant.types import RGB


def squeezed(image: RGB, size: int) -> Tensor:
    """Resized to a square, normalised: float32 [1, 3, size, size]. image: uint8 [H, W, 3]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return (pixels.clamp(0, 1) - mean) / std
