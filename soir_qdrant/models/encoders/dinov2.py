"""DINOv2 (arXiv 2304.07193), without registers and with them (2309.16588), all sizes, gated or not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.models.encoders.backbone import Backbone, Context, Normalise, pixels_of
from soir_qdrant.models.last_block import LastBlock, activation_of, attention_of, named


class Dinov2(Backbone):
    """`transformers.Dinov2Model`: a CLS token, positions added to the patches."""

    loader = "Dinov2Model"

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.encoder.layer
        return layers

    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        return self.model.embeddings(pixels), {}

    def embed_patches(self, pixels: Tensor, patches: Tensor, normalise: Normalise) -> tuple[Tensor, Context]:
        embeddings, (height, width) = self.model.embeddings, pixels.shape[2:]
        projection = embeddings.patch_embeddings.projection
        cells = normalise(pixels_of(pixels, patches, self.patch))
        rows = F.linear(cells.flatten(2), projection.weight.flatten(1), projection.bias)
        like = rows.new_empty(1, 1 + (height // self.patch) * (width // self.patch), rows.shape[2])
        positions = embeddings.interpolate_pos_encoding(like, height, width)[0]
        prefix = torch.cat([embeddings.cls_token[0] + positions[:1], *self._registers()])
        return torch.cat([prefix.expand(len(rows), -1, -1), rows + positions[1:][patches]], 1), {}

    def _registers(self) -> list[Tensor]:
        return []

    def last_block(self, i: int = -1) -> LastBlock:
        layer, config = self.blocks[i], self.model.config
        weights = attention_of(layer.attention, "o_proj")
        weights |= named(norm1=layer.norm1, norm2=layer.norm2, norm=self.model.layernorm)
        if config.use_swiglu_ffn:
            mlp: Any = layer.mlp
            weights |= named(gate=mlp.gate_proj, fc1=mlp.up_proj, fc2=mlp.down_proj)
        else:
            weights |= named(fc1=layer.mlp.fc1, fc2=layer.mlp.fc2)  # type: ignore[union-attr]
        weights |= named(ls1=layer.layer_scale1, ls2=layer.layer_scale2)
        return LastBlock(
            config.num_attention_heads,
            config.layer_norm_eps,
            activation_of("silu" if config.use_swiglu_ffn else config.hidden_act),
            self.prefix_tokens,
            weights,
        )


class Dinov2Registers(Dinov2):
    """`transformers.Dinov2WithRegistersModel`: registers between the CLS token and the patches."""

    loader = "Dinov2WithRegistersModel"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prefix_tokens = 1 + int(model.config.num_register_tokens)

    def _registers(self) -> list[Tensor]:
        return [self.model.embeddings.register_tokens[0]]
