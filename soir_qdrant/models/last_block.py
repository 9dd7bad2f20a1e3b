"""The last block of a vision transformer and its read-out, as plain tensors beside the served trunk.

An earlier block goes with the same read-out, as LeGrad has it for maps of several blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}


@dataclass(frozen=True, slots=True, eq=False)
class LastBlock:
    """x1 = x0 + ls1 * Wo concat_h(A_h V_h), x2 = x1 + ls2 * MLP(LN2(x1)), v = read-out of LN(x2).

    weights: "norm1", "norm2", "norm" (final), "q", "k", "v", "o", "fc1", "fc2" and, for a gated MLP,
    "gate", each with ".weight" [out, in] or [D] and ".bias"; optionally "ls1", "ls2" [D], "projection"
    [D_out, D] and "rotary" [d / 4], the frequencies of rotary positions on a square grid (DINOv3).
    prefix_tokens: before those of the patches; the first is CLS, which is read, unless there is a head.
    head: attention pooling (SigLIP) in place of the CLS token.
    """

    heads: int
    eps: float
    activation: Activation
    prefix_tokens: int
    weights: dict[str, Tensor]
    head: nn.Module | None = None

    @property
    def dim(self) -> int:
        return len(self.weights["norm.weight"])

    @property
    def dim_out(self) -> int:
        return len(self.weights["projection"]) if "projection" in self.weights else self.dim

    @property
    def device(self) -> torch.device:
        return self.weights["norm.weight"].device

    @property
    def probe(self) -> Tensor:
        """What the head pools with, [1, 1, D]."""
        head: Any = self.head
        probe: Tensor = head.probe
        return probe

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LastBlock:
        """A copy on another device or of another dtype."""
        weights = {name: w.detach().to(device, dtype) for name, w in self.weights.items()}
        return replace(self, weights=weights, head=self.head.to(device, dtype) if self.head else None)

    def forward(self, tokens: Tensor) -> Tensor:
        """x0 [B, N, D] -> x2 [B, N, D]."""
        q, k, v = self.attention_inputs(tokens)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x1 = tokens + self.scale("ls1", self.linear(mixed, "o"))
        return x1 + self.scale("ls2", self.mlp(self.layer_norm(x1, "norm2")))

    def own(self, tokens: Tensor) -> Tensor:
        """x0 [B, N, D] -> x2 [B, N, D] where each token attends to itself alone: what stands at its place, not
        what the image is about (MaskCLIP, arXiv 2112.01071)."""
        x1 = tokens + self.scale("ls1", self.linear(self.linear(self.layer_norm(tokens, "norm1"), "v"), "o"))
        return x1 + self.scale("ls2", self.mlp(self.layer_norm(x1, "norm2")))

    def read_patches(self, x2: Tensor) -> Tensor:
        """x2 [B, N, D] -> each patch read as if the image were it alone, [B, M, D_out]."""
        patches = self.norm(x2[:, self.prefix_tokens :])
        if self.head is None:
            return self.project(patches)
        alone: Tensor = self.head(patches.flatten(0, 1)[:, None])
        return alone.view(*patches.shape[:2], -1)

    def attend(
        self, queries: Tensor, tokens: Tensor, move: Callable[[Tensor], Tensor] = lambda q: q
    ) -> tuple[Tensor, Tensor]:
        """Queries in the place of the CLS token, or of the probe of attention pooling.

        Args:
            queries: [B, k, D]. tokens: x0, [B, N, D], their keys and values.
            move: what is done to the queries of the heads, [B, heads, k, d]; not with attention pooling.

        Returns:
            Descriptors [B, k, D_out], and how much of its attention each gave to each patch, [B, k, M].
        """
        if self.head is not None:
            return self._pool(queries, self.norm(self.forward(tokens)))
        normed = self.layer_norm(queries, "norm1")
        _, keys, values = self.attention_inputs(tokens)
        q = move(self.split(self.linear(normed, "q")))
        shares = (q @ keys.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        x1 = queries + self.scale("ls1", self.linear((shares @ values).transpose(1, 2).flatten(2), "o"))
        x2 = x1 + self.scale("ls2", self.mlp(self.layer_norm(x1, "norm2")))
        shown: Tensor = shares.mean(1)[..., self.prefix_tokens :]
        return self.project(self.norm(x2)), shown

    def _pool(self, queries: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        """As SigLIP's head does with its one probe."""
        head: Any = self.head
        x, shares = head.attention(queries, normed, normed, need_weights=True)
        rows: Tensor = x + head.mlp(head.layernorm(x))
        return rows, shares[..., self.prefix_tokens :]

    def attention_inputs(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x0 [B, N, D] -> queries, keys and values, [B, heads, N, d] each, positions applied."""
        normed = self.layer_norm(tokens, "norm1")
        q, k, v = (self.split(self.linear(normed, name)) for name in "qkv")
        return self.rotated(q), self.rotated(k), v

    def keys(self, tokens: Tensor) -> Tensor:
        """x0 [B, N, D] -> the keys alone, [B, heads, N, d], positions applied."""
        return self.rotated(self.split(self.linear(self.layer_norm(tokens, "norm1"), "k")))

    def rotated(self, x: Tensor) -> Tensor:
        """Queries or keys, [B, heads, N, d], with the rotary positions of a square grid, where the block has
        them; the prefix tokens have no position."""
        if "rotary" not in self.weights:
            return x
        prefix, patches = x.split((self.prefix_tokens, x.shape[2] - self.prefix_tokens), dim=2)
        cos, sin = _rotary(self.weights["rotary"], patches.shape[2])
        first, second = patches.chunk(2, dim=-1)
        turned = patches * cos.to(x) + torch.cat([-second, first], dim=-1) * sin.to(x)
        return torch.cat([prefix, turned], dim=2)

    def descriptor(self, tokens: Tensor) -> Tensor:
        """x0 [B, N, D] -> the model's own descriptor [B, D_out]."""
        return self.read(self.forward(tokens))

    def read(self, x2: Tensor) -> Tensor:
        """x2 [B, N, D] -> descriptor [B, D_out]: LN(x2)[CLS], projected, or LN(x2) pooled by attention."""
        if self.head is not None:
            pooled: Tensor = self.head(self.norm(x2))
            return pooled
        return self.project(self.norm(x2[:, 0]))

    def norm(self, x: Tensor) -> Tensor:
        """The final LayerNorm, [..., D] -> [..., D]."""
        return self.layer_norm(x, "norm")

    def masked_mean(self, x2: Tensor, weights: Tensor) -> Tensor:
        """x2 [B, N, D], weights of the M patches [B, M], summing to one -> LN(x2) averaged, [B, D]."""
        return torch.einsum("bm,bmd->bd", weights, self.norm(x2)[:, self.prefix_tokens :])

    def project(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D_out]: CLIP's projection, else the identity."""
        return x @ self.weights["projection"].T if "projection" in self.weights else x

    def mlp(self, y: Tensor) -> Tensor:
        """LN2(x1) [..., D] -> [..., D]."""
        hidden = self.linear(y, "fc1")
        if "gate.weight" in self.weights:
            return self.linear(activate(self.linear(y, "gate"), self.activation) * hidden, "fc2")
        return self.linear(activate(hidden, self.activation), "fc2")

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, (self.dim,), weight, bias, self.eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def scale(self, name: str, x: Tensor) -> Tensor:
        """Layer scale, where the block has it."""
        return x * self.weights[name] if name in self.weights else x

    def split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


def entering_last(blocks: Sequence[LastBlock], tokens: Tensor) -> Tensor:
    """Tokens that enter the first of some blocks, float [B, N, D], as `Encoding` has them -> those that enter the
    last, likewise."""
    for block in blocks[:-1]:
        tokens = block.forward(tokens)
    return tokens


def activate(x: Tensor, kind: Activation) -> Tensor:
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def activation_of(name: str) -> Activation:
    """By its name in `transformers`. Raises ConfigError for one that is not known."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation {name!r}: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def attention_of(attention: Any, out: str) -> dict[str, Tensor]:
    """The four matrices of an attention of `transformers`. out: name of its last projection."""
    projections = dict(attention.named_children())
    return named(**{name: projections[f"{name}_proj"] for name in "qkv"}, o=projections[out])


def named(**modules: Any) -> dict[str, Tensor]:
    """The parameters of modules: "norm1.weight" of `norm1`, and "ls1" of a layer scale `ls1`."""
    return {
        name if key == "lambda1" else f"{name}.{key}": parameter.detach()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }


def _rotary(frequencies: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the patches of a square grid, [patches, d] each, as DINOv3 has them."""
    side = math.isqrt(patches)
    middles = 2 * torch.arange(0.5, side, dtype=torch.float32, device=frequencies.device) / side - 1
    places = torch.stack(torch.meshgrid(middles, middles, indexing="ij"), dim=-1).flatten(0, 1)  # y, x
    angles = (2 * math.pi * places[:, :, None] * frequencies).flatten(1, 2).tile(2)
    return angles.cos(), angles.sin()
