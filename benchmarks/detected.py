"""What detection costs the one vector, and what its settings are worth.

    python benchmarks/detected.py bench/inv-3 bench/fit-3d-2 --scenes 80

Asked for is every labelled object that lies in another scene too, as it looks under its true mask: seven
queries a scene, in place of a folder's few, so that differences of half a point are told apart. First table:
where it is lost. Second: `detector.threshold`, `detector.fitted_iou` and `vector.by_score`, against the
defaults; "best": mAP by the best object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from soir_qdrant import images as pictures
from soir_qdrant.config import Settings
from soir_qdrant.evaluate.collect import labelled
from soir_qdrant.evaluate.datasets import load
from soir_qdrant.evaluate.metrics import average_precision, ranking
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.refine.pooling import generalized_max_pool
from soir_qdrant.types import Vector
from soir_qdrant.vision.boxes import intersection_over_union, pick
from soir_qdrant.vision.head import THRESHOLD

FOUND = 0.5  # IoU
Part = tuple[Vector, np.ndarray]  # vectors of a scene's objects, and their scores


@dataclass(frozen=True)
class Scene:
    """boxes, scores, vectors: of the detected; true_boxes, true, names: of the labelled objects."""

    boxes: np.ndarray
    scores: np.ndarray
    vectors: Vector
    true_boxes: np.ndarray
    true: Vector
    names: list[str]

    def kept(self, threshold: float, iou: float) -> np.ndarray:
        """Which of the detected are stored."""
        rows = np.flatnonzero(self.scores >= threshold)
        return rows[pick(self.boxes[rows], self.scores[rows], iou=iou, most=25)[0]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--scenes", type=int, default=80, help="of each folder")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.3, 0.35, 0.4, 0.45, 0.5])
    parser.add_argument("--ious", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--powers", type=float, nargs="+", default=[0.5, 0.75, 1.0])
    chosen = parser.parse_args()
    settings = Settings.for_profile()
    looking = Pipeline(settings.but(detector={"threshold": min(chosen.thresholds), "most": 40}))
    folders = [look(looking, folder, chosen.scenes) for folder in chosen.folders]
    ridge = settings.vector.ridge
    shipped = (settings.detector.threshold or THRESHOLD, settings.detector.fitted_iou)
    power = settings.vector.by_score

    def stored(scene: Scene) -> Part:
        rows = scene.kept(*shipped)
        return scene.vectors[rows], scene.scores[rows] ** power

    def matched(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored boxes; for every true one the best of them; and how well it lies."""
        rows = scene.kept(*shipped)
        overlaps = intersection_over_union(scene.true_boxes, scene.boxes[rows])
        if not len(rows):
            return rows, np.zeros(len(overlaps), np.int64), np.zeros(len(overlaps))
        return rows, rows[overlaps.argmax(1)], overlaps.max(1)

    def found(scene: Scene) -> Part:
        _, _, well = matched(scene)
        return scene.true[well >= FOUND], np.ones((well >= FOUND).sum())

    def exactly(scene: Scene) -> Part:
        """What is found under its true box and mask, and the boxes of nothing as they are."""
        rows, best, well = matched(scene)
        nothing = np.setdiff1d(rows, best[well >= FOUND])
        weights = np.concatenate([scene.scores[best[well >= FOUND]], scene.scores[nothing]]) ** power
        return np.concatenate([scene.true[well >= FOUND], scene.vectors[nothing]]), weights

    lying = np.concatenate([matched(scene)[2] for scenes in folders for scene in scenes])
    print(f"recall {(lying >= FOUND).mean():.3f}, mean IoU of the found {lying[lying >= FOUND].mean():.3f}\n")
    given = one_vector(folders, lambda scene: (scene.true, np.ones(len(scene.true))), ridge)
    print(f"{len(given)} queries, one vector\n{'true boxes and masks':44s} {given.mean():5.1f}")
    for name, part in {
        "of these those that are found": found,
        "weighed by score, and the boxes of nothing": exactly,
        "detected": stored,
    }.items():
        print(f"{name:44s} {told(one_vector(folders, part, ridge), given)}")
    base = one_vector(folders, stored, ridge)
    print(f"\nthreshold fitted_iou objects  best  one vector by score^{', '.join(map(str, chosen.powers))}")
    for threshold, iou in product(chosen.thresholds, chosen.ious):
        kept = [[scene.kept(threshold, iou) for scene in scenes] for scenes in folders]
        count = np.mean([len(rows) for scenes in kept for rows in scenes])
        best = best_object(folders, threshold, iou).mean()
        line = [
            told(
                one_vector(
                    folders,
                    lambda scene, t=threshold, i=iou, p=value: (  # type: ignore[misc]
                        scene.vectors[scene.kept(t, i)],
                        scene.scores[scene.kept(t, i)] ** p,
                    ),
                    ridge,
                ),
                base,
            )
            for value in chosen.powers
        ]
        print(f"{threshold:9.2f} {iou:10.2f} {count:7.1f} {best:5.1f}  {'  '.join(line)}", flush=True)


def look(pipeline: Pipeline, folder: Path, count: int) -> list[Scene]:
    """The first scenes of a folder, every object described."""
    found = []
    for i, entry in enumerate(load(folder, "needle").gallery[:count]):
        image = pictures.load(entry.file).rgb
        assert pipeline.detector is not None
        seen = pipeline.segment(image, pipeline.fitted(image, pipeline.detector.detect([image])[0]))
        crops, masks = pipeline.crops([image], [seen + labelled(entry)])
        vectors = pipeline.describe(pipeline.encoder.encode(crops, masks))
        boxes = np.array([item.box for item in seen], np.float64).reshape(-1, 4)
        scores = np.array([item.score for item in seen], np.float64)
        names = [item.instance or "" for item in entry.objects]
        found.append(Scene(boxes, scores, vectors[: len(seen)], entry.boxes, vectors[len(seen) :], names))
        print(f"\r{folder}: {i + 1}/{count}", end="", flush=True)
    print()
    return found


def one_vector(folders: list[list[Scene]], part: Callable[[Scene], Part], ridge: float) -> np.ndarray:
    """Average precision of each query, by one vector a scene."""

    def scores(scenes: list[Scene], queries: Vector) -> np.ndarray:
        pooled = [
            generalized_max_pool(v, ridge, w) if len(v) else queries[0] * 0 for v, w in map(part, scenes)
        ]
        return queries @ np.stack(pooled).T

    return asked(folders, scores)


def best_object(folders: list[list[Scene]], threshold: float, iou: float) -> np.ndarray:
    """The same by the nearest object of a scene."""

    def scores(scenes: list[Scene], queries: Vector) -> np.ndarray:
        kept = [scene.vectors[scene.kept(threshold, iou)] for scene in scenes]
        return np.stack([(queries @ v.T).max(1, initial=-1) for v in kept], 1)

    return asked(folders, scores)


def asked(folders: list[list[Scene]], scores: Callable[[list[Scene], Vector], np.ndarray]) -> np.ndarray:
    found = []
    for scenes in folders:
        held = [set(scene.names) - {""} for scene in scenes]
        queries = [
            (i, j)
            for i, scene in enumerate(scenes)
            for j, name in enumerate(scene.names)
            if any(name in other for other in held[:i] + held[i + 1 :])
        ]
        said = scores(scenes, np.stack([scenes[i].true[j] for i, j in queries]))
        for (i, j), row in zip(queries, said, strict=True):
            row[i] = -np.inf  # its own scene is no answer
            right = np.array([scenes[i].names[j] in names for names in held])
            right[i] = False
            found.append(average_precision(right[ranking(row)]))
    return np.array(found)


def told(values: np.ndarray, base: np.ndarray) -> str:
    """Mean, and the difference with its standard error."""
    apart = values - base
    return f"{values.mean():5.1f} ({apart.mean():+.1f} ± {apart.std() / np.sqrt(len(apart)):.1f})"


if __name__ == "__main__":
    main()
