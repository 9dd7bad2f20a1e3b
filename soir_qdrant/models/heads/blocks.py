"""What the trained heads are made of, in torch: one class is trained, run and exported."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8  # of a normalisation
FEW = 1024  # places of a map, below which torch 2 normalises few channels in half precision five times slower


class GroupNorm(nn.GroupNorm):
    """In float32 where torch is slow in half precision, with an answer of the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 or x.shape[-2] * x.shape[-1] >= FEW:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def block(into: int, out: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution of 3 x 3, normalisation, SiLU: [B, into, h, w] -> [B, out, h / stride, w / stride]."""
    convolution = nn.Conv2d(into, out, 3, stride=stride, padding=dilation, dilation=dilation)
    return nn.Sequential(convolution, GroupNorm(GROUPS, out), nn.SiLU())
