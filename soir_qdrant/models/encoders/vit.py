"""A vision transformer whose last block is exposed: DINOv2, CLIP and SigLIP vision towers, in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.compatibility import fitting
from soir_qdrant.models.encoders.lora import Adapter
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.models.weights import EMBEDDED, Weights, quiet, resolve
from soir_qdrant.types import Encoding

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

LAYERS = 4  # blocks whose patch tokens describe an object


@dataclass(frozen=True, slots=True)
class Family:
    """How one `transformers` architecture is taken apart.

    embed: pixels [B, 3, H, W] -> tokens [B, N, D] that enter the first block, position table interpolated.
    blocks: the list of blocks. last_block: holder of one of them (counted from the end) and the read-out.
    normalisation: mean and standard deviation of the pixels. options: what each block is called with.
    """

    loader: str
    embed: Callable[[Any, Tensor], Tensor]
    blocks: Callable[[Any], nn.ModuleList]
    last_block: Callable[[Any, int], LastBlock]
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]]
    options: dict[str, Any]


def _embed_clip(model: Any, pixels: Tensor) -> Tensor:
    vision = getattr(model, "vision_model", model)
    embedded: Tensor = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    return embedded


def _embed_siglip(model: Any, pixels: Tensor) -> Tensor:
    vision = getattr(model, "vision_model", model)
    embedded: Tensor = vision.embeddings(pixels, interpolate_pos_encoding=True)
    return embedded


FAMILIES = {
    "dinov2": Family(
        "Dinov2Model",
        lambda m, x: m.embeddings(x),
        lambda m: m.encoder.layer,
        LastBlock.from_dinov2,
        IMAGENET,
        {},
    ),
    "clip": Family(
        "CLIPVisionModelWithProjection",
        _embed_clip,
        lambda m: getattr(m, "vision_model", m).encoder.layers,
        LastBlock.from_clip,
        OPENAI,
        {"attention_mask": None},
    ),
    "siglip": Family(
        "SiglipVisionModel",
        _embed_siglip,
        lambda m: getattr(m, "vision_model", m).encoder.layers,
        LastBlock.from_siglip,
        HALF,
        {"attention_mask": None},
    ),
}


class ViTEncoder:
    """Crops to descriptors and last-block tokens.

    weights: "embedded", a folder or a hub name. input_size: side of the square crops in pixels; a multiple
    of the patch size. device, dtype: "auto" takes the first GPU and its bfloat16, else the CPU (see
    `pick_dtype`). blocks: how many of the last ones are exposed to the refinement. adapter: see
    `EncoderSettings`. The read-out (last block, final LayerNorm) always runs in float32.
    Raises WeightsError where the weights cannot be loaded, ConfigError for an input size, dtype or adapter
    that does not fit.
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
    ) -> None:
        found = resolve(weights)
        model, family = _load(found)
        added = fitting(adapter, "encoder.adapter", Adapter.load, found.sha256)
        self.adapter = added
        if added:
            added.add_to(lambda index: family.last_block(model, index))
        self.patch = int(model.config.patch_size)
        if input_size < self.patch or input_size % self.patch:
            raise ConfigError(f"input_size {input_size}: give a multiple of the patch size, {self.patch}")
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        if not 1 <= blocks < len(family.blocks(model)):
            raise ConfigError(f"blocks {blocks}: this encoder has {len(family.blocks(model))}")
        self.last_blocks = tuple(
            family.last_block(model, i).to(self.device, torch.float32) for i in range(-blocks, 0)
        )
        self.last_block = self.last_blocks[-1]
        self.family = family
        self.blocks = list(family.blocks(model))[:-1]
        self.model = model.to(self.device, self.dtype)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in family.normalisation)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.batch = batch
        self.name = found.origin.name
        self.input_size = input_size
        self.dim = self.last_block.dim_out
        made_of = found.sha256[:12] + (f"+{added.name}" if added else "")
        self.fingerprint = f"{found.origin.name}@{made_of}/{input_size}px"

    def encode(self, crops: NDArray[np.uint8], masks: NDArray[np.float32] | None = None) -> Encoding:
        """crops: uint8 [B, S, S, 3], RGB, S = input_size; masks: float32 [B, S, S], 0..1. See `Encoding`."""
        return self.encode_both(crops, masks)[0]

    def encode_both(
        self, crops: NDArray[np.uint8], masks: NDArray[np.float32] | None = None, *, skip: int = 0
    ) -> tuple[Encoding, Tensor]:
        """`encode` and `tokens` in one pass, the tokens in half precision."""
        size = self.input_size
        if crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise ConfigError(f"crops of shape {crops.shape}: expected [B, {size}, {size}, 3]")
        masks = np.ones(crops.shape[:3], np.float32) if masks is None else masks
        if masks.shape != crops.shape[:3]:
            raise ConfigError(f"masks of shape {masks.shape}: expected {crops.shape[:3]}")
        if not len(crops):
            count = (size // self.patch) ** 2 + self.last_block.has_cls
            nothing = torch.zeros(0, count, self.last_block.dim, device=self.device)
            empty = np.zeros((0, LAYERS, self.last_block.dim), np.float32)
            return Encoding(np.zeros((0, self.dim), np.float32), empty, nothing), nothing.half()
        parts = [
            self._encode(crops[i : i + self.batch], masks[i : i + self.batch], skip)
            for i in range(0, len(crops), self.batch)
        ]
        descriptor, layers, tokens, earlier = (torch.cat(column) for column in zip(*parts, strict=True))
        return Encoding(descriptor.cpu().numpy(), layers.cpu().numpy(), tokens), earlier

    def tokens(self, images: NDArray[np.uint8], *, skip: int = 0) -> Tensor:
        """images: uint8 [B, H, W, 3], H and W multiples of the patch size (they need not be square).

        Float32 tokens [B, N, D] that enter the last block (`skip` blocks earlier, where asked).
        """
        return self.trunk(images, skip=skip)[-1]

    def _encode(
        self, crops: NDArray[np.uint8], masks: NDArray[np.float32], skip: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        block = self.last_block
        with torch.inference_mode():
            trunk = self.trunk(crops)
            last = block.forward(trunk[-1])
            weights = patch_weights(torch.from_numpy(masks).to(self.device), last.shape[1] - block.has_cls)
            means = [block.masked_mean(x, weights) for x in [*trunk[1 - LAYERS :], last]]
            earlier = trunk[max(len(trunk) - 1 - skip, 0)].half()
            return block.read(last), torch.stack(means, 1), trunk[-len(self.last_blocks)], earlier

    @torch.inference_mode()
    def trunk(self, images: NDArray[np.uint8], *, skip: int = 0) -> list[Tensor]:
        """Tokens after each block but the last and `skip` more (one runs at least), float32, oldest first.

        images: uint8 [B, H, W, 3], sides multiples of the patch size. [B, N, D] each.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        x = self.family.embed(self.model, (pixels * self._scale + self._shift).to(self.dtype))
        found = []
        for block in self.blocks[: max(len(self.blocks) - skip, 1)]:
            x = block(x, **self.family.options)
            x = x[0] if isinstance(x, tuple) else x
            found.append(x.float())
        return found


def patch_weights(masks: Tensor, patches: int) -> Tensor:
    """Masks [B, S, S], 0..1, as weights of the patches [B, n]: area share, summing to one per crop.

    patches: n, a square number. A mask without area weighs all patches alike.
    """
    share = F.adaptive_avg_pool2d(masks[:, None].float(), round(patches**0.5)).flatten(1)
    share = torch.where(share.sum(1, keepdim=True) > 1e-6, share, torch.ones_like(share))
    return share / share.sum(1, keepdim=True)


def pick_device(device: str) -> torch.device:
    """ "auto": the first CUDA device, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto": bfloat16 on a GPU that has it and on a CPU with bfloat16 instructions, else float32."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in known:
        return known[dtype]
    if dtype != "auto":
        raise ConfigError(f"dtype {dtype!r}: choose one of auto, {', '.join(known)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def _load(found: Weights) -> tuple[Any, Family]:
    try:
        with quiet() as transformers:
            config = transformers.AutoConfig.from_pretrained(found.path, local_files_only=found.local)
            kind = config.model_type.removesuffix("_vision_model")
            if kind not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise WeightsError(f"{found.path}: a {config.model_type} model; known are {known}")
            loader = getattr(transformers, FAMILIES[kind].loader)
            model = loader.from_pretrained(found.path, local_files_only=found.local)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{found.path}: the weights could not be loaded ({str(error).splitlines()[0]}). Offline, give a "
            "folder that holds them, or the weights 'embedded'"
        ) from error
    return model.eval().requires_grad_(False), FAMILIES[kind]
