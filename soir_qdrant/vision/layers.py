"""What the learned heads are made of, in NumPy. `train/layers.py` has the same in torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

GROUPS = 8  # of a normalisation
Floats: TypeAlias = NDArray[np.float32]
Weights: TypeAlias = Mapping[str, Floats]


def block(weights: Weights, name: str, x: Floats, *, stride: int = 1, apart: int = 1) -> Floats:
    """Convolution of 3 x 3, normalisation, SiLU. x: [h, w, C]. [h / stride, w / stride, C_out], rounded up.
    stride, apart: see `neighbours`."""
    near = neighbours(x, apart, stride)
    y = linear(weights, f"{name}.0", near.reshape(-1, near.shape[2]))
    return silu(group_norm(weights, f"{name}.1", y)).reshape(*near.shape[:2], -1)


def linear(weights: Weights, name: str, x: Floats) -> Floats:
    """x: [n, C] or [n, C * 9], see `neighbours`. [n, C_out]."""
    weight = weights[f"{name}.weight"]
    found: Floats = x @ weight.reshape(len(weight), -1).T + weights[f"{name}.bias"]
    return found


def group_norm(weights: Weights, name: str, x: Floats) -> Floats:
    """x: [n, C], all positions of one picture. [n, C]."""
    each = x.shape[1] // GROUPS

    def of_groups(channels: Floats) -> Floats:
        return np.repeat(channels.reshape(GROUPS, each).mean(1), each)

    centred = x - of_groups(x.mean(0))
    variance = of_groups(np.einsum("nc,nc->c", centred, centred) / np.float32(len(x)))
    scale = weights[f"{name}.weight"] / np.sqrt(variance + np.float32(1e-5))
    return np.asarray(centred * scale + weights[f"{name}.bias"], np.float32)


def standardized(tokens: NDArray[np.floating]) -> Floats:
    """Each row with mean 0 and deviation 1: LayerNorm without weights. [n, D], float32."""
    rows: Floats = tokens.astype(np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    rows /= np.sqrt((rows**2).mean(1, keepdims=True) + 1e-5)
    return rows


def neighbours(x: Floats, apart: int = 1, stride: int = 1) -> Floats:
    """[h, w, C] -> [h / stride, w / stride, C * 9], rounded up: every stride-th cell beside its eight
    neighbours `apart` cells away, 0 outside."""
    h, w, channels = x.shape
    padded = np.pad(x, ((apart, apart), (apart, apart), (0, 0)))
    starts = [(i * apart, j * apart) for i in range(3) for j in range(3)]
    near = np.stack([padded[y : y + h : stride, z : z + w : stride] for y, z in starts], -1)
    return near.reshape(*near.shape[:2], channels * 9)


def silu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x)), np.float32)
