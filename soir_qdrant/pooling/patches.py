"""The patch tokens of an object, small enough to be stored: what late interaction compares.

An object's crop is a grid of tokens. Those under its mask go through the part of the pipeline's whitening
that was fitted on their means, and the signs of its first numbers are stored (`payload.pack_patches`). The
block is the one that detector and segmenter read, so a served trunk gives it as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.models.tokens import LAYER
from soir_qdrant.pooling.features import sizes
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.types import Vector

if TYPE_CHECKING:
    from soir_qdrant.contracts import Encoder

Floats = NDArray[np.floating]
READ = f"patches-{-1 - LAYER}"  # the feature whose tokens these are
MIN_SHARE = 0.5  # of a patch that must lie under the mask
BITS = 64  # of a patch


@dataclass(frozen=True, slots=True, eq=False)
class PatchProjection:
    """token -> unit row of a few numbers: what the whitening makes of a mean of tokens, made of one.

    Attributes:
        mean, matrix: of the whitening's part for these tokens, float32 [D] and [D, d], d a multiple of 8.
        weight, bias, eps: of the encoder's final LayerNorm, float32 [D] each.
        scale: length of that part in the row that is whitened.
    """

    mean: Vector
    matrix: Vector
    weight: Vector
    bias: Vector
    eps: float = 1e-6
    scale: float = 1.0

    @property
    def dim(self) -> int:
        """Numbers of a row, d."""
        return int(self.matrix.shape[1])

    def __call__(self, tokens: Floats) -> Vector:
        """Project tokens, float [..., D], to unit rows, float32 [..., d]."""
        x = np.asarray(tokens, np.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weight + self.bias
        return normalize((normalize(x) * np.float32(self.scale) - self.mean) @ self.matrix)


@dataclass(frozen=True, slots=True)
class Projected:
    """In place of a `PatchProjection`, for an encoder that gives rows of patches instead of tokens.

    Attributes:
        dim: numbers of a row, d.
    """

    dim: int

    def __call__(self, rows: Floats) -> Vector:
        """Rows, float [..., d], at unit length, float32."""
        return normalize(rows)


def projection_of(whitening: Whitening, features: Sequence[str], encoder: Encoder) -> PatchProjection:
    """The part of a whitening that concerns the patches of `READ`.

    Args:
        whitening: of all features side by side.
        features: their names; `READ` is one of them.
        encoder: with the final LayerNorm in its last block.

    Raises:
        ConfigError: the encoder's last block is not taken apart.
    """
    mean, matrix = _part(whitening, features, encoder)
    block = encoder.last_block
    weight, bias = (block.weights[f"norm.{name}"].float().cpu().numpy() for name in ("weight", "bias"))
    return PatchProjection(mean, matrix, weight, bias, block.eps, len(features) ** -0.5)


def projection_digest(whitening: Whitening, features: Sequence[str], encoder: Encoder) -> int:
    """A number above 0, of 48 bits, that names what `projection_of` returns for an encoder of these weights."""
    mean, matrix = _part(whitening, features, encoder)
    content = mean.tobytes() + np.ascontiguousarray(matrix).tobytes() + bytes([len(features)])
    return int(hashlib.sha256(content).hexdigest()[:12], 16) or 1


def place(features: Sequence[str], encoder: Encoder) -> slice:
    """Where `READ` lies in the row of these features side by side."""
    first = sum(sizes(features[: list(features).index(READ)], encoder))
    return slice(first, first + encoder.width)


def _part(whitening: Whitening, features: Sequence[str], encoder: Encoder) -> tuple[Vector, Vector]:
    """Mean [D] and matrix [D, d] of a whitening, as far as they concern `READ`."""
    part = place(features, encoder)
    return whitening.mean[part], whitening.matrix[part, : row_dim(whitening)]


def row_dim(whitening: Whitening) -> int:
    """Numbers of a patch's row."""
    return min(BITS, whitening.dim // 8 * 8)


def under_mask(shares: Floats) -> NDArray[np.bool_]:
    """Which patches belong to the object, bool: those mostly under its mask, else the one most so."""
    chosen: NDArray[np.bool_] = shares >= min(MIN_SHARE, float(shares.max()))
    return chosen


def described(
    patches: Floats, masks: NDArray[np.float32], projection: PatchProjection | Projected
) -> list[Vector]:
    """Patches of K crops as small rows: of each crop those under its mask, float32 [n, d], unit length.

    Args:
        patches: float [K, h, w, D], the tokens of each crop's patches, or their rows already.
        masks: float32 [K, S, S], 0..1.
        projection: of the encoder that the tokens are of.
    """
    rows = []
    for grid, mask in zip(patches, masks, strict=True):
        share = cv2.resize(mask, (grid.shape[1], grid.shape[0]), interpolation=cv2.INTER_AREA)
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
