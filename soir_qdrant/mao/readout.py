"""From the last block's output to z; t -> u_n = d (t . z) / d x2_n, linear in t, and its adjoint.

Mean (DINOv2, CLIP): z = normalize(P LN(mean_n x2_n)); u is the same for every token.
Attention pooling (SigLIP): z = normalize(head(LN(x2))); u differs from token to token.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.models.last_block import Activation, LastBlock, activate


class Readout(Protocol):
    @property
    def shared(self) -> bool:
        """Whether u is one row for all tokens of a crop."""
        ...

    def forward(self, t: Tensor) -> Tensor:
        """[B, D_out] -> u, [B, 1, D] where shared, else [B, N, D]."""
        ...

    def pull_back(self, du: Tensor) -> Tensor:
        """The adjoint: the shape of u -> [B, D_out]."""
        ...

    def take(self, rows: slice) -> Readout:
        """That of some of the crops."""
        ...


def make_readout(block: LastBlock, x2: Tensor) -> Readout:
    """x2: [B, N, D], what the last block returns."""
    return _attention(block, x2) if block.head is not None else _mean(block, x2)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """y -> y / |y| at one point: z [..., D] and length [..., 1]. Its Jacobian is symmetric."""

    z: Tensor
    length: Tensor

    def back(self, x: Tensor) -> Tensor:
        return (x - self.z * (self.z * x).sum(-1, keepdim=True)) / self.length

    def take(self, rows: slice) -> Unit:
        return Unit(self.z[rows], self.length[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """LayerNorm before its weight at one point: centred [..., D], spread [..., 1]. Symmetric as well."""

    centred: Tensor
    spread: Tensor

    def back(self, x: Tensor) -> Tensor:
        inner = (x * self.centred).mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True) - self.centred * inner) * self.spread

    def take(self, rows: slice) -> Norm:
        return Norm(self.centred[rows], self.spread[rows])


@dataclass(frozen=True, slots=True, eq=False)
class MeanReadout:
    """z = normalize(P LN(mean_n x2_n)). weight: of LN [D], with 1 / N; projection: P [D_out, D] or None."""

    unit: Unit
    norm: Norm
    weight: Tensor
    projection: Tensor | None
    shared: bool = True

    def forward(self, t: Tensor) -> Tensor:
        back = self.unit.back(t)
        back = back if self.projection is None else back @ self.projection
        return self.norm.back(back * self.weight)[:, None]

    def pull_back(self, du: Tensor) -> Tensor:
        ahead = self.norm.back(du[:, 0]) * self.weight
        ahead = ahead if self.projection is None else ahead @ self.projection.T
        return self.unit.back(ahead)

    def take(self, rows: slice) -> MeanReadout:
        return MeanReadout(self.unit.take(rows), self.norm.take(rows), self.weight, self.projection)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionReadout:
    """z = normalize(o + MLP(LN'(o))), o = Wout concat_h sum_n a_hn v_hn, of the tokens after the final LN.

    inner: LN' at o; slopes: of the MLP's hidden units [B, H]; fc1: W1 with LN''s weight [H, D]; fc2 [D, H].
    attention: a [B, h, N]; values: v [B, h, N, d]; keys: Wk_h^T q_h / sqrt(d) [h, D];
    into: Wv [h, d, D]; out: Wout [D, D]; norm, weight: the final LN at every token [B, N, D], [D].
    """

    unit: Unit
    inner: Norm
    slopes: Tensor
    fc1: Tensor
    fc2: Tensor
    attention: Tensor
    values: Tensor
    keys: Tensor
    into: Tensor
    out: Tensor
    norm: Norm
    weight: Tensor
    shared: bool = False

    def forward(self, t: Tensor) -> Tensor:
        back = self.unit.back(t)
        back = back + self.inner.back((back @ self.fc2 * self.slopes) @ self.fc1)
        part = (back @ self.out).unflatten(-1, (len(self.keys), -1))  # [B, h, d]
        to_values = torch.einsum("bhd,hdD->bhD", part, self.into)
        to_scores = self._soften(torch.einsum("bhd,bhnd->bhn", part, self.values))
        tokens = self.attention.transpose(1, 2) @ to_values + to_scores.transpose(1, 2) @ self.keys
        return self.norm.back(tokens * self.weight)

    def pull_back(self, du: Tensor) -> Tensor:
        tokens = self.norm.back(du) * self.weight
        to_values = torch.einsum("bhD,hdD->bhd", self.attention @ tokens, self.into)
        to_scores = self._soften((tokens @ self.keys.T).transpose(1, 2))
        part = to_values + torch.einsum("bhn,bhnd->bhd", to_scores, self.values)
        ahead = part.flatten(1) @ self.out.T
        ahead = ahead + (self.inner.back(ahead) @ self.fc1.T * self.slopes) @ self.fc2.T
        return self.unit.back(ahead)

    def _soften(self, x: Tensor) -> Tensor:
        """The Jacobian of softmax at a, diag(a) - a a^T: symmetric."""
        return self.attention * (x - (self.attention * x).sum(-1, keepdim=True))

    def take(self, rows: slice) -> AttentionReadout:
        own = {name: getattr(self, name)[rows] for name in ("slopes", "attention", "values")}
        own |= {name: getattr(self, name).take(rows) for name in ("unit", "inner", "norm")}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        return AttentionReadout(**own, **rest)


def standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / std, and 1 / std."""
    spread = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    return (x - x.mean(-1, keepdim=True)) * spread, spread


def derivative(x: Tensor, kind: Activation) -> Tensor:
    """act'(x), elementwise."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activate(x, kind).sum(), x)
    return slope


def _unit(y: Tensor) -> Unit:
    length = y.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return Unit(y / length, length)


def _mean(block: LastBlock, x2: Tensor) -> MeanReadout:
    mean = x2.mean(1)
    return MeanReadout(
        unit=_unit(block.project(block.norm(mean))),
        norm=Norm(*standardize(mean, block.eps)),
        weight=block.weights["norm.weight"] / x2.shape[1],
        projection=block.weights.get("projection"),
    )


def _attention(block: LastBlock, x2: Tensor) -> AttentionReadout:
    head: Any = block.head
    heads, dim = head.attention.num_heads, block.dim
    wq, wk, wv = head.attention.in_proj_weight.chunk(3)
    bq, _, bv = head.attention.in_proj_bias.chunk(3)
    x = block.norm(x2)
    q = F.linear(head.probe[0, 0], wq, bq).view(heads, -1) / (dim // heads) ** 0.5  # [h, d]
    keys = torch.einsum("hd,hdD->hD", q, wk.view(heads, -1, dim))
    attention = (keys @ x.transpose(1, 2)).softmax(-1)  # the keys' bias is alike for all tokens: it drops out
    values = F.linear(x, wv, bv).unflatten(-1, (heads, -1)).transpose(1, 2)
    pooled = torch.einsum("bhn,bhnd->bhd", attention, values).flatten(1)
    o = F.linear(pooled, head.attention.out_proj.weight, head.attention.out_proj.bias)
    hidden = head.mlp.fc1(head.layernorm(o))
    return AttentionReadout(
        unit=_unit(o + head.mlp.fc2(activate(hidden, block.activation))),
        inner=Norm(*standardize(o, head.layernorm.eps)),
        slopes=derivative(hidden, block.activation),
        fc1=head.mlp.fc1.weight * head.layernorm.weight,
        fc2=head.mlp.fc2.weight,
        attention=attention,
        values=values,
        keys=keys,
        into=wv.view(heads, -1, dim),
        out=head.attention.out_proj.weight,
        norm=Norm(*standardize(x2, block.eps)),
        weight=block.weights["norm.weight"],
    )
