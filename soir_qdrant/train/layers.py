"""What the heads are made of, in torch, to be trained. `vision/layers.py` runs the same in NumPy."""

from __future__ import annotations

from torch import nn

from soir_qdrant.vision.layers import GROUPS


def block(into: int, out: int, *, stride: int = 1, apart: int = 1) -> nn.Sequential:
    """Convolution of 3 x 3, normalisation, SiLU: [B, into, h, w] -> [B, out, h / stride, w / stride]."""
    convolution = nn.Conv2d(into, out, 3, stride=stride, padding=apart, dilation=apart)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, out), nn.SiLU())
