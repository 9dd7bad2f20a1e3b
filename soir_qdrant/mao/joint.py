"""The joint tokens of scenes, as the settings want them refined."""

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


def joint_tokens(
    encoding: Encoding,
    masks: NDArray[np.float32],
    scene_of: NDArray[np.int64],
    blocks: Sequence[LastBlock],
    settings: VectorSettings,
    dtype: str,
) -> Vector:
    """The joint token of each scene in the space of the descriptor, float32 [S, D]. See `refine`.

    Args:
        encoding: of the K crops of all scenes, with their tokens.
        masks: float32 [K, S, S], 0..1.
        scene_of: int [K], 0..S-1, ascending.
        blocks: the encoder's last ones that are exposed, in order.
        settings: iterations, lr, alpha, and how many blocks.
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
    wide = pick_dtype(dtype, device) == torch.float32
    refined = refine(
        blocks,
        torch.as_tensor(encoding.tokens, device=device),
        torch.as_tensor(encoding.descriptor, device=device),
        torch.as_tensor(masks, device=device),
        torch.as_tensor(scene_of, device=device),
        MaoSettings(
            settings.iterations, settings.lr, settings.alpha, products="float32" if wide else "bfloat16"
        ),
    )
    rows: Vector = refined.cpu().numpy()
    return rows
