"""The last block of a vision transformer and its read-out, as plain tensors beside the served trunk.

An earlier block goes with the same read-out, as LeGrad has it for maps of several blocks.
"""

from __future__ import annotations

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
    "gate", each with ".weight" [out, in] or [D] and ".bias"; optionally "ls1", "ls2" [D] and "projection"
    [D_out, D]. head: attention pooling (SigLIP) in place of the CLS token.
    """

    heads: int
    eps: float
    activation: Activation
    has_cls: bool
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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LastBlock:
        """A copy on another device or of another dtype."""
        weights = {name: w.detach().to(device, dtype) for name, w in self.weights.items()}
        return replace(self, weights=weights, head=self.head.to(device, dtype) if self.head else None)

    def forward(self, tokens: Tensor) -> Tensor:
        """x0 [B, N, D] -> x2 [B, N, D]."""
        q, k, v = (self.split(self.linear(self.layer_norm(tokens, "norm1"), name)) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x1 = tokens + self.scale("ls1", self.linear(mixed, "o"))
        return x1 + self.scale("ls2", self.mlp(self.layer_norm(x1, "norm2")))

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
        return torch.einsum("bm,bmd->bd", weights, self.norm(x2)[:, int(self.has_cls) :])

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

    @classmethod
    def from_dinov2(cls, model: Any, index: int = -1) -> LastBlock:
        """Of a `transformers.Dinov2Model`, all sizes, gated (giant) or not. index: of the block."""
        layer, config = model.encoder.layer[index], model.config
        weights = _attention(layer.attention, "o_proj")
        weights |= _named(norm1=layer.norm1, norm2=layer.norm2, norm=model.layernorm)
        if config.use_swiglu_ffn:
            mlp = layer.mlp
            weights |= _named(gate=mlp.gate_proj, fc1=mlp.up_proj, fc2=mlp.down_proj)
        else:
            weights |= _named(fc1=layer.mlp.fc1, fc2=layer.mlp.fc2)
        weights |= {"ls1": layer.layer_scale1.lambda1, "ls2": layer.layer_scale2.lambda1}
        kind = "silu" if config.use_swiglu_ffn else config.hidden_act
        return cls(config.num_attention_heads, config.layer_norm_eps, _activation(kind), True, _held(weights))

    @classmethod
    def from_clip(cls, model: Any, index: int = -1) -> LastBlock:
        """Of a `transformers.CLIPVisionModelWithProjection` or `CLIPVisionModel`."""
        vision = getattr(model, "vision_model", model)
        weights = _clip_like(vision, index)
        if hasattr(model, "visual_projection"):
            weights["projection"] = model.visual_projection.weight
        config = vision.config
        act = _activation(config.hidden_act)
        return cls(config.num_attention_heads, config.layer_norm_eps, act, True, _held(weights))

    @classmethod
    def from_siglip(cls, model: Any, index: int = -1) -> LastBlock:
        """Of a `transformers.SiglipVisionModel`, with its attention-pooling head."""
        vision = getattr(model, "vision_model", model)
        if not getattr(vision, "use_head", True):
            raise ConfigError("this SigLIP vision tower has no pooling head, so it has no descriptor")
        config, weights = vision.config, _held(_clip_like(vision, index))
        act = _activation(config.hidden_act)
        return cls(config.num_attention_heads, config.layer_norm_eps, act, False, weights, vision.head)


def activate(x: Tensor, kind: Activation) -> Tensor:
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation {name!r}: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _attention(attention: Any, out: str) -> dict[str, Tensor]:
    return _named(q=attention.q_proj, k=attention.k_proj, v=attention.v_proj, o=getattr(attention, out))


def _clip_like(vision: Any, index: int) -> dict[str, Tensor]:
    layer = vision.encoder.layers[index]
    parts = {"norm1": layer.layer_norm1, "norm2": layer.layer_norm2, "norm": vision.post_layernorm}
    return _attention(layer.self_attn, "out_proj") | _named(**parts, fc1=layer.mlp.fc1, fc2=layer.mlp.fc2)


def _named(**modules: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": p for name, m in modules.items() for key, p in m.named_parameters()}


def _held(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in weights.items()}
