"""DINOv3 vision transformers (arXiv 2508.10104): registers, and rotary positions that depend on the grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from soir_qdrant.models.encoders.backbone import Backbone, Context
from soir_qdrant.models.last_block import LastBlock, activation_of, attention_of, named


class Dinov3(Backbone):
    """`transformers.DINOv3ViTModel`, all sizes, gated or not."""

    loader = "DINOv3ViTModel"
    positions_in_tokens = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prefix_tokens = 1 + int(model.config.num_register_tokens)
        self._frequencies: Tensor = model.rope_embeddings.inv_freq.clone()

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.model.layer
        return layers

    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        return self.model.embeddings(pixels), {"position_embeddings": self.model.rope_embeddings(pixels)}

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """The positions' frequencies stay as they are: in half precision they would turn patches too far."""
        super().to(device, dtype)
        self.model.rope_embeddings.inv_freq = self._frequencies.to(device)

    def last_block(self, i: int = -1) -> LastBlock:
        layer: Any = self.blocks[i]
        config = self.model.config
        weights = attention_of(layer.attention, "o_proj")
        weights |= named(norm1=layer.norm1, norm2=layer.norm2, norm=self.model.norm)
        weights |= named(fc1=layer.mlp.up_proj, fc2=layer.mlp.down_proj)
        if config.use_gated_mlp:
            weights |= named(gate=layer.mlp.gate_proj)
        weights |= named(ls1=layer.layer_scale1, ls2=layer.layer_scale2)
        weights["rotary"] = self.model.rope_embeddings.inv_freq.detach()
        return LastBlock(
            config.num_attention_heads,
            config.layer_norm_eps,
            activation_of(config.hidden_act),
            self.prefix_tokens,
            weights,
        )
