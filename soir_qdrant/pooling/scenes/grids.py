"""Whole images to grids of tokens, and maps on those grids back to boxes and masks. Shared by all scene encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.contracts import Encoder
from soir_qdrant.geometry.masks import extent
from soir_qdrant.geometry.resize import resized
from soir_qdrant.models.last_block import LastBlock, entering_last
from soir_qdrant.types import RGB, SceneObject, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tokens of images, tile by tile. tokens: [B * t * t, N, D], that enter the last block. whole: float32
    [B, D_out], the model's own descriptor of each image, of unit length. tiles: t. block: the last one."""

    tokens: Tensor
    whole: Vector
    tiles: int
    block: LastBlock

    def grid(self, rows: Tensor) -> Tensor:
        """What was said of each patch, [B * t * t, M, C] -> the grid of each image, [B, t * g, t * g, C]."""
        t, side = self.tiles, round(rows.shape[1] ** 0.5)
        x = rows.reshape(-1, t, t, side, side, rows.shape[2])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, t * side, t * side, rows.shape[2])


def look(encoder: Encoder, images: Sequence[RGB], tiles: int) -> Tiles:
    """Encode whole images, each squeezed to a square and, with more than one tile, cut up as well.

    Args:
        encoder: with its last block taken apart, here or served.
        images: uint8 [H, W, 3] each.
        tiles: along each side.

    Raises:
        ConfigError: an encoder without its last block.
    """
    size, last = encoder.input_size, encoder.last_block
    squares = np.stack([_square(image, size * tiles) for image in images])
    cut = (
        squares.reshape(-1, tiles, size, tiles, size, 3)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(-1, size, size, 3)
    )
    encoding = encoder.encode(np.ascontiguousarray(cut), with_tokens=True)
    whole = encoding.descriptor
    if tiles > 1:
        whole = encoder.encode(np.stack([_square(image, size) for image in images])).descriptor
    tokens = entering_last(
        encoder.last_blocks, torch.as_tensor(encoding.tokens).to(last.device, torch.float32)
    )
    unit = whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)
    return Tiles(tokens, unit, tiles, last)


def _square(image: RGB, size: int) -> RGB:
    """The whole image as a square of `size` pixels, its shape not kept."""
    return resized(image, size, size, cv2.INTER_CUBIC)


def placed(cells: NDArray[np.bool_], shape: tuple[int, ...], score: float) -> SceneObject:
    """Cells of a grid as an object of the image: its box, and its mask in the frame of the box.

    Args:
        cells: bool [h, w], at least one of them true.
        shape: H, W, ... of the image.
        score: 0..1.
    """
    (height, width), (h, w) = shape[:2], cells.shape
    x0, y0, x1, y1 = extent(cells) or (0, 0, w, h)
    top, bottom = int(y0 * height / h), int(np.ceil(y1 * height / h))
    left, right = int(x0 * width / w), int(np.ceil(x1 * width / w))
    bottom, right = min(max(bottom, top + 1), height), min(max(right, left + 1), width)
    y = np.minimum((np.arange(top, bottom) + 0.5) * h / height, h - 1).astype(int)
    x = np.minimum((np.arange(left, right) + 0.5) * w / width, w - 1).astype(int)
    mask = cells[y[:, None], x]
    box = (float(left), float(top), float(right), float(bottom))
    return SceneObject(box, mask if mask.any() else None, score=float(np.clip(score, 0, 1)))


def peak(heat: NDArray[np.floating], share: float = 0.5) -> NDArray[np.bool_]:
    """The connected cells around the largest of a map [h, w] that have at least `share` of it, bool [h, w]."""
    above = heat >= share * heat.max()
    _, labels = cv2.connectedComponents(above.astype(np.uint8), connectivity=4)
    best = int(labels[np.unravel_index(int(np.argmax(heat)), heat.shape)])
    return np.asarray((labels == best) & above, np.bool_)
