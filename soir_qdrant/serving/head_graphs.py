"""The trained heads as they are exported: detector and segmenter whole, from pixels to boxes and masks."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.heads.boxes import PIXELS, Head, flat
from soir_qdrant.models.heads.masks import CELLS, SIDE, MaskHead
from soir_qdrant.models.segmenters.windows import MAX_DISTANCE
from soir_qdrant.models.token_grid import SHARED
from soir_qdrant.models.tokens import AFTER
from soir_qdrant.serving.graphs import Trunk
from soir_qdrant.serving.spec import BEST_CELLS


class TokenHeadGraph(nn.Module):
    """The detector of `models/detectors/token_head.py`, with `token_grid.tiled_grid`: see `spec.token_head`.

    The head stays in float32.
    """

    def __init__(self, encoder: ViTEncoder, head: Head, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.trunk = Trunk(encoder, max(encoder.depth - AFTER, 1), dtype)
        self.head = deepcopy(head).cpu().float()
        self.prefix_tokens, self.patch = encoder.prefix_tokens, encoder.patch

    def forward(
        self, image: Tensor, small: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        height, width = small.shape[0] // PIXELS, small.shape[1] // PIXELS
        grid = self.grid(image, rows, columns, height, width)
        pixels = (small.float() / 255).permute(2, 0, 1)[None]
        logits, boxes = flat(self.head(grid.permute(2, 0, 1)[None], pixels))
        # Filled up, so that a small image has as many; a box without area is dropped by every client.
        scores = torch.cat([logits[0].sigmoid(), logits.new_zeros(BEST_CELLS)])
        boxes = torch.cat([boxes[0], boxes.new_ones(BEST_CELLS, 4)])
        best = scores.topk(BEST_CELLS).indices.sort().values
        return boxes[best], scores[best], grid

    def grid(self, image: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        """The tokens of the whole image, [h, w, D]; where tiles overlap, the mean of theirs."""
        tall, wide = rows.shape[1], columns.shape[1]
        tiles = image.index_select(0, self._pixels(rows)).index_select(1, self._pixels(columns))
        tiles = tiles.reshape(rows.shape[0], tall * self.patch, columns.shape[0], wide * self.patch, 3)
        tiles = tiles.permute(0, 2, 1, 3, 4).flatten(0, 1)
        tokens = self.trunk(tiles)[-1][:, self.prefix_tokens :]
        dim = tokens.shape[-1]
        tokens = tokens.reshape(rows.shape[0], columns.shape[0], tall, wide, dim).permute(0, 2, 1, 3, 4)
        down = _merge(rows, height) @ tokens.reshape(rows.shape[0] * tall, columns.shape[0] * wide * dim)
        grid: Tensor = _merge(columns, width) @ down.reshape(height, columns.shape[0] * wide, dim)
        return grid

    def _pixels(self, places: Tensor) -> Tensor:
        """Of tokens along one side, [n, t]: their pixels, [n * t * patch]."""
        return (places[..., None] * self.patch + torch.arange(self.patch)).flatten()


def _merge(places: Tensor, length: int) -> Tensor:
    """The weights of the tiles' tokens along one side, [length, n * t]: see `token_grid.tiled_grid`."""
    count = torch.arange(1, places.shape[1] + 1)
    inside = torch.minimum(count, count.flip(0)).clamp(max=SHARED).expand_as(places).flatten()
    weights = (places.flatten()[None] == torch.arange(length)[:, None]) * inside.float()
    return weights / weights.sum(1, keepdim=True).clamp(min=1)


class TokenUnetGraph(nn.Module):
    """The segmenter of `models/segmenters/token_unet.py`: see `spec.token_unet`. In float32."""

    def __init__(self, head: MaskHead) -> None:
        super().__init__()
        self.head = deepcopy(head).cpu().float()

    def forward(self, tokens: Tensor, windows: Tensor, places: Tensor, boxes: Tensor) -> Tensor:
        logits = self.head(
            windows.flatten(0, 1).float(), self.planes(boxes.flatten(0, 1)), self.sampled(tokens, places)
        )
        chances: Tensor = logits.sigmoid().unflatten(0, (windows.shape[0], windows.shape[1]))
        return chances

    def sampled(self, tokens: Tensor, places: Tensor) -> Tensor:
        """As `windows.sampled_tokens`, [g * m, CELLS^2, D]."""
        middles = (torch.arange(CELLS) + 0.5) / CELLS
        x, y = (2 * (places[..., i, None] + middles * places[..., i + 2, None]) - 1 for i in (0, 1))
        shape = (*places.shape[:2], CELLS, CELLS)
        at = torch.stack([x[..., None, :].expand(shape), y[..., None].expand(shape)], -1)
        cells = F.grid_sample(
            tokens.permute(0, 3, 1, 2), at.flatten(1, 2), padding_mode="border", align_corners=False
        )
        return cells.permute(0, 2, 3, 1).reshape(places.shape[0] * places.shape[1], CELLS**2, tokens.shape[3])

    def planes(self, boxes: Tensor) -> Tensor:
        """As `windows.box_planes`, [k, SIDE, SIDE, 2]."""
        middles = (torch.arange(SIDE) + 0.5)[None, :, None]
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        inside = ((middles - low).clamp(-0.5, 0.5) + 0.5) * ((high - middles).clamp(-0.5, 0.5) + 0.5)
        squares = ((middles - (low + high) / 2) / ((high - low) / 2).clamp(min=1)) ** 2
        distance = (squares[:, None, :, 0] + squares[:, :, None, 1]).sqrt()
        share = inside[:, None, :, 0] * inside[:, :, None, 1]
        return torch.stack([share, distance.clamp(max=MAX_DISTANCE) - 1], -1)
