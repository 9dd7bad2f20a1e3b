"""SigLIP 2's vision tower for any resolution and shape (NaFlex, arXiv 2502.14786)."""

from __future__ import annotations

import torch
from torch import Tensor

from soir_qdrant.models.encoders.backbone import Context
from soir_qdrant.models.encoders.siglip import Siglip


class Siglip2(Siglip):
    """`transformers.Siglip2VisionModel`: patches in, positions resized to the grid of the call."""

    loader = "Siglip2VisionModel"

    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        batch, channels, height, width = pixels.shape
        p, h, w = self.patch, height // self.patch, width // self.patch
        cut = pixels.reshape(batch, channels, h, p, w, p).permute(0, 2, 4, 3, 5, 1)  # [B, h, w, p, p, C]
        shapes = torch.tensor([[h, w]] * batch, device=pixels.device)
        return self.vision.embeddings(cut.reshape(batch, h * w, -1), shapes), {"attention_mask": None}
