"""Boxes on a patch grid -> the subspace that an object's keys span. Tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor

from soir_qdrant.errors import ConfigError, ObjectsError, SoirError


def coverage(boxes: Tensor, size: tuple[float, float], grid: tuple[int, int]) -> Tensor:
    """The share of each patch that each box covers, floats [k, rows * columns], 0..1, row by row.

    Args:
        boxes: [k, 4], x0 y0 x1 y1 in pixels of the image that the grid lies over; what reaches out of it is
            cut off, and a box beside it covers nothing.
        size: width, height of that image.
        grid: rows, columns.

    Raises:
        ObjectsError: for boxes of another shape, NaN or infinite numbers.
        ConfigError: for an empty image or grid.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ObjectsError(f"boxes of shape {tuple(boxes.shape)}: give [k, 4], x0 y0 x1 y1 in pixels")
    if not torch.isfinite(boxes).all():
        raise ObjectsError("boxes hold NaN or infinite numbers: give x0, y0, x1, y1 in pixels")
    if min(*size, *grid) <= 0:
        raise ConfigError(f"size {size}, grid {grid}: give width, height and rows, columns above 0")
    boxes = boxes if boxes.is_floating_point() else boxes.float()
    across = _overlap(boxes[:, 0], boxes[:, 2], size[0], grid[1])
    down = _overlap(boxes[:, 1], boxes[:, 3], size[1], grid[0])
    return (down[:, :, None] * across[:, None, :]).flatten(1)


def gram(keys: Tensor, weights: Tensor) -> Tensor:
    """K_o^T K_o of each object's weighted keys, [k, ..., d, d]: the paper's autocorrelation, not centred.

    Half precision is computed in float32.

    Args:
        keys: [..., N, d], of one image, per head and layer.
        weights: [k, n], n <= N, of the last n keys; those before them (CLS) weigh nothing.

    Raises:
        SoirError: where keys or weights hold NaN or infinite numbers.
        ConfigError: where n > N.
    """
    prefix = keys.shape[-2] - weights.shape[-1]
    if prefix < 0:
        raise ConfigError(f"{weights.shape[-1]} patch weights for {keys.shape[-2]} keys: is the grid right?")
    for name, values in (("keys", keys), ("weights", weights)):
        if not torch.isfinite(values).all():
            raise SoirError(f"the {name} hold NaN or infinite numbers: check the model's input and dtype")
    keys = _full(keys)[..., prefix:, :]
    shape = (len(weights), *[1] * (keys.ndim - 2), weights.shape[-1], 1)
    weighted = keys * weights.to(keys).reshape(shape)
    return weighted.transpose(-1, -2) @ weighted


def basis(
    autocorrelation: Tensor,
    *,
    contribution: float | None = 0.9,
    rank: int | None = None,
    crossing: bool = True,
) -> Tensor:
    """Orthonormal columns Phi [..., d, r] of the leading eigenvectors, zero beyond each one's own rank.

    Directions without energy are never taken, so an object that covers no patch has Phi = 0.

    Args:
        autocorrelation: [..., d, d], symmetric, positive semidefinite.
        contribution: where `rank` is None, as many eigenvectors, in descending order of their eigenvalues, as
            bring the cumulative ratio to this, 0..1, and at least one.
        rank: how many eigenvectors.
        crossing: keep the eigenvector that reaches the contribution; the authors' code stops before.

    Raises:
        ConfigError: for settings out of range.
        SoirError: for NaN.
    """
    if (rank is None) == (contribution is None):
        raise ConfigError(
            f"contribution {contribution}, rank {rank}: give one of them, and None for the other"
        )
    if rank is not None and rank < 1:
        raise ConfigError(f"rank {rank}: give at least 1")
    if contribution is not None and not 0 < contribution <= 1:
        raise ConfigError(f"contribution {contribution}: give a share of the energy above 0, up to 1")
    if not torch.isfinite(autocorrelation).all():
        raise SoirError("the autocorrelation holds NaN or infinite numbers: check the keys it was made from")
    values, vectors = torch.linalg.eigh(_full(autocorrelation))
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    floor = torch.finfo(values.dtype).eps * values.shape[-1] * values[..., :1]
    selected = values > floor
    if rank is not None:
        selected[..., rank:] = False
    else:
        total = values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        ratio = values.cumsum(-1) / total
        if crossing:
            selected[..., 1:] &= ratio[..., :-1] < contribution
        else:
            selected[..., 1:] &= ratio[..., 1:] < contribution
    columns = int(selected.sum(-1).max()) if selected.numel() else 0
    phi: Tensor = vectors[..., :columns] * selected[..., None, :columns]
    return phi


def _overlap(low: Tensor, high: Tensor, length: float, cells: int) -> Tensor:
    """Share of each of the cells of a line, [k, cells], between low and high, both in 0..length."""
    edges = torch.arange(cells, device=low.device, dtype=low.dtype)
    low, high = (low * cells / length)[:, None], (high * cells / length)[:, None]
    return (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp(0, 1)


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
