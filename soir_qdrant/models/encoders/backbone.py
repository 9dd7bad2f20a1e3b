"""The contract of a family of vision transformers: one architecture, taken apart block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from soir_qdrant.models.last_block import LastBlock

Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of the pixels, 0..1
Context: TypeAlias = Mapping[str, Any]  # what every block of one call is given beside its tokens
Normalise: TypeAlias = Callable[[Tensor], Tensor]  # pixels of 0..255, in the dtype of the model afterwards

IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Backbone(ABC):
    """A model of `transformers` as an encoder needs it. A family is a subclass of some forty lines.

    Attributes:
        loader: name of the class in `transformers` that loads the weights.
        normalisation: mean and standard deviation of the pixels, of 0..1.
        model: in eval mode, without gradients.
        patch: side of a patch in pixels.
        prefix_tokens: tokens before those of the patches: CLS, registers.
        width: numbers of a token.
        dim: numbers of the descriptor.
        positions_in_tokens: whether positions are added to the tokens, so that some of these can be left out.
    """

    loader: ClassVar[str]
    normalisation: Normalisation = IMAGENET
    positions_in_tokens: bool = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.patch = int(model.config.patch_size)
        self.prefix_tokens = 1
        self.width = self.dim = int(model.config.hidden_size)

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """All blocks, in order."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> tuple[Tensor, Context]:
        """Normalised pixels [B, 3, H, W] -> tokens [B, N, D] that enter the first block, and the context of
        this call, such as rotary positions, which depend on the grid. H, W: multiples of `patch`."""

    def embed_patches(self, pixels: Tensor, patches: Tensor, normalise: Normalise) -> tuple[Tensor, Context]:
        """`embed`, of some patches alone: tokens [B, prefix + m, D], and the context. A family with a shorter way than
        `embed` takes it.

        Args:
            pixels: not normalised, [B, 3, H, W].
            patches: int64 [B, m], their places in the grid.
            normalise: of any shape [..., 3, height, width].
        """
        tokens, context = self.embed(normalise(pixels))
        return only(tokens, patches, self.prefix_tokens), context

    def block(self, i: int, x: Tensor, context: Context) -> Tensor:
        """Tokens [B, N, D] through the block with this index, in the context that `embed` gave."""
        after: Tensor | tuple[Tensor, ...] = self.blocks[i](x, **context)
        return after[0] if isinstance(after, tuple) else after

    def last_block(self, i: int = -1) -> LastBlock | None:  # noqa: ARG002
        """A block, counted from the end, with the read-out, its tensors those of the model.

        None for a family whose last block is not taken apart: its encoders then do without MaO, heat maps
        and Q-Perturbation, and read through `norm` and `read`.
        """
        return None

    def norm(self, x: Tensor) -> Tensor:
        """What patch tokens go through before they are averaged, [..., D] -> [..., D]. Used where
        `last_block` is None."""
        return x

    def read(self, x: Tensor) -> Tensor:
        """Tokens after all blocks, [B, N, D] -> the model's own descriptor, [B, dim]. Used where `last_block`
        is None."""
        raise NotImplementedError

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model, in place."""
        self.model = self.model.to(device, dtype)


def only(tokens: Tensor, patches: Tensor, prefix: int) -> Tensor:
    """Of tokens [B, N, D], the `prefix` first and, of those after them, `patches`, int64 [B, m]."""
    places = patches[..., None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, places)], 1)


def pixels_of(images: Tensor, patches: Tensor, side: int) -> Tensor:
    """The pixels of some patches, int64 [B, m], of images [B, 3, H, W]: [B, m, 3, side, side]."""
    height, width = images.shape[2] // side, images.shape[3] // side
    cells = images.unflatten(3, (width, side)).unflatten(2, (height, side)).permute(0, 2, 4, 1, 3, 5)
    each = torch.arange(len(images), device=images.device)[:, None]
    some: Tensor = cells[each, patches // width, patches % width]
    return some
