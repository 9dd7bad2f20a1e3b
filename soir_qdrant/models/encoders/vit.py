"""Crops to descriptors, images to features: a vision transformer of any family, in torch."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.config import VitSettings
from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.masks import checked_masks
from soir_qdrant.geometry.patches import Batch, batches, patch_weights
from soir_qdrant.kinds import Parts
from soir_qdrant.models.compatibility import fitting
from soir_qdrant.models.devices import pick_device, pick_dtype
from soir_qdrant.models.encoders.backbone import Backbone, Context
from soir_qdrant.models.encoders.families import load_backbone
from soir_qdrant.models.encoders.lora import Adapter
from soir_qdrant.models.heads.texture import TextureHead
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.models.tokens import LAYER
from soir_qdrant.models.weights import EMBEDDED, resolve
from soir_qdrant.types import Encoding, Vector

LAYERS = 4  # blocks whose patch tokens describe an object


class ViTEncoder(Encoder):
    """A vision transformer of `transformers`, run here.

    Where the family takes the last block apart, the final LayerNorm runs in float32, and so does that block where
    tokens are read, which the refinement runs through it again.

    Args:
        weights: "embedded", a folder or a hub name.
        input_size: side of the square crops in pixels; a multiple of the patch size.
        device: "auto" takes the first GPU, else the CPU.
        dtype: "auto" takes bfloat16 where the device has it; see `pick_dtype`.
        batch: crops that run at once.
        blocks: how many of the last ones are exposed to the refinement.
        adapter, texture: see `VitSettings`.
        object_only: whether `encode` leaves out the patches that show nothing of the object (unless it is
            asked for tokens, which are of all patches).

    Raises:
        WeightsError: the weights cannot be loaded, or are of a family that is not known.
        ConfigError: an input size, dtype, number of blocks or adapter that does not fit.
    """

    def __init__(
        self,
        weights: str = EMBEDDED,
        *,
        input_size: int = 224,
        device: str = "auto",
        dtype: str = "auto",
        batch: int = 32,
        blocks: int = 1,
        adapter: str | None = "shipped",
        texture: str | None = None,
        object_only: bool = False,
    ) -> None:
        self.weights = resolve(weights)
        self.backbone = load_backbone(self.weights)
        self.adapter = fitting(adapter, "encoder.adapter", Adapter.load, self.weights.sha256)
        if self.adapter:
            self.adapter.add_to(self.backbone.last_block)
        self.patch, self.prefix_tokens = self.backbone.patch, self.backbone.prefix_tokens
        self.dim, self.width, self.depth = self.backbone.dim, self.backbone.width, len(self.backbone.blocks)
        if input_size < self.patch or input_size % self.patch:
            raise ConfigError(f"input_size {input_size}: give a multiple of the patch size, {self.patch}")
        if not 1 <= blocks < self.depth:
            raise ConfigError(f"blocks {blocks}: this encoder has {self.depth}")
        if object_only and not self.backbone.positions_in_tokens:
            raise ConfigError(
                'crop.background "drop": this encoder takes positions from the whole grid; set it to "grey"'
            )
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        exposed = [self.backbone.last_block(i) for i in range(-blocks, 0)]
        self._last_blocks = tuple(block.to(self.device, torch.float32) for block in exposed if block)
        self.backbone.to(self.device, self.dtype)
        self._own = _ModelsOwn(self.backbone, self.dtype)
        self._readout = self._last_blocks[-1] if self._last_blocks else self._own
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in self.backbone.normalisation
        )
        head = fitting(texture, "encoder.texture", TextureHead.load, self.weights.sha256, part="texture")
        content = self.weights.sha256[:12] + (f"~{head.name}" if head else "")
        self.texture_head = head and head.to(self.device, self.dtype)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.batch, self.object_only = batch, object_only
        self.name = self.weights.origin.name
        self.input_size = input_size
        content += f"+{self.adapter.name}" if self.adapter else ""
        self.fingerprint = f"{self.weights.origin.name}@{content}/{input_size}px"

    @property
    def last_blocks(self) -> tuple[LastBlock, ...]:
        """In float32, on the encoder's device."""
        return self._last_blocks

    @property
    def reads_patches(self) -> bool:  # type: ignore[override]  # they are projected by the last block's norm
        """Where the last block is taken apart."""
        return bool(self._last_blocks)

    def encode(
        self,
        crops: NDArray[np.uint8],
        masks: NDArray[np.float32] | None = None,
        *,
        with_tokens: bool = False,
        with_patches: bool = False,
    ) -> Encoding:
        """See `Encoder`: tokens and patches are read in the same pass."""
        masks = checked_masks(crops, masks, self.input_size)
        if not len(crops):
            return self._of_nothing(with_tokens, with_patches)
        parts = self.batches(masks, all_patches=with_tokens)
        answers = [self.encode_batch(crops[part.rows], part, with_tokens, with_patches) for part in parts]
        order = np.argsort(np.concatenate([part.rows for part in parts]))
        tokens = [answer[2] for answer in answers if answer[2] is not None]
        patches = [answer[3] for answer in answers if answer[3] is not None]
        return Encoding(
            _in_order([answer[0] for answer in answers], order).cpu().numpy(),
            _in_order([answer[1] for answer in answers], order).cpu().numpy(),
            _in_order(tokens, order) if tokens else None,
            _in_order(patches, order).cpu().numpy() if patches else None,
        )

    def batches(self, masks: NDArray[np.float32], *, all_patches: bool = False) -> list[Batch]:
        """The batches in which crops are encoded. masks: float32 [B, S, S], 0..1."""
        weights = patch_weights(masks, self.input_size // self.patch)
        return [*batches(weights, self.batch, object_only=self.object_only and not all_patches)]

    def features(self, images: NDArray[np.uint8], layers: Sequence[int]) -> Vector:
        """See `Encoder`."""
        wanted = [max(self.depth + layer, 0) for layer in layers]
        end = min(max(wanted) + 1, self.depth - 1)
        after, context = self._run(images, end, {end - 1, *wanted})
        if self.depth - 1 in wanted:
            after[self.depth - 1] = self._own.forward(after[end - 1], context)
        height, width = images.shape[1] // self.patch, images.shape[2] // self.patch
        grids = [after[i][:, self.prefix_tokens :].unflatten(1, (height, width)) for i in wanted]
        grid: Vector = torch.cat(grids, -1).cpu().numpy()
        return grid

    @property
    def texture_dim(self) -> int:
        """See `Encoder`."""
        return self.texture_head.length if self.texture_head else super().texture_dim

    @torch.inference_mode()
    def texture(self, surfaces: NDArray[np.uint8], weights: NDArray[np.float32]) -> Vector:
        """See `Encoder`."""
        if self.texture_head is None:
            return super().texture(surfaces, weights)
        tokens = [x.to(self.dtype) for x in self.texture_tokens(surfaces)]
        shares = torch.from_numpy(weights).to(self.device, self.dtype)
        rows: Vector = self.texture_head(tokens, shares).cpu().numpy()
        return rows

    def texture_tokens(self, surfaces: NDArray[np.uint8]) -> list[Tensor]:
        """What a head of textures reads, float32 [B, P, D] each. surfaces: see `texture`."""
        read = [max(self.depth + layer, 0) for layer in TextureHead.layers]
        after, _ = self._run(surfaces, max(read) + 1, {*read})
        return [after[i][:, self.prefix_tokens :] for i in read]

    def trunk(
        self, images: NDArray[np.uint8], *, skip: int = 0, patches: NDArray[np.int64] | None = None
    ) -> list[Tensor]:
        """Tokens after each block but the last and `skip` more (one runs at least), oldest first.

        Args:
            images: uint8 [B, H, W, 3], sides multiples of the patch size.
            skip: blocks before the last that are left out.
            patches: int64 [B, m], those that are looked at; None is all.

        Returns:
            float32 [B, N, D] each.
        """
        count = max(self.depth - 1 - skip, 1)
        return [*self._run(images, count, range(count), patches)[0].values()]

    def _of_nothing(self, with_tokens: bool, with_patches: bool) -> Encoding:
        side = self.input_size // self.patch
        rows = min(LAYERS, self.depth)
        return Encoding(
            np.zeros((0, self.dim), np.float32),
            np.zeros((0, rows, self.width), np.float32),
            torch.zeros(0, side**2 + self.prefix_tokens, self.width) if with_tokens else None,
            np.zeros((0, side, side, self.width), np.float16) if with_patches else None,
        )

    @torch.inference_mode()
    def encode_batch(
        self, crops: NDArray[np.uint8], batch: Batch, with_tokens: bool, with_patches: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Descriptor, layers, tokens and patches, as in `Encoding`, of the crops of one batch."""
        end, early = self.depth - 1, max(self.depth + LAYER, 0)
        exposed = self._last_blocks
        entering = end - max(len(exposed), 1)  # the block whose tokens enter the exposed ones
        read = range(max(end + 1 - LAYERS, 0), end)
        after, context = self._run(crops, end, {*read, entering, early}, batch.patches)
        exact = exposed and with_tokens  # the refinement goes through this block again
        last = exposed[-1].forward(after[end - 1]) if exact else self._own.forward(after[end - 1], context)
        weights = torch.from_numpy(batch.weights).to(self.device)
        means = [
            torch.einsum("bm,bmd->bd", weights, self._readout.norm(x)[:, self.prefix_tokens :])
            for x in [*(after[i] for i in read), last]
        ]
        tokens = after[entering] if with_tokens else None
        patches = None
        if with_patches:
            patches = self._on_grid(after[early][:, self.prefix_tokens :].half(), batch.patches)
        return self._readout.read(last), torch.stack(means, 1), tokens, patches

    def _on_grid(self, rows: Tensor, patches: NDArray[np.int64]) -> Tensor:
        """Rows of patches [B, m, D] at their places, [B, side, side, D]; zeros where none was looked at."""
        side = self.input_size // self.patch
        places = torch.from_numpy(patches).to(rows.device)[..., None].expand(-1, -1, rows.shape[2])
        grid = rows.new_zeros(len(rows), side**2, rows.shape[2]).scatter(1, places, rows)
        return grid.view(len(rows), side, side, -1)

    @torch.inference_mode()
    def _run(
        self,
        images: NDArray[np.uint8],
        count: int,
        read: Container[int],
        patches: NDArray[np.int64] | None = None,
    ) -> tuple[dict[int, Tensor], Context]:
        """Through the first `count` blocks: tokens after those that are read, float32 [B, N, D], and the context of the
        call."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        x, context = self._embed(pixels, patches)
        after = {}
        for i in range(count):
            x = self.backbone.block(i, x, context)
            if i in read:
                after[i] = x.float()
        return after, context

    def _embed(self, pixels: Tensor, patches: NDArray[np.int64] | None) -> tuple[Tensor, Context]:
        """Tokens that enter the first block, of these patches alone, and the context. pixels: uint8 [B, 3, H, W]."""
        grid = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        if patches is None or patches.shape[1] == grid[0] * grid[1]:
            return self.backbone.embed(self._normalised(pixels))
        return self.backbone.embed_patches(
            pixels, torch.from_numpy(patches).to(self.device), self._normalised
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels * self._scale + self._shift).to(self.dtype)


def make(settings: VitSettings, parts: Parts) -> ViTEncoder:
    """The kind `vit`."""
    return ViTEncoder(
        settings.weights,
        input_size=settings.input_size,
        device=settings.device,
        dtype=settings.dtype,
        batch=settings.batch,
        blocks=parts.settings.vector.blocks,
        adapter=settings.adapter,
        texture=settings.texture if "texture" in parts.settings.vector.features else None,
        object_only=parts.settings.object_only,
    )


def _in_order(parts: Sequence[Tensor], order: NDArray[np.int64]) -> Tensor:
    """One output of all batches, in the order of the crops."""
    together = torch.cat([*parts])
    return together.index_select(0, torch.from_numpy(order).to(together.device))


class _ModelsOwn:
    """The last block and the read-out as the model runs them: on any grid, and where they are not taken
    apart."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        self.backbone, self.dtype = backbone, dtype

    @torch.inference_mode()
    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.backbone.block(len(self.backbone.blocks) - 1, x.to(self.dtype), context).float()

    def norm(self, x: Tensor) -> Tensor:
        return self.backbone.norm(x.to(self.dtype)).float()

    def read(self, x: Tensor) -> Tensor:
        return self.backbone.read(x.to(self.dtype)).float()
