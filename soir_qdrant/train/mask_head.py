"""The segmenter's head in torch, to be trained. `vision/mask_head.py` runs what comes of it, in NumPy."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant import parts
from soir_qdrant.vision.blocks import block
from soir_qdrant.vision.mask_head import CELL, SIDE

CELLS = SIDE // CELL  # tokens along a window
WIDTHS = (16, 32, 64, 128)  # channels at a side of 96, 48, 24 and 12


class MaskHead(nn.Module):
    """A U-Net on the pixels of a window, joined at its bottom by the encoder's tokens of the same window.

    small [B, SIDE, SIDE, 3], 0..255, planes [B, SIDE, SIDE, 2], tokens [B, CELLS^2, D] -> logits [B, SIDE,
    SIDE]. See `vision.mask_head.MaskHead`.
    """

    def __init__(self, dim: int, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        self.e0 = block(5, a)
        self.e1 = nn.Sequential(block(a, b, stride=2), block(b, b))
        self.e2 = nn.Sequential(block(b, c, stride=2), block(c, c))
        self.e3 = block(c, d, stride=2)
        self.tokens = nn.Conv2d(dim, d, 1)
        self.middle = nn.Sequential(block(d, d), block(d, d))
        self.d2 = nn.Sequential(block(d + c, c), block(c, c))
        self.d1 = nn.Sequential(block(c + b, b), block(b, b))
        self.d0 = block(b + a, a)
        self.out = nn.Conv2d(a, 1, 1)

    def forward(self, small: Tensor, planes: Tensor, tokens: Tensor) -> Tensor:
        x0 = self.e0(torch.cat([(small / 255 - 0.5) * 4, planes], -1).movedim(-1, 1))
        x1 = self.e1(x0)
        x2 = self.e2(x1)
        seen = F.layer_norm(tokens, tokens.shape[-1:]).movedim(-1, 1).unflatten(2, (CELLS, CELLS))
        y = F.silu(self.e3(x2) + self.tokens(seen))
        y = y + self.middle(y)
        y = self.d2(torch.cat([_doubled(y), x2], 1))
        y = self.d1(torch.cat([_doubled(y), x1], 1))
        y = self.d0(torch.cat([_doubled(y), x0], 1))
        logits: Tensor = self.out(y)[:, 0]
        return logits

    def save(self, file: Path, fitted_for: str) -> None:
        """A safetensors file in half precision, whole or not at all. fitted_for: see `vision.mask_head`."""
        arrays = {name: x.half().numpy() for name, x in self.state_dict().items()}
        parts.save(file, arrays, fitted_for=fitted_for, side=str(SIDE))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
