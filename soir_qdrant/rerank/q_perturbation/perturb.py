"""Q-Perturbation (Fukui et al., ECCV 2024): queries moved towards the subspaces of small objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from soir_qdrant.errors import ConfigError, SoirError
from soir_qdrant.rerank.q_perturbation.subspace import basis, coverage, gram

Weighting = Literal["constant", "area", "1-area", "centred"]


@dataclass(frozen=True, slots=True)
class PerturbSettings:
    """How queries are perturbed.

    Attributes:
        scale: the paper's weight scale.
        weighting: alpha from an object's share a of the image: "constant" 1, "area" a, "1-area" 1 - a,
            "centred" a - 1/2 (a negative scale turns it round), all times `scale`.
        mean: divide by the number of objects, as the authors' code does.
        keep_norm: |q'| = |q|.
        contribution: share of the energy, 0..1, that a subspace reaches; None where `rank` says how many
            directions it has.
        rank: the number of directions; None where `contribution` says it.
        crossing: take the direction that reaches the contribution too; the authors' code stops before.

    Raises:
        ConfigError: for an unknown weighting, a scale of NaN, or both or none of contribution and rank.
    """

    scale: float = 1.0
    weighting: Weighting = "constant"
    mean: bool = False
    keep_norm: bool = False
    contribution: float | None = 0.9
    rank: int | None = None
    crossing: bool = True

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ConfigError(f"weighting {self.weighting!r}: choose one of {', '.join(get_args(Weighting))}")
        if not abs(self.scale) < float("inf"):
            raise ConfigError(f"scale {self.scale}: give a finite number")
        if (self.rank is None) == (self.contribution is None):
            raise ConfigError(
                f"contribution {self.contribution}, rank {self.rank}: give one of them, None for the other"
            )


def alphas(areas: Tensor, settings: PerturbSettings) -> Tensor:
    """alpha_o of each object, [k]. areas: [k], shares of the image, 0..1."""
    shape = {
        "constant": torch.ones_like(areas),
        "area": areas,
        "1-area": 1 - areas,
        "centred": areas - 0.5,
    }[settings.weighting]
    return settings.scale * shape / (max(len(areas), 1) if settings.mean else 1)


def perturb(queries: Tensor, bases: Tensor, alpha: Tensor, *, keep_norm: bool = False) -> Tensor:
    """q' = q + sum_o alpha_o Phi_o Phi_o^T q, of the shape and dtype of `queries`.

    Half precision is computed in float32.

    Args:
        queries: [..., n, d], the dots standing for heads, layers, images.
        bases: [k, ..., d, r], orthonormal columns or zeros (see `subspace.basis`).
        alpha: [k], or [k, ...] with as many of the dots as differ.
        keep_norm: rescale each q' to |q|.

    Raises:
        SoirError: for NaN or infinite numbers.
        ConfigError: where shapes do not fit.
    """
    for name, values in (("queries", queries), ("bases", bases), ("alpha", alpha)):
        if not torch.isfinite(values).all():
            raise SoirError(f"the {name} hold NaN or infinite numbers: check the model's input and dtype")
    if len(alpha) != len(bases) or bases.shape[-2] != queries.shape[-1]:
        raise ConfigError(
            f"queries {tuple(queries.shape)}, bases {tuple(bases.shape)}, alpha {tuple(alpha.shape)}: "
            "give [..., n, d], [k, ..., d, r] and [k]"
        )
    q = queries.to(torch.promote_types(queries.dtype, bases.dtype))
    bases = bases.to(q)
    step = alpha.to(q).reshape(*alpha.shape, *[1] * (bases.ndim - alpha.ndim))
    moved = q + ((q @ bases * step) @ bases.transpose(-1, -2)).sum(0)
    if keep_norm:
        before, after = q.norm(dim=-1, keepdim=True), moved.norm(dim=-1, keepdim=True)
        moved = moved * torch.where(after > 0, before / after, torch.ones_like(after))
    return moved.to(queries.dtype)


def regions(
    keys: Tensor,
    boxes: Tensor,
    size: tuple[float, float],
    grid: tuple[int, int],
    settings: PerturbSettings,
) -> tuple[Tensor, Tensor]:
    """Bases [k, ..., d, r] and alphas [k] of the objects of one image.

    Args:
        keys: [..., N, d], the last rows * columns of them on the grid.
        boxes: [k, 4], x0 y0 x1 y1 in pixels.
        size: width, height of the image.
        grid: rows, columns.
        settings: of the perturbation.
    """
    weights = coverage(boxes.to(keys.device), size, grid)
    areas = weights.mean(1)  # patches are of equal size: the share of the image inside the box
    phi = basis(
        gram(keys, weights),
        contribution=settings.contribution,
        rank=settings.rank,
        crossing=settings.crossing,
    )
    return phi, alphas(areas, settings)
