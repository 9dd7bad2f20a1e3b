"""From the features of a proposal to the chance that it is an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soir_qdrant.geometry.boxes import Floats

NAMES = (
    "size", "size^2", "stretch", "touch", "fill", "merged at", "grows", "token",
    "rare", "far", "rare: ring", "far: ring",
    "rarer", "rarer: ring",  # against what the first look left as background
)  # fmt: skip
FIRST = 12  # of them are known at the first look


@dataclass(frozen=True, slots=True)
class Logistic:
    """A logistic regression."""

    weights: tuple[float, ...]
    bias: float

    def __call__(self, features: Floats) -> Floats:
        """features: [n, len(weights)]. Floats [n], 0..1."""
        return np.asarray(1 / (1 + np.exp(-np.clip(features @ np.array(self.weights) + self.bias, -50, 50))))


@dataclass(frozen=True, slots=True)
class Scoring:
    """first: on the first `FIRST` features; second: on all. slope, offset: turn the score that is left after
    suppression into the share of boxes at that score which match an object (IoU >= 0.5). All fitted by
    `fitting.py`."""

    first: Logistic
    second: Logistic
    slope: float
    offset: float

    def calibrated(self, scores: Floats) -> Floats:
        """Scores after suppression to probabilities. Both [n], 0..1."""
        inner = np.clip(scores, 1e-6, 1 - 1e-6)
        return Logistic((self.slope,), self.offset)(np.log(inner / (1 - inner))[:, None])


BY_TOKENS = Scoring(
    Logistic(
        (1.871, -0.935, -1.535, -1.04, 0.968, 0.294, -0.274, 1.53, 1.476, 0.955, 0.324, -1.455),
        -5.504,
    ),
    Logistic(
        (1.644, -0.86, -1.22, -0.647, 0.505, 0.45, -0.274, 1.348, 0.471, 0.05, 0.364, -1.125, 1.599, -0.37),
        -5.676,
    ),
    1.194,
    0.391,
)
