"""SigLIP 2's vision tower for any resolution and shape (NaFlex, arXiv 2502.14786)."""

from __future__ import annotations

import torch.nn.functional as F
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
        patches = self.vision.embeddings.patch_embedding(cut.reshape(batch, h * w, -1))
        return patches + self._positions(h, w), {"attention_mask": None}

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Of a grid, [rows * columns, D]: `resize_positional_embeddings` of the model, once for a whole batch, whose
        images are of one shape here. Its own goes through the batch, which no export can follow."""
        embeddings = self.vision.embeddings
        weight, side = embeddings.position_embedding.weight, embeddings.position_embedding_size
        grid = weight.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
        positions: Tensor = resized.flatten(2)[0].T.to(weight.dtype)
        return positions
