"""LeGrad maps and their gradient in closed form: no autograd graph, two large products each way.

s(t) = t . z;  E_m(t) = mean_h mean_n relu(d s / d A[h, n, m]).
z does not depend on t, so d s / d A is linear in t, and all but t is a constant of the crop:

    u_n = d s / d x2_n                                             (readout.py; one row where it is a mean)
    g_n = u_n + J_LN2,n^T ( MLP'(n)^T (ls2 * u_n) )
    d s / d A[h, n, m] = ( Wo^T (ls1 * g_n) )_h . V[h, m]

With c_n, s_n of LN2 (its normalised input and 1 / standard deviation) and P_n = s_n * slope_n * (W2^T (ls2 * u_n)):

    Wo^T (ls1 * g_n) = Wo^T (ls1 * u_n) + P_n F - (P_n . p_n) q_n
    F = W1^T diag(w2 * ls1) Wo - f r^T,  f = W1^T w2 / D,  r = Wo^T ls1
    p_n = W1^T (w2 * c_n) / D,  q_n = Wo^T (ls1 * c_n)

so that W1, LN2 and Wo are one product with F. A gated MLP has two such slopes side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.mao.readout import Readout, derivative, make_readout, standardize
from soir_qdrant.models.last_block import LastBlock, activate


@dataclass(frozen=True, slots=True, eq=False)
class LegradConstants:
    """What the maps of B crops need of them, computed once. H hidden units (two sets where gated).

    readout: t -> u. values: V of the patches, [B, h, M, d]. slopes: s_n * slope_n, [B, N, H];
    along: slopes * p_n, [B, N, H]; across: q_n, [B, N, D]. fused: F, [H, D]; fc2: diag(ls2) W2, [D, H];
    out: diag(ls1) Wo, [D, D].
    """

    readout: Readout
    values: Tensor
    slopes: Tensor
    along: Tensor
    across: Tensor
    fused: Tensor
    fc2: Tensor
    out: Tensor

    @property
    def crops(self) -> int:
        return len(self.slopes)

    def take(self, rows: slice) -> LegradConstants:
        """The constants of some of the crops."""
        own = {name: getattr(self, name)[rows] for name in ("values", "slopes", "along", "across")}
        return LegradConstants(self.readout.take(rows), **own, **self._shared())

    def products(self, dtype: torch.dtype) -> LegradConstants:
        """The same with the large products in another dtype; the read-out stays as it is."""
        large = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "readout"}
        return LegradConstants(self.readout, **{name: x.to(dtype) for name, x in large.items()})

    def _shared(self) -> dict[str, Any]:
        return {"fused": self.fused, "fc2": self.fc2, "out": self.out}


def precompute(block: LastBlock, tokens: Tensor) -> LegradConstants:
    """The constants of B crops. tokens: [B, N, D], those that enter the last block."""
    with torch.no_grad():
        q, k, v = block.attention_inputs(tokens)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x1 = tokens + block.scale("ls1", block.linear(mixed, "o"))
        centred, spread = standardize(x1, block.eps)
        y = block.layer_norm(x1, "norm2")
        x2 = x1 + block.scale("ls2", block.mlp(y))

        w = block.weights
        w2, ones = w["norm2.weight"], torch.ones(block.dim).to(tokens)
        out = block.scale("ls1", ones)[:, None] * w["o.weight"]
        into = [w[f"{name}.weight"] for name in ("fc1", "gate") if f"{name}.weight" in w]
        first = torch.cat(into) * w2  # [H, D]
        fc2 = block.scale("ls2", ones)[:, None] * w["fc2.weight"]
        slopes = torch.cat(_slopes(block, y), -1) * spread
        return LegradConstants(
            readout=make_readout(block, x2),
            values=v[:, :, block.prefix_tokens :].contiguous(),
            slopes=slopes,
            along=slopes * (centred @ (first.T / block.dim)),
            across=centred @ out,
            fused=first @ out - (first.mean(1))[:, None] * out.sum(0),
            fc2=torch.cat([fc2] * len(into), 1),
            out=out,
        )


class Workspace:
    """The large arrays of one evaluation, kept from step to step: fresh pages cost time."""

    def __init__(self, constants: LegradConstants) -> None:
        b, n, hidden = constants.slopes.shape
        _, heads, m, d = constants.values.shape
        empty = constants.slopes.new_empty
        self.hidden = empty(b, n, hidden)
        self.weight = empty(b, n, heads * d)
        self.split = empty(b, heads, n, d)
        self.relevance = empty(b * heads, n, m)


@torch.no_grad()
def maps(constants: LegradConstants, t: Tensor, work: Workspace | None = None) -> tuple[Tensor, Workspace]:
    """E(t), [B, M] >= 0 over the M patches, in t's dtype, and what `pull_back` needs.

    t: [B, D_out], unit rows. work: of an earlier call, to be written over.
    """
    work = work or Workspace(constants)
    b, heads, m, d = constants.values.shape
    n, kind = constants.slopes.shape[1], constants.slopes.dtype
    u = constants.readout.forward(t).to(kind)  # [B, 1 or N, D]
    h = u @ constants.fc2
    torch.mul(constants.slopes, h, out=work.hidden)
    torch.mm(work.hidden.view(b * n, -1), constants.fused, out=work.weight.view(b * n, -1))
    aside = (
        constants.along @ h.transpose(1, 2)
        if h.shape[1] == 1
        else (constants.along * h).sum(-1, keepdim=True)
    )
    weight = work.weight.addcmul_(constants.across, aside, value=-1).add_(u @ constants.out)
    work.split.copy_(weight.view(b, n, heads, d).transpose(1, 2))
    values = constants.values.view(b * heads, m, d).transpose(1, 2)
    torch.bmm(work.split.view(b * heads, n, d), values, out=work.relevance)
    relevance = work.relevance.relu_()
    return relevance.view(b, heads * n, m).sum(1, dtype=t.dtype) / (heads * n), work


@torch.no_grad()
def pull_back(constants: LegradConstants, grad: Tensor, work: Workspace) -> Tensor:
    """d f / d t [B, D_out] from d f / d E [B, M]: the adjoint of `maps`, which ran last on `work`."""
    b, heads, m, d = constants.values.shape
    n, kind = constants.slopes.shape[1], constants.slopes.dtype
    active = work.relevance.sign_()  # 1 where relu passed, else 0
    scaled = constants.values * (grad / (heads * n)).to(kind)[:, None, :, None]
    torch.bmm(active, scaled.view(b * heads, m, d), out=work.split.view(b * heads, n, d))
    weight = work.weight
    weight.view(b, n, heads, d).copy_(work.split.transpose(1, 2))
    torch.mm(weight.view(b * n, -1), constants.fused.T, out=work.hidden.view(b * n, -1))
    hidden = work.hidden.mul_(constants.slopes)
    aside = (weight * constants.across).sum(-1, keepdim=True)
    if constants.readout.shared:
        dh = hidden.sum(1, keepdim=True) - aside.transpose(1, 2) @ constants.along
        du = weight.sum(1, keepdim=True) @ constants.out.T
    else:
        dh = hidden.addcmul_(constants.along, aside, value=-1)
        du = weight @ constants.out.T
    return constants.readout.pull_back((du + dh @ constants.fc2.T).to(grad.dtype))


def raw_maps(constants: LegradConstants, t: Tensor) -> Tensor:
    """E(t), [B, M] >= 0; t: [B, D_out], unit rows; differentiable once, by the closed form."""
    raw: Tensor = _Maps.apply(constants, t)  # type: ignore[no-untyped-call]
    return raw


class _Maps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, constants: LegradConstants, t: Tensor) -> Tensor:
        ctx.constants = constants
        raw, ctx.work = maps(constants, t)
        return raw

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, pull_back(ctx.constants, grad, ctx.work)


def normalized(raw: Tensor) -> Tensor:
    """Min-max per crop, [B, M] -> 0..1; a constant map becomes zeros."""
    low, high = raw.amin(-1, keepdim=True), raw.amax(-1, keepdim=True)
    return (raw - low) / (high - low).clamp_min(1e-12)


def upsampled(raw: Tensor, size: int) -> Tensor:
    """[B, M] on a square grid -> [B, size, size], bilinear."""
    side = round(raw.shape[-1] ** 0.5)
    square = raw.view(len(raw), 1, side, side)
    return F.interpolate(square, (size, size), mode="bilinear", align_corners=False)[:, 0]


def _slopes(block: LastBlock, y: Tensor) -> tuple[Tensor, ...]:
    """d hidden / d (fc1 y) and, where gated, d hidden / d (gate y), [B, N, 4D] each."""
    up = block.linear(y, "fc1")
    if "gate.weight" in block.weights:
        gate = block.linear(y, "gate")
        return activate(gate, block.activation), up * derivative(gate, block.activation)
    return (derivative(up, block.activation),)
