"""What describes one object: rows taken from the last block's tokens, under the object's mask."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.refine.block import LastBlock
from soir_qdrant.refine.pooling import normalize
from soir_qdrant.types import Encoding, Vector

Feature = Literal["cls", "cls-1", "patches", "patches-1"]
CHUNK = 64  # crops whose tokens pass the last block together


def features(
    encoding: Encoding, masks: NDArray[np.float32], names: tuple[Feature, ...], block: LastBlock
) -> Vector:
    """Features side by side, float32 [K, sum of dims]; each part has unit length.

    encoding: of K crops. masks: float32 [K, S, S], 0..1, the share of each crop's pixel inside the object.
    names: "cls", the encoder's descriptor; "patches", the mean of the patch tokens weighted by the mask,
    after the last block and the final LayerNorm; "cls-1" and "patches-1", the same of the tokens that
    enter the last block. Raises ConfigError where the encoder has no CLS token to give.
    """
    if "cls-1" in names and not block.has_cls:
        raise ConfigError(
            "feature 'cls-1': this encoder has no CLS token; choose 'cls', 'patches', 'patches-1'"
        )
    rows = [
        _chunk(encoding, masks, names, block, slice(start, start + CHUNK))
        for start in range(0, len(masks), CHUNK)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def _chunk(
    encoding: Encoding, masks: NDArray[np.float32], names: tuple[Feature, ...], block: LastBlock, part: slice
) -> Vector:
    found: dict[str, Vector] = {"cls": encoding.descriptor[part]}
    with torch.inference_mode():
        entering = torch.as_tensor(encoding.tokens[part], dtype=torch.float32, device=block.device)
        weights = patch_weights(
            torch.as_tensor(masks[part], device=block.device), entering.shape[1] - block.has_cls
        )
        for suffix in {name.partition("-")[2] for name in names if name != "cls"}:
            normed = block.norm(entering if suffix else block.forward(entering))
            dash = f"-{suffix}" if suffix else ""
            found[f"patches{dash}"] = (
                torch.einsum("bn,bnd->bd", weights, normed[:, int(block.has_cls) :]).cpu().numpy()
            )
            if suffix:
                found["cls-1"] = normed[:, 0].cpu().numpy()
    return np.concatenate([normalize(found[name]) for name in names], axis=1)


def patch_weights(masks: torch.Tensor, patches: int) -> torch.Tensor:
    """Masks [B, S, S], 0..1, as weights of the patches [B, n]: area share, summing to one per crop.

    patches: n, a square number. A mask without area weighs all patches alike.
    """
    side = round(patches**0.5)
    share = F.adaptive_avg_pool2d(masks[:, None].float(), side).flatten(1)
    share = torch.where(share.sum(1, keepdim=True) > 1e-6, share, torch.ones_like(share))
    return share / share.sum(1, keepdim=True)
