"""A picture's tokens from overlapping tiles.

Attention costs the square of the tokens that see one another, and a ViT knows best the grid that it learnt
its positions on: tiles no larger than that are faster than the whole picture, and tell more
(docs/detector.md).
"""

from __future__ import annotations

import numpy as np

from soir_qdrant.types import RGB
from soir_qdrant.vision.boxes import Floats
from soir_qdrant.vision.embedded import TokenSource, gridded, tokens_of

LARGEST = 37  # tokens along a side of a tile: DINOv2's own grid
SHARED = 6  # tokens that neighbours have in common, at least


def tiled_grid(source: TokenSource, image: RGB, area: int) -> Floats:
    """What `embedded.token_grid` gives, float32 [h, w, D], of an image, uint8 [H, W, 3], at about this area
    in pixels. Where tiles overlap, a token is the mean of theirs, weighed by how far it lies inside them."""
    cell = source.patch
    fitted, (width, height) = gridded(image, cell, area)
    (tall, tops), (wide, lefts) = spans(height), spans(width)
    tiles = np.stack(
        [fitted[y * cell : (y + tall) * cell, x * cell : (x + wide) * cell] for y in tops for x in lefts]
    )
    seen = tokens_of(source, tiles)[:, -tall * wide :].reshape(len(tops), len(lefts), tall, wide, -1)
    share = (_inside(tall)[:, None] * _inside(wide))[..., None]
    total = np.zeros((height, width, seen.shape[-1]), np.float32)
    weight = np.zeros((height, width, 1), np.float32)
    for i, y in enumerate(tops):
        for j, x in enumerate(lefts):
            total[y : y + tall, x : x + wide] += seen[i, j] * share
            weight[y : y + tall, x : x + wide] += share
    return np.asarray(total / weight, np.float32)


def spans(length: int) -> tuple[int, list[int]]:
    """Of `length` tokens in a row: how many a tile has, at most LARGEST, and where tiles start."""
    count = max(-(-(length - SHARED) // (LARGEST - SHARED)), 1)
    side = -(-(length + (count - 1) * SHARED) // count)
    return side, [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _inside(length: int) -> Floats:
    """How far each token lies inside its tile, from 1 at the ends up to SHARED."""
    places = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(np.minimum(places, places[::-1]), SHARED)
