"""The patch tokens of an object, small enough to be stored: what late interaction compares.

An object's crop is a grid of tokens. Those under its mask are centred and projected to a few numbers, whose
signs are stored (`payload.pack_patches`). The block is the one that detector and segmenter read, so a served
trunk gives it as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant import parts
from soir_qdrant.errors import ConfigError
from soir_qdrant.refine.pooling import normalize
from soir_qdrant.types import Encoding, Vector
from soir_qdrant.vision.fitted import DATA, trunk

Floats = NDArray[np.floating]
SHIPPED = DATA / "patches.safetensors"
MIN_SHARE = 0.5  # of a patch that must lie under the mask
DIM = 64  # numbers of a patch


@runtime_checkable
class EncodesBoth(Protocol):
    """An encoder that gives tokens of an earlier block in the same pass."""

    def encode_both(
        self, crops: NDArray[np.uint8], masks: NDArray[np.float32], *, skip: int
    ) -> tuple[Encoding, Any]:
        """`Encoder.encode`, and the tokens `skip` blocks before the last, a tensor [B, N, D]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PatchProjection:
    """token -> unit row of a few numbers.

    Attributes:
        mean: float32 [D], the mean token, which is taken off.
        matrix: float32 [D, d], orthonormal columns that span the principal axes.
        fitted_for: the encoder whose tokens they are, as `vision.fitted.trunk` names it.
    """

    mean: Vector
    matrix: Vector
    fitted_for: str = ""

    @property
    def dim(self) -> int:
        """Numbers of a row, d."""
        return int(self.matrix.shape[1])

    @property
    def digest(self) -> str:
        """Eight hex digits that name its content."""
        return hashlib.sha256(self.mean.tobytes() + np.ascontiguousarray(self.matrix).tobytes()).hexdigest()[
            :8
        ]

    def __call__(self, tokens: Floats) -> Vector:
        """Project tokens, float [..., D], to unit rows, float32 [..., d]."""
        return normalize((np.asarray(tokens, np.float32) - self.mean) @ self.matrix)

    @classmethod
    def fit(cls, tokens: Floats, dim: int = DIM, *, seed: int = 0, fitted_for: str = "") -> PatchProjection:
        """The principal axes of tokens, turned at random so that each number varies about as much.

        Of the axes themselves the first would say most, and a sign each would say little of it.

        Args:
            tokens: float [n, D], of many objects, under their masks.
            dim: axes that are kept.
            seed: of the turn.
            fitted_for: see the class.

        Raises:
            ConfigError: where there are fewer tokens than axes.
        """
        tokens = np.asarray(tokens, np.float64)
        if tokens.ndim != 2 or len(tokens) <= dim or dim > tokens.shape[1]:
            raise ConfigError(
                f"{dim} axes of tokens of shape {tokens.shape}: give more tokens, or fewer axes"
            )
        axes = np.linalg.eigh(np.cov(tokens, rowvar=False))[1][:, ::-1]
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
        matrix = axes[:, :dim] @ turn
        return cls(tokens.mean(0).astype(np.float32), matrix.astype(np.float32), fitted_for)

    def save(self, file: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        arrays = {"mean": self.mean, "matrix": self.matrix.astype(np.float16)}
        parts.save(file, arrays, fitted_for=self.fitted_for)

    @classmethod
    def load(cls, file: Path = SHIPPED) -> PatchProjection:
        """Read a file of `save`. Raises ConfigError where it is missing or something else."""
        held, about = parts.load(file, "projection of patches", "PatchProjection.fit", "mean", "matrix")
        return cls(held["mean"].astype(np.float32), held["matrix"].astype(np.float32), about["fitted_for"])


def shipped_for(fingerprint: str) -> PatchProjection | None:
    """The projection that ships, where it was fitted for the encoder of this fingerprint, else None."""
    projection = PatchProjection.load()
    return projection if projection.fitted_for == trunk(fingerprint) else None


def under_mask(shares: Floats) -> NDArray[np.bool_]:
    """Which patches belong to the object, bool [n]: those mostly under its mask, else the one most so."""
    chosen: NDArray[np.bool_] = shares >= min(MIN_SHARE, float(shares.max()))
    return chosen


def described(tokens: Floats, masks: NDArray[np.float32], projection: PatchProjection) -> list[Vector]:
    """Tokens of K crops as small rows: of each crop those under its mask, float32 [n, d], unit length.

    Args:
        tokens: float [K, N, D], a square grid of patches at the end of N.
        masks: float32 [K, S, S], 0..1.
        projection: of the encoder that the tokens are of.
    """
    side = isqrt(tokens.shape[1])
    rows = []
    for grid, mask in zip(tokens[:, -side * side :], masks, strict=True):
        share = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA).reshape(-1)
        rows.append(projection(grid[under_mask(share)]))
    return rows


def late_interaction(query: Floats, objects: Sequence[Floats]) -> Vector:
    """How like each object is to the query, float32 [K], -1..1.

    The mean over the query's patches of the best cosine with one of the object's, and the same from the
    object to the query, averaged (the first alone is ColBERT's MaxSim, Khattab & Zaharia 2020).

    Args:
        query: float [n, d], unit rows, n >= 1.
        objects: K arrays, float [m, d], unit rows, m >= 1.
    """
    if not len(objects):
        return np.zeros(0, np.float32)
    counts = np.array([len(rows) for rows in objects])
    starts = np.cumsum(counts) - counts
    cosines = query @ np.concatenate(objects).T
    forth = np.maximum.reduceat(cosines, starts, axis=1).mean(0)
    back = np.add.reduceat(cosines.max(0), starts) / counts
    scores: Vector = ((forth + back) / 2).astype(np.float32)
    return scores
