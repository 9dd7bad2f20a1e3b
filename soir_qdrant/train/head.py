"""The detector's head in torch, to be trained. `vision/head.py` runs what comes of it, in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant import parts
from soir_qdrant.vision.blocks import block
from soir_qdrant.vision.head import PIXELS

WIDTH, DEPTH = 128, 4


class Head(nn.Module):
    """Tokens [B, D, h, w] and pixels [B, 3, 8 h, 8 w], 0..1 -> objectness logits [B, h, w] and boxes.

    Boxes [B, h, w, 4]: x0, y0, x1, y1 in cells of the grid. Convolutions alone: any grid will do.
    """

    def __init__(self, dim: int, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.dim = dim
        self.tokens = nn.Conv2d(dim, width, 1)
        self.pixels = nn.Conv2d(3 * PIXELS**2, width, 1)
        self.blocks = nn.ModuleList(block(width, width, dilation=1 + i % 2) for i in range(depth))
        self.out = nn.Conv2d(width, 5, 1)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():  # objects are rare, and about four cells wide
            assert self.out.bias is not None
            self.out.bias.copy_(torch.tensor([-3.0, 0.7, 0.7, 0.7, 0.7]))

    def forward(self, tokens: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = F.layer_norm(tokens.movedim(1, -1), (self.dim,)).movedim(-1, 1)
        small = F.pixel_unshuffle(pixels - 0.5, PIXELS) * 4
        x = F.silu(self.tokens(tokens) + self.pixels(small))
        for one in self.blocks:
            x = x + one(x)
        score, sides = self.out(x).split([1, 4], 1)
        return score[:, 0], around(sides.clamp(max=4).exp().movedim(1, -1))

    def save(self, file: Path, fitted_for: str) -> None:
        """A safetensors file in half precision, whole or not at all. fitted_for: see `vision.head.Head`."""
        arrays = {name: x.half().numpy() for name, x in self.state_dict().items()}
        parts.save(file, arrays, fitted_for=fitted_for, depth=str(len(self.blocks)))


def around(sides: Tensor) -> Tensor:
    """Distances to the left, top, right, bottom of each cell's middle, [..., h, w, 4] -> boxes in cells."""
    h, w = sides.shape[-3:-1]
    y = torch.arange(h, device=sides.device) + 0.5
    x = torch.arange(w, device=sides.device) + 0.5
    middle = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)
    return torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], -1)


def batched(seen: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """Inputs of images of one size (see `vision.head.inputs`), as the head takes them."""
    tokens = torch.stack([torch.as_tensor(grid).float() for grid, _ in seen]).movedim(-1, 1)
    pixels = torch.stack([torch.as_tensor(small).float() / 255 for _, small in seen]).movedim(-1, 1)
    return tokens, pixels
