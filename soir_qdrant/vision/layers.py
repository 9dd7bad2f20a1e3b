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
    stride, apart: see `convolution`."""
    y = convolution(weights, f"{name}.0", x, stride, apart)
    return silu(group_norm(weights, f"{name}.1", y.reshape(-1, y.shape[2]))).reshape(y.shape)


def convolution(weights: Weights, name: str, x: Floats, stride: int, apart: int) -> Floats:
    """Of every stride-th cell with its eight neighbours `apart` cells away, 0 outside, as nine products: one
    would need the nine side by side, and moving them costs more. x: [h, w, C]."""
    h, w, channels = x.shape
    padded = np.pad(x, ((apart, apart), (apart, apart), (0, 0)))
    weight = weights[f"{name}.weight"]
    high, wide, out = -(-h // stride), -(-w // stride), len(weight)
    found: Floats = np.repeat(weights[f"{name}.bias"][None], high * wide, 0)
    for i, j in np.ndindex(3, 3):
        near = padded[i * apart : i * apart + h : stride, j * apart : j * apart + w : stride]
        found += near.reshape(-1, channels) @ weight[:, :, i, j].T
    return found.reshape(high, wide, out)


def linear(weights: Weights, name: str, x: Floats) -> Floats:
    """x: [n, C]. [n, C_out]."""
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
    centred *= weights[f"{name}.weight"] / np.sqrt(variance + np.float32(1e-5))
    centred += weights[f"{name}.bias"]
    return centred


def standardized(tokens: NDArray[np.floating]) -> Floats:
    """Each row with mean 0 and deviation 1: LayerNorm without weights. [n, D], float32."""
    rows: Floats = tokens.astype(np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    rows /= np.sqrt((rows**2).mean(1, keepdims=True) + 1e-5)
    return rows


def silu(x: Floats) -> Floats:
    below = np.exp(-x)
    below += 1
    return np.divide(x, below, out=below)
