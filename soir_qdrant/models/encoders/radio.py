"""C-RADIO (arXiv 2312.06709): several CLS tokens and registers, no final LayerNorm.

The descriptor is C-RADIO's summary, a few of its CLS tokens side by side. What LeGrad differentiates is a
read-out of one token, so the last block is not taken apart: no MaO, no heat maps, no Q-Perturbation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from soir_qdrant.models.encoders.backbone import Backbone, Context


class Radio(Backbone):
    """`transformers.RadioModel`. Its own normalisation of the pixels is done outside of it."""

    loader = "RadioModel"

    def __init__(self, model: Any) -> None:
        config = model.config
        super().__init__(model)
        self.prefix_tokens = config.num_cls_tokens + config.num_registers
        self.normalisation = tuple(config.norm_mean), tuple(config.norm_std)
        self.dim = self.width * len(config.summary_idxs)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.encoder.layer
        return layers

    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        return self.model.embeddings(pixels), {}

    def read(self, x: Tensor) -> Tensor:
        return x[:, self.model.config.summary_idxs].flatten(1)
