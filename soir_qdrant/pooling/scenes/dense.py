"""Dense: a vector for each patch, in the space of the model's own descriptor (Dense-CLIP of arXiv 2309.14999)."""

from __future__ import annotations

import numpy as np
import torch

from soir_qdrant.contracts import Encoder, SceneEncoder
from soir_qdrant.kind_settings import DenseSettings
from soir_qdrant.kinds import Parts
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.scenes.grids import Tiles, look, placed
from soir_qdrant.pooling.scenes.source import encoder_of
from soir_qdrant.types import RGB, Regions, Vector


class DenseEncoder(SceneEncoder):
    """Every patch of an image by itself.

    Args:
        encoder: whose patches.
        settings: see `DenseSettings`.
    """

    name = "dense"
    fingerprint = ""

    def __init__(self, encoder: Encoder, settings: DenseSettings) -> None:
        self.encoder, self.settings = encoder, settings

    def regions(self, images: list[RGB]) -> list[Regions]:
        """See `SceneEncoder`: as many regions as patches, each its own cell, scores 1."""
        grids, whole = self.grids(images)
        regions = []
        for image, grid, own in zip(images, grids, whole, strict=True):
            h, w, _ = grid.shape
            cells = np.eye(h * w, dtype=np.bool_).reshape(-1, h, w)
            objects = tuple(placed(cell, image.shape, 1.0) for cell in cells)
            regions.append(Regions(grid.reshape(h * w, -1), objects, own))
        return regions

    @torch.inference_mode()
    def grids(self, images: list[RGB]) -> tuple[Vector, Vector]:
        """What each patch says by itself, float32 [B, h, w, D], unit rows, and `Regions.whole` of each image."""
        tiles = look(self.encoder, images, self.settings.tiles)
        return dense_grid(tiles, self.settings.attention), tiles.whole


def dense_grid(tiles: Tiles, attention: str) -> Vector:
    """The dense vectors of images, float32 [B, h, w, D], unit rows. attention: see `DenseSettings`."""
    block = tiles.block
    x2 = block.own(tiles.tokens) if attention == "own" else block.forward(tiles.tokens)
    return normalize(tiles.grid(block.read_patches(x2)).float().cpu().numpy())


def make(settings: DenseSettings, parts: Parts) -> DenseEncoder:
    """The kind `dense`."""
    return DenseEncoder(encoder_of(parts), settings)
