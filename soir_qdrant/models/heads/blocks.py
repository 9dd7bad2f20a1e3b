"""What the trained heads are made of, in torch: one class is trained, run and exported."""

from __future__ import annotations

from torch import nn

GROUPS = 8  # of a normalisation


def block(into: int, out: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution of 3 x 3, normalisation, SiLU: [B, into, h, w] -> [B, out, h / stride, w / stride]."""
    convolution = nn.Conv2d(into, out, 3, stride=stride, padding=dilation, dilation=dilation)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, out), nn.SiLU())
