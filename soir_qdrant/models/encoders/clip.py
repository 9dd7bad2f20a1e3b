"""CLIP's vision tower (arXiv 2103.00020), with its projection into the space of the texts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from soir_qdrant.models.encoders.backbone import OPENAI, Backbone, Context
from soir_qdrant.models.last_block import LastBlock, activation_of, attention_of, named


class Clip(Backbone):
    """`transformers.CLIPVisionModelWithProjection`."""

    loader = "CLIPVisionModelWithProjection"
    normalisation = OPENAI

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.dim = int(model.config.projection_dim)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.vision_model.encoder.layers
        return layers

    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        vision = self.model.vision_model
        x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
        return x, {"attention_mask": None}

    def last_block(self, i: int = -1) -> LastBlock:
        weights = clip_like(self.model.vision_model, i)
        weights["projection"] = self.model.visual_projection.weight.detach()
        config = self.model.config
        act = activation_of(config.hidden_act)
        return LastBlock(config.num_attention_heads, config.layer_norm_eps, act, self.prefix_tokens, weights)


class MetaClip2(Clip):
    """`transformers.MetaClip2VisionModelWithProjection` (arXiv 2507.22062): CLIP, on texts of all languages."""

    loader = "MetaClip2VisionModelWithProjection"


def clip_like(vision: Any, i: int) -> dict[str, Tensor]:
    """The tensors of a block of CLIP's vision tower, or of one that is built like it."""
    layer = vision.encoder.layers[i]
    parts = {"norm1": layer.layer_norm1, "norm2": layer.layer_norm2, "norm": vision.post_layernorm}
    return attention_of(layer.self_attn, "out_proj") | named(**parts, fc1=layer.mlp.fc1, fc2=layer.mlp.fc2)
