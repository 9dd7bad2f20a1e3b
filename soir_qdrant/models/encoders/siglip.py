"""SigLIP's vision tower (arXiv 2303.15343): no CLS token, a head that pools by attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.encoders.backbone import HALF, Backbone, Context
from soir_qdrant.models.encoders.clip import clip_like
from soir_qdrant.models.last_block import LastBlock, activation_of


class Siglip(Backbone):
    """`transformers.SiglipVisionModel`, which reads SigLIP 2's checkpoints of one resolution as well.

    Raises:
        ConfigError: the tower has no head, hence no descriptor.
    """

    loader = "SiglipVisionModel"
    normalisation = HALF

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prefix_tokens = 0
        if not self.vision.use_head:
            raise ConfigError("this SigLIP vision tower has no pooling head, so it has no descriptor")

    @property
    def vision(self) -> Any:
        """The tower itself: some versions of `transformers` wrap it."""
        return getattr(self.model, "vision_model", self.model)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.vision.encoder.layers
        return layers

    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        return self.vision.embeddings(pixels, interpolate_pos_encoding=True), {"attention_mask": None}

    def last_block(self, i: int = -1) -> LastBlock:
        config, weights = self.vision.config, clip_like(self.vision, i)
        act = activation_of(config.hidden_act)
        return LastBlock(
            config.num_attention_heads, config.layer_norm_eps, act, 0, weights, head=self.vision.head
        )
