"""LeGrad maps in closed form (docs/refinement.md): no second-order graph, linear in the token up to a relu.

s(t) = t . z with z = normalize(read(mean_n x2_n)); E_m(t) = mean_h mean_n relu(d s / d A[h, n, m]).
z does not depend on t, so d s / d A is linear in t, and all but t is a constant of the crop:

    u   = (1/N) J_LN^T J_norm^T t                    one row for every token n
    g_n = u + J_LN2,n^T ( MLP'(n)^T (ls2 * u) )
    d s / d A[h, n, m] = ( Wo^T (ls1 * g_n) )_h . V[h, m]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.refine.block import Activation, LastBlock, activate


@dataclass(frozen=True, slots=True, eq=False)
class LegradConstants:
    """What the maps of B crops need of them, computed once.

    values: V [B, h, N, d]. centred, spread: LN2's normalised input [B, N, D] and 1 / its deviation
    [B, N, 1]. slopes: of the MLP's hidden units [B, N, 4D] (two of them where it is gated).
    pooled, pooled_spread: the same of the final LayerNorm at mean_n x2_n, [B, D] and [B, 1].
    z: [B, D_out], unit rows; length: of the read-out before normalising, [B, 1].
    """

    block: LastBlock
    values: Tensor
    centred: Tensor
    spread: Tensor
    slopes: tuple[Tensor, ...]
    pooled: Tensor
    pooled_spread: Tensor
    z: Tensor
    length: Tensor

    def take(self, rows: slice) -> LegradConstants:
        """The constants of some of the crops."""
        return LegradConstants(
            self.block,
            self.values[rows],
            self.centred[rows],
            self.spread[rows],
            tuple(s[rows] for s in self.slopes),
            self.pooled[rows],
            self.pooled_spread[rows],
            self.z[rows],
            self.length[rows],
        )


def precompute(block: LastBlock, tokens: Tensor) -> LegradConstants:
    """The constants of B crops. tokens: [B, N, D], those that enter the last block.

    Raises ConfigError for a read-out by attention pooling (SigLIP): there u differs from token to token.
    """
    if block.head is not None:
        raise ConfigError(
            "refinement needs an encoder with a CLS token (DINOv2, CLIP); SigLIP pools by attention"
        )
    with torch.no_grad():
        normed = block.layer_norm(tokens, "norm1")
        q, k, v = (block.split(block.linear(normed, name)) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x1 = tokens + block.scale("ls1", block.linear(mixed, "o"))
        centred, spread = _standardize(x1, block.eps)
        y = block.layer_norm(x1, "norm2")
        x2 = x1 + block.scale("ls2", block.mlp(y))
        pooled, pooled_spread = _standardize(x2.mean(1), block.eps)
        read = block.project(block.norm(x2.mean(1)))
        length = read.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        slopes = _slopes(block, y)
        return LegradConstants(
            block, v, centred, spread, slopes, pooled, pooled_spread, read / length, length
        )


def raw_maps(held: LegradConstants, t: Tensor) -> Tensor:
    """E(t), [B, M] >= 0 over the M patches (CLS column dropped). t: [B, D_out], unit rows; differentiable."""
    block = held.block
    u = _to_tokens(held, t)
    g = u[:, None] + _through_mlp(held, u)
    weight = block.scale("ls1", g) @ block.weights["o.weight"]
    relevance = block.split(weight) @ held.values.transpose(-1, -2)
    return relevance.relu().mean((1, 2))[:, int(block.has_cls) :]


def normalized(maps: Tensor) -> Tensor:
    """Min-max per crop, [B, M] -> 0..1; a constant map becomes zeros."""
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def upsampled(maps: Tensor, size: int) -> Tensor:
    """[B, M] on a square grid -> [B, size, size], bilinear."""
    side = round(maps.shape[-1] ** 0.5)
    square = maps.view(len(maps), 1, side, side)
    return F.interpolate(square, (size, size), mode="bilinear", align_corners=False)[:, 0]


def _to_tokens(held: LegradConstants, t: Tensor) -> Tensor:
    """u [B, D]: the gradient of t . z at every token of x2."""
    block = held.block
    back = (t - held.z * (held.z * t).sum(-1, keepdim=True)) / held.length
    if "projection" in block.weights:
        back = back @ block.weights["projection"]
    back = back * block.weights["norm.weight"]
    return _standardize_back(back, held.pooled, held.pooled_spread) / held.centred.shape[1]


def _through_mlp(held: LegradConstants, u: Tensor) -> Tensor:
    """J_LN2^T MLP'^T (ls2 * u), [B, N, D]."""
    block = held.block
    hidden = (block.scale("ls2", u) @ block.weights["fc2.weight"])[:, None]
    back = (held.slopes[0] * hidden) @ block.weights["fc1.weight"]
    if len(held.slopes) > 1:
        back = back + (held.slopes[1] * hidden) @ block.weights["gate.weight"]
    return _standardize_back(back * block.weights["norm2.weight"], held.centred, held.spread)


def _slopes(block: LastBlock, y: Tensor) -> tuple[Tensor, ...]:
    """d hidden / d (fc1 y) and, where gated, d hidden / d (gate y), [B, N, 4D] each."""
    up = block.linear(y, "fc1")
    if "gate.weight" in block.weights:
        gate = block.linear(y, "gate")
        return activate(gate, block.activation), up * _derivative(gate, block.activation)
    return (_derivative(up, block.activation),)


def _derivative(x: Tensor, kind: Activation) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activate(x, kind).sum(), x)
    return slope


def _standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / deviation, and 1 / deviation."""
    spread = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    return (x - x.mean(-1, keepdim=True)) * spread, spread


def _standardize_back(back: Tensor, centred: Tensor, spread: Tensor) -> Tensor:
    """The transposed Jacobian of `_standardize`, applied to `back`."""
    inner = (back * centred).mean(-1, keepdim=True)
    return (back - back.mean(-1, keepdim=True) - centred * inner) * spread
