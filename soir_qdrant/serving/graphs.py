"""The models as they are exported: from the bytes of an image to what a client reads, nothing else.

Pixels travel as bytes, a quarter of what floats take, and are normalised in the graph. Whatever the
precision inside, what comes in and goes out is as the spec says.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.models.encoders.backbone import IMAGENET, OPENAI, Normalisation, only
from soir_qdrant.models.encoders.text import TextEncoder
from soir_qdrant.models.encoders.vit import LAYERS, ViTEncoder
from soir_qdrant.models.heads.texture import TextureHead
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.models.tokens import AFTER
from soir_qdrant.pooling.patches import PatchProjection


class Pixels(nn.Module):
    """uint8 [B, H, W, 3] -> normalised [B, 3, H, W]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, normalisation: Normalisation, dtype: torch.dtype) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() * self.scale + self.shift).to(self.dtype)


class Trunk(nn.Module):
    """uint8 [B, H, W, 3] -> float32 tokens [B, N, D] after each of the first `count` blocks."""

    def __init__(self, encoder: ViTEncoder, count: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = deepcopy(encoder.backbone)
        self.backbone.to(torch.device("cpu"), dtype)
        self.model = self.backbone.model  # so that its weights are this module's
        self.count = count
        self.pixels = Pixels(encoder.backbone.normalisation, dtype)

    def forward(self, images: Tensor, patches: Tensor | None = None) -> list[Tensor]:
        """patches: int64 [B, m], those that are looked at; None is all."""
        x, context = self.backbone.embed(self.pixels(images))
        if patches is not None:
            x = only(x, patches, self.backbone.prefix_tokens)
        after = []
        for i in range(self.count):
            x = self.backbone.block(i, x, context)
            after.append(x.float())
        return after


class EncoderGraph(nn.Module):
    """crops uint8 [B, S, S, 3], patches int64 [B, m], weights [B, m] -> descriptor, layers, tokens: see
    `types.Encoding`, and `geometry.patches.Batch`; with a projection also the patches' rows, float16 [B, m, d].

    The last block and the projection stay in float32, as they do in `ViTEncoder`.
    """

    def __init__(
        self,
        encoder: ViTEncoder,
        dtype: torch.dtype = torch.float32,
        projection: PatchProjection | None = None,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(encoder, encoder.depth - 1, dtype)
        self._block = encoder.last_block.to("cpu", torch.float32)
        self.head = self._block.head
        for name, weight in self._block.weights.items():
            self.register_buffer(_flat(name), weight)
        self.rows = Rows(projection) if projection else None

    @property
    def block(self) -> LastBlock:
        """The last block on this module's own buffers, which is what an export can follow."""
        buffers = {name: getattr(self, _flat(name)) for name in self._block.weights}
        return replace(self._block, weights=buffers, head=self.head)

    def forward(self, crops: Tensor, patches: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        block, trunk = self.block, self.trunk(crops, patches)
        last = block.forward(trunk[-1])
        means = [
            (weights[:, None] @ block.norm(x)[:, block.prefix_tokens :])[:, 0]
            for x in [*trunk[1 - LAYERS :], last]
        ]
        outputs = block.read(last), torch.stack(means, 1), trunk[-1]
        if self.rows is None:
            return outputs
        return *outputs, self.rows(trunk[max(len(trunk) - AFTER, 0)][:, block.prefix_tokens :])


class Rows(nn.Module):
    """Tokens [B, m, D] -> float16 [B, m, d]: `pooling.patches.PatchProjection`."""

    mean: Tensor
    matrix: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, projection: PatchProjection) -> None:
        super().__init__()
        for name in ("mean", "matrix", "weight", "bias"):
            self.register_buffer(name, torch.from_numpy(getattr(projection, name)).contiguous())
        self.eps, self.scale = projection.eps, projection.scale

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.layer_norm(tokens, self.weight.shape, self.weight, self.bias, self.eps)
        x = (F.normalize(x, dim=-1) * self.scale - self.mean) @ self.matrix
        return F.normalize(x, dim=-1).half()


class TokensGraph(nn.Module):
    """images uint8 [B, H, W, 3] -> the patches' tokens float32 [B, N, D] after the block `LAYER`."""

    def __init__(self, encoder: ViTEncoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.trunk = Trunk(encoder, max(encoder.depth - AFTER, 1), dtype)
        self.prefix_tokens = encoder.prefix_tokens

    def forward(self, images: Tensor) -> Tensor:
        after: list[Tensor] = self.trunk(images)
        return after[-1][:, self.prefix_tokens :]


class TextureGraph(nn.Module):
    """surfaces uint8 [B, T, T, 3], weights [B, P] -> float32 [B, texture_dim]: `contracts.Encoder.texture`."""

    def __init__(self, encoder: ViTEncoder) -> None:
        super().__init__()
        self.read = [max(encoder.depth + layer, 0) for layer in TextureHead.layers]
        self.trunk = Trunk(encoder, max(self.read) + 1, torch.float32)
        self.head = deepcopy(encoder.texture_head)
        self.prefix_tokens = encoder.prefix_tokens

    def forward(self, surfaces: Tensor, weights: Tensor) -> Tensor:
        after = self.trunk(surfaces)
        if self.head is not None:
            rows: Tensor = self.head([after[i][:, self.prefix_tokens :] for i in self.read], weights)
            return rows
        tokens = after[-1][:, self.prefix_tokens :]
        even = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        mean = weights[:, None] @ even
        spread = weights[:, None] @ (even - mean) ** 2
        return torch.cat([mean, spread.sqrt()], 2)[:, 0]


class TextGraph(nn.Module):
    """input_ids and, where the tower takes it, attention_mask, int64 [B, L] -> descriptor float32 [B, D], unit rows.

    In float32.
    """

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.model = deepcopy(text.model).cpu().float()
        self.tokenizer, self.tower = text.tokenizer, text.tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        masked = {} if attention_mask is None else {"attention_mask": attention_mask}
        rows: Tensor = getattr(self.model(input_ids=input_ids, **masked), self.tower.output)
        return F.normalize(rows, dim=-1)


class Owlv2Graph(nn.Module):
    """images uint8 [B, S, S, 3] -> boxes [B, P, 4], x0 y0 x1 y1 in shares of the square; scores [B, P]."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = deepcopy(model).cpu().to(dtype)
        self.pixels = Pixels(OPENAI, dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.model.image_embedder(pixel_values=self.pixels(images))[0]
        features = grid.flatten(1, 2)
        logits = self.model.objectness_predictor(features).float()
        centre, sides = self.model.box_predictor(features, grid).float().chunk(2, dim=-1)
        boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=-1)
        return boxes, logits.sigmoid()


class SamEncoderGraph(nn.Module):
    """images uint8 [B, S, S, 3], padded with the mean colour -> embeddings float32 [B, C, g, g]."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.encoder = deepcopy(model.vision_encoder).cpu().to(dtype)
        self.pixels = Pixels(IMAGENET, dtype)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.encoder(self.pixels(images)).last_hidden_state
        return embeddings.float()


class SamDecoderGraph(nn.Module):
    """embeddings [1, C, g, g], boxes [1, k, 4] -> masks [1, k, 4g, 4g], logits; quality [1, k].

    Always float32: half precision makes masks wrong, and the decoder is small.
    """

    position: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        model = deepcopy(model).cpu().float()
        self.prompts, self.decoder = model.prompt_encoder, model.mask_decoder
        with torch.no_grad():
            self.register_buffer("position", model.get_image_wide_positional_embeddings())

    def forward(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        sparse, dense = self.prompts(
            input_points=None, input_labels=None, input_boxes=boxes, input_masks=None
        )
        masks, quality = self.decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=self.position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        best = quality.argmax(dim=-1, keepdim=True)
        chosen = best[..., None, None].expand(-1, -1, -1, masks.shape[-2], masks.shape[-1])
        return masks.gather(2, chosen)[:, :, 0], quality.gather(2, best)[..., 0]


def _flat(name: str) -> str:
    return "last_" + name.replace(".", "_")
