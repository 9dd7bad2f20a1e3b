"""The last blocks of an encoder with low-rank additions to their linear layers, to be trained (LoRA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.config import Feature
from soir_qdrant.errors import ConfigError
from soir_qdrant.lab.train.views import Group
from soir_qdrant.models.encoders.lora import Adapter
from soir_qdrant.models.encoders.vit import LAYERS, ViTEncoder
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.pooling.features import TEXTURE

LINEAR = ("q", "k", "v", "o", "fc1", "fc2", "gate")


class Tail(nn.Module):
    """blocks: how many of the last ones; rank: of the additions. features: what describes an object, as in
    `VectorSettings`. Raises ConfigError for more blocks than describe an object."""

    def __init__(self, encoder: ViTEncoder, features: tuple[Feature, ...], *, blocks: int, rank: int) -> None:
        super().__init__()
        if not 1 <= blocks <= LAYERS:
            raise ConfigError(f"blocks {blocks}: the last 1 to {LAYERS} can be tuned")
        self.features = features
        self.in_bfloat16 = encoder.dtype != torch.float32
        own_blocks = [encoder.backbone.last_block(i) for i in range(-blocks, 0)]
        self.last_blocks = [block.to(encoder.device, torch.float32) for block in own_blocks if block]
        if not self.last_blocks:
            raise ConfigError(f"{encoder.name}: its last blocks are not taken apart, so they cannot be tuned")
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for i, block in enumerate(self.last_blocks):
            for name in LINEAR:
                if f"{name}.weight" in block.weights:
                    out, into = block.weights[f"{name}.weight"].shape
                    key = f"{i - blocks}_{name}"  # a dot may not stand in a parameter's name
                    self.down[key] = nn.Parameter(torch.randn(rank, into) / math.sqrt(into))
                    self.up[key] = nn.Parameter(torch.zeros(out, rank))
        self.to(encoder.device)

    def forward(self, tokens: Tensor, before: Tensor, weights: Tensor, texture: Tensor) -> Tensor:
        """Rows, float32 [B, F], as `Pipeline.features` makes them. See `train.views.Views`."""
        x, tuned = tokens if self.in_bfloat16 else tokens.float(), []
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            for i in range(len(self.last_blocks)):
                x = self._tuned(i).forward(x)
                tuned.append(x.float())
        read = self.last_blocks[-1]
        layers = [*before.unbind(1), *(read.masked_mean(y, weights) for y in tuned)]
        whole = {"cls": read.read(tuned[-1]), TEXTURE: texture}
        parts = [
            whole[name] if name in whole else layers[-1 - int(name.partition("-")[2] or 0)]
            for name in self.features
        ]
        return F.normalize(torch.cat([F.normalize(part, dim=-1) for part in parts], -1), dim=-1)

    def of(self, groups: Sequence[Group]) -> Tensor:
        """Rows, float32 [n, F], of what `Views.take` gave, in the order in which it was asked for."""
        device = next(self.parameters(), self.last_blocks[0].weights["norm.weight"]).device
        on = [group.to(device) for group in groups]
        rows = torch.cat([self(group.tokens, group.before, group.weights, group.texture) for group in on])
        return rows[torch.cat([group.rows for group in on]).argsort()]

    def _tuned(self, i: int) -> LastBlock:
        block, index = self.last_blocks[i], i - len(self.last_blocks)
        added = {
            f"{name}.weight": block.weights[f"{name}.weight"] + self.up[key] @ self.down[key]
            for name in LINEAR
            if (key := f"{index}_{name}") in self.down
        }
        return replace(block, weights=block.weights | added)

    def adapter(self, fitted_for: str) -> Adapter:
        """What was learnt so far."""
        factors = {
            key.replace("_", "."): (self.down[key].detach().cpu(), self.up[key].detach().cpu())
            for key in self.down
        }
        return Adapter(factors, fitted_for)
