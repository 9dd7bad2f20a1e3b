"""From the features of a proposal to the chance that it is an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soir_qdrant.vision.boxes import Floats

NAMES = (
    "size", "size^2", "stretch", "touch", "fill", "merged at", "grows", "token",
    "rare", "far", "rare: ring", "far: ring",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scoring:
    """A logistic regression on `NAMES`, and the one that turns its result after suppression into the
    share of boxes at that score which match an object (IoU >= 0.5). Fitted by tools on dev scenes."""

    weights: tuple[float, ...]
    bias: float
    slope: float
    offset: float

    def __call__(self, features: Floats) -> Floats:
        """features: [n, 12]. Scores [n], 0..1, before suppression."""
        return _sigmoid(features @ np.array(self.weights) + self.bias)

    def calibrated(self, scores: Floats) -> Floats:
        """Scores after suppression to probabilities."""
        inner = np.clip(scores, 1e-6, 1 - 1e-6)
        return _sigmoid(self.slope * np.log(inner / (1 - inner)) + self.offset)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -50, 50))))


BY_TOKENS = Scoring(
    (1.8705, -0.935, -1.5344, -1.0404, 0.9691, 0.2941, -0.2744, 1.5286, 1.476, 0.9552, 0.3231, -1.455),
    -5.5037,
    1.2807,
    0.4217,
)
CLASSICAL = BY_TOKENS
