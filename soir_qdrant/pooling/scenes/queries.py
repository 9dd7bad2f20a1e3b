"""Sum: trained queries in the place of the one that the model pools with (SUM-CLIP of arXiv 2412.18806)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.contracts import Encoder, SceneEncoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.kind_settings import SumSettings
from soir_qdrant.kinds import Parts
from soir_qdrant.models.cache import digest_of
from soir_qdrant.models.heads.queries import COMMAND, QueryHead
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.scenes.grids import look, peak, placed
from soir_qdrant.pooling.scenes.source import encoder_of
from soir_qdrant.types import RGB, Regions, SceneObject


class SumEncoder(SceneEncoder):
    """k trained queries, each read by the model's own frozen pooling: one batch, no clustering.

    Args:
        encoder: whose tokens.
        head: the queries.
        tiles: see `SceneSettings`.
        fingerprint: of the head.
    """

    name = "sum"

    def __init__(self, encoder: Encoder, head: QueryHead, *, tiles: int = 1, fingerprint: str = "") -> None:
        self.encoder, self.head, self.tiles, self.fingerprint = encoder, head, tiles, fingerprint

    @torch.inference_mode()
    def regions(self, images: list[RGB]) -> list[Regions]:
        """See `SceneEncoder`: a region for each query of each tile, its box where at least half of its largest
        attention lies, its score how much of its attention that is."""
        tiles = look(self.encoder, images, self.tiles)
        rows, maps = read(self.head, tiles.tokens, tiles.block)
        heat = in_whole_images(maps, self.tiles).cpu().numpy()
        vectors = normalize(rows.reshape(len(images), -1, rows.shape[2]).cpu().numpy())
        return [
            Regions(vectors[i], tuple(_peak(one, image.shape) for one in heat[i]), tiles.whole[i])
            for i, image in enumerate(images)
        ]


def in_whole_images(maps: Tensor, tiles: int) -> Tensor:
    """Maps of tiles, [B * t * t, k, g * g], in the frames of their images, zero outside of their tile:
    [B, t * t * k, t * g, t * g]."""
    side, eye = round(maps.shape[2] ** 0.5), torch.eye(tiles).to(maps)
    own = maps.reshape(-1, tiles, tiles, maps.shape[1], side, side)
    placed_maps = torch.einsum("byxkij,yr,xc->byxkricj", own, eye, eye)
    return placed_maps.reshape(len(own), -1, tiles * side, tiles * side)


def _peak(heat: NDArray[np.floating], shape: tuple[int, ...]) -> SceneObject:
    cells = peak(heat)
    return placed(cells, shape, float(heat[cells].sum() / max(heat.sum(), 1e-9)))


def read(head: QueryHead, tokens: Tensor, block: LastBlock) -> tuple[Tensor, Tensor]:
    """Descriptors of the queries, [B, k, D_out], and their attention to the patches, [B, k, M].

    Args:
        head: the queries.
        tokens: [B, N, D], that enter the last block.
        block: the last one; a pooling head's probe, or the CLS token, is where the queries begin.
    """
    start = tokens[:, :1] if block.head is None else block.probe.expand(len(tokens), -1, -1)
    return block.attend(head(tokens, start), tokens)


def make(settings: SumSettings, parts: Parts) -> SumEncoder:
    """The kind `sum`."""
    encoder = encoder_of(parts)
    if settings.head is None:
        raise ConfigError(f"scene.head: name the file of a head, made by `{COMMAND}`")
    file = Path(settings.head).expanduser()
    head, fitted_for = QueryHead.load(file)
    wanted = trained_for(encoder, settings.tiles)
    if fitted_for != wanted:
        raise ConfigError(
            f"scene.head {settings.head!r} was trained for {fitted_for!r}, and the settings ask for {wanted!r}: "
            f"train one with `{COMMAND}`"
        )
    return SumEncoder(
        encoder, head.to(encoder.last_block.device), tiles=settings.tiles, fingerprint=digest_of([file])[:12]
    )


def trained_for(encoder: Encoder, tiles: int) -> str:
    """What a head of queries has to be trained for."""
    return f"{encoder.fingerprint} {tiles}x{tiles}"
