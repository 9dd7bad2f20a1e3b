"""The refined tokens of scenes, or of their crops, as the settings want them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from soir_qdrant.config import VectorSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.mao.refine import MaoSettings, refine
from soir_qdrant.models.devices import pick_dtype
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.types import Encoding, Vector


def refined_tokens(
    encoding: Encoding,
    masks: NDArray[np.float32],
    scene_of: NDArray[np.int64],
    blocks: Sequence[LastBlock],
    settings: VectorSettings,
    dtype: str,
) -> Vector:
    """The token of each scene, float32 [S, D], or of each crop, [K, D], in the space of the descriptor. See `refine`.

    Args:
        encoding: of the K crops of all scenes, with their tokens.
        masks: float32 [K, S, S], 0..1.
        scene_of: int [K], 0..S-1, ascending.
        blocks: the encoder's last ones that are exposed, in order.
        settings: those of MaO, and how many blocks.
        dtype: of the encoder's settings; decides that of the large products.

    Raises:
        ConfigError: where tokens or blocks are missing, or the features are not the descriptor alone.
    """
    if encoding.tokens is None:
        raise ConfigError("pooling 'mao' reads the tokens: encode the crops with with_tokens=True")
    if settings.features != ("cls",):
        raise ConfigError("pooling 'mao' refines the descriptor: set vector.features to ('cls',)")
    if len(blocks) != settings.blocks:
        raise ConfigError(f"vector.blocks {settings.blocks}: this encoder exposes {len(blocks)}")
    device = blocks[-1].device
    refined = refine(
        blocks,
        torch.as_tensor(encoding.tokens, device=device),
        torch.as_tensor(encoding.descriptor, device=device),
        torch.as_tensor(masks, device=device),
        torch.as_tensor(scene_of, device=device),
        mao_settings(settings, pick_dtype(dtype, device)),
    )
    rows: Vector = refined.cpu().numpy()
    return rows


def mao_settings(settings: VectorSettings, dtype: torch.dtype = torch.float32) -> MaoSettings:
    """Of the refinement, with large products of this dtype."""
    return MaoSettings(
        settings.iterations,
        settings.lr,
        settings.alpha,
        settings.weight_decay,
        settings.upsample,
        settings.normalise,
        settings.token,
        products="float32" if dtype == torch.float32 else "bfloat16",
    )
