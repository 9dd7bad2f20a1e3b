"""Fit the few coefficients of the proposals: python -m soir_qdrant.lab.train.proposals DIR [DIR ...]

DIR: annotated scenes, as NeedleBench writes them. Prints the coefficients that stand in `scoring.py`, and how
well those fitted on the other folders do on each.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.geometry.boxes import Floats, intersection_over_union, pick
from soir_qdrant.models.detectors.proposals.detector import DECAY, ProposalsDetector
from soir_qdrant.models.detectors.proposals.scoring import FIRST, NAMES, Logistic, Scoring

RIDGE = 3.0  # on standardised features


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A scene. boxes: [n, 4]; features: [n, F]; overlaps: [objects, n], IoU with the true boxes."""

    boxes: Floats
    features: Floats
    overlaps: Floats


def logistic(features: Floats, targets: Floats, ridge: float = RIDGE) -> tuple[Floats, float]:
    """Weights and bias of a ridge logistic regression, by Newton's method. targets: [n], 0..1."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    x = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    penalty = np.r_[np.full(x.shape[1] - 1, ridge), 0.0]
    coefficients = np.zeros(x.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ coefficients, -30, 30)))
        curvature = (x * (chance * (1 - chance))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, x.T @ (targets - chance) - penalty * coefficients)
        coefficients += step
        if np.abs(step).max() < 1e-8:
            break
    weights = coefficients[:-1] / spread
    return weights, float(coefficients[-1] - weights @ mean)


def fit(examples: list[Example]) -> Scoring:
    """The coefficients: candidates count as objects the more, the nearer their IoU is to 0.8."""
    features = np.concatenate([e.features for e in examples])
    best = np.concatenate([e.overlaps.max(axis=0) for e in examples])
    target = np.clip((best - 0.3) / 0.5, 0, 1)
    weights, bias = logistic(features[:, :FIRST], target)
    first = Logistic(tuple(weights.tolist()), bias)
    weights, bias = logistic(features, target)
    raw = Scoring(first, Logistic(tuple(weights.tolist()), bias), 1.0, 0.0)
    picked, values = zip(*(_picked(raw, e) for e in examples), strict=True)
    hits = [e.overlaps[:, k].max(axis=0) >= 0.5 for e, k in zip(examples, picked, strict=True)]
    score = np.clip(np.concatenate(values), 1e-6, 1 - 1e-6)
    slope, offset = logistic(np.log(score / (1 - score))[:, None], np.concatenate(hits).astype(float), 0.0)
    return replace(raw, slope=float(slope[0]), offset=offset)


def measure(scoring: Scoring, examples: list[Example], threshold: float = 0.2) -> dict[str, float]:
    """Recall at 25 boxes without and with the threshold, precision and number of boxes with it, average
    precision, and the mean distance of score and precision in ten bins (calibration error)."""
    matched: list[bool] = []
    above: list[bool] = []
    hits: list[bool] = []
    scores: list[float] = []
    for example in examples:
        picked, values = _picked(scoring, example)
        score = scoring.calibrated(values)
        overlaps = example.overlaps[:, picked]
        matched += (overlaps.max(axis=1) >= 0.5).tolist()
        passing = overlaps[:, score >= threshold]
        above += (passing.max(axis=1, initial=0) >= 0.5).tolist()
        hits += (overlaps.max(axis=0) >= 0.5).tolist()
        scores += score.tolist()
    order = np.argsort(-np.array(scores), kind="stable")
    hit, score = np.array(hits)[order], np.array(scores)[order]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    bins = np.minimum((score * 10).astype(int), 9)
    error = sum(abs(hit[bins == b].mean() - score[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    return {
        "recall": float(np.mean(matched)),
        "recall above threshold": float(np.mean(above)),
        "precision above threshold": float(hit[score >= threshold].mean()),
        "boxes": float((score >= threshold).sum() / len(examples)),
        "average precision": float((precision * hit).sum() / len(matched)),
        "calibration error": float(error),
    }


def examples_of(folder: Path, detector: ProposalsDetector, max_scenes: int = 60) -> list[Example]:
    """Examples from the first scenes of an annotated folder."""
    scenes = json.loads((folder / "annotations.json").read_text())["gallery"][:max_scenes]
    examples = []
    for scene in scenes:
        with Image.open(folder / scene["file"]) as image:
            boxes, features = detector.candidates(np.asarray(image.convert("RGB")))
        true = np.array([item["box"] for item in scene["objects"]], np.float64)
        examples.append(Example(boxes, features, intersection_over_union(true, boxes)))
    return examples


def _picked(scoring: Scoring, example: Example) -> tuple[NDArray[np.int64], Floats]:
    return pick(example.boxes, scoring.second(example.features), iou=0.4, max_count=25, decay=DECAY)


def main(folders: list[str]) -> None:
    """Two rounds: the features of the second look depend on what the first look was fitted to."""
    from soir_qdrant.models.encoders.vit import ViTEncoder

    detector = ProposalsDetector(ViTEncoder())
    for _ in range(2):
        sets = {Path(f).name: examples_of(Path(f), detector) for f in folders}
        detector.scoring = fit([e for part in sets.values() for e in part])
    for left_out, measured in sets.items():
        others = [e for key, part in sets.items() if key != left_out for e in part]
        for kind, scoring in (("the others", fit(others or measured)), ("all", detector.scoring)):
            figures = ", ".join(f"{k} {v:.3f}" for k, v in measure(scoring, measured).items())
            print(f"fitted on {kind}, on {left_out}: {figures}")
    second = zip(NAMES, detector.scoring.second.weights, strict=True)
    print("second look: " + ", ".join(f"{n} {w:.2f}" for n, w in second))
    print(f"BY_TOKENS = {detector.scoring}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
