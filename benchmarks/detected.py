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
from soir_qdrant.geometry.boxes import intersection_over_union, pick
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.metrics import average_precision, ranking
from soir_qdrant.models.detectors.token_head import THRESHOLD
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import generalized_max_pool
from soir_qdrant.types import Vector

FOUND = 0.5  # IoU
STEPS = (
    "true boxes and masks",
    "of these those that are found",
    "weighed by score, and the other boxes",
    "detected",
)
Part = tuple[Vector, np.ndarray]  # vectors of a scene's objects, and their scores
Answer = Callable[[Vector, Part], np.ndarray]  # queries [q, D] -> what a scene scores for each


@dataclass(frozen=True)
class Scene:
    """boxes, scores, vectors: of the detected; true_boxes, true, names: of the labelled objects."""

    boxes: np.ndarray
    scores: np.ndarray
    vectors: Vector
    true_boxes: np.ndarray
    true: Vector
    names: list[str]

    def kept(self, threshold: float, iou: float, most: int) -> np.ndarray:
        """Which of the detected are stored."""
        rows = np.flatnonzero(self.scores >= threshold)
        return rows[pick(self.boxes[rows], self.scores[rows], iou=iou, max_count=most)[0]]

    def found(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the labelled objects: which are found among some of the detected, by which, and how exactly."""
        overlaps = intersection_over_union(self.true_boxes, self.boxes[rows])
        exactness = overlaps.max(1, initial=0)
        objects = np.flatnonzero(exactness >= FOUND)
        best = rows[overlaps[objects].argmax(1)] if len(objects) else rows[:0]
        return objects, best, exactness[objects]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--scenes", type=int, default=80, help="of each folder")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.2, 0.25, 0.3, 0.35, 0.4])
    parser.add_argument("--ious", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--powers", type=float, nargs="+", default=[0.5, 0.75, 1.0])
    chosen = parser.parse_args()
    settings = Settings.for_profile()
    lowest = min(*chosen.thresholds, settings.detector.threshold or THRESHOLD)
    looking = Pipeline(settings.but(detector={"threshold": lowest}))
    folders = [look(looking, folder, chosen.scenes) for folder in chosen.folders]
    base = losses(folders, settings)
    print(f"\nthreshold fitted_iou objects  best  one vector by score^{', '.join(map(str, chosen.powers))}")
    for threshold, iou in product(chosen.thresholds, chosen.ious):
        ingested = [
            [scene.ingested(threshold, iou, settings.detector.max_objects) for scene in part]
            for part in folders
        ]
        count = np.mean([len(rows) for part in ingested for rows in part])
        stored = [
            [(scene.vectors[rows], scene.scores[rows]) for scene, rows in zip(*both, strict=True)]
            for both in zip(folders, ingested, strict=True)
        ]
        best = asked(folders, stored, nearest).mean()
        line = [told(asked(folders, stored, pooled(settings, power)), base) for power in chosen.powers]
        print(f"{threshold:9.2f} {iou:10.2f} {count:7.1f} {best:5.1f}  {'  '.join(line)}", flush=True)


def losses(folders: list[list[Scene]], settings: Settings) -> np.ndarray:
    """Prints where the one vector loses; what it reaches with the default settings."""
    held = settings.detector
    kept = [
        [scene.kept(held.threshold or THRESHOLD, held.fitted_iou, held.max_objects) for scene in part]
        for part in folders
    ]
    pairs = [list(zip(*both, strict=True)) for both in zip(folders, kept, strict=True)]
    exact = np.concatenate([scene.found(rows)[2] for part in pairs for scene, rows in part])
    total = sum(len(scene.true) for part in folders for scene in part)
    print(f"recall {len(exact) / total:.3f}, mean IoU of the found {exact.mean():.3f}\n")
    values = [
        asked(folders, [[steps(scene, rows)[i] for scene, rows in part] for part in pairs], pooled(settings))
        for i in range(len(STEPS))
    ]
    print(f"{len(values[0])} queries, one vector")
    for name, value in zip(STEPS, values, strict=True):
        print(f"{name:44s} {told(value, values[0])}")
    return values[-1]


def steps(scene: Scene, rows: np.ndarray) -> list[Part]:
    """What would be stored at each of STEPS. rows: of the detected, those that are."""
    objects, best, _ = scene.found(rows)
    others, true = np.setdiff1d(rows, best), scene.true[objects]
    return [
        (scene.true, np.ones(len(scene.true))),
        (true, np.ones(len(true))),
        (np.concatenate([true, scene.vectors[others]]), scene.scores[np.concatenate([best, others])]),
        (scene.vectors[rows], scene.scores[rows]),
    ]


def look(pipeline: Pipeline, folder: Path, count: int) -> list[Scene]:
    """The first scenes of a folder, every object described."""
    found = []
    for i, entry in enumerate(load(folder, "needle").gallery[:count]):
        image = pictures.load(entry.file).rgb
        assert pipeline.detector is not None
        seen = pipeline.segment(image, pipeline.fitted(image, pipeline.detector.detect([image])[0]))
        vectors = pipeline.describe(pipeline.encode(pipeline.crops([image], [seen + labelled(entry)])))
        boxes = np.array([item.box for item in seen], np.float64).reshape(-1, 4)
        scores = np.array([item.score for item in seen], np.float64)
        names = [item.instance or "" for item in entry.objects]
        found.append(Scene(boxes, scores, vectors[: len(seen)], entry.boxes, vectors[len(seen) :], names))
        print(f"\r{folder}: {i + 1}/{count}", end="", flush=True)
    print()
    return found


def pooled(settings: Settings, power: float | None = None) -> Answer:
    """By one vector a scene. power: of the weights; None takes the default."""
    held = settings.vector
    power = held.by_score if power is None else power

    def similarity(queries: Vector, part: Part) -> np.ndarray:
        vectors, weights = part
        return queries @ generalized_max_pool(vectors, held.ridge, weights**power)

    return similarity


def nearest(queries: Vector, part: Part) -> np.ndarray:
    """By the nearest object of a scene."""
    return np.asarray((queries @ part[0].T).max(1, initial=-1))


def asked(folders: list[list[Scene]], parts: list[list[Part]], answer: Answer) -> np.ndarray:
    """Average precision of each query. parts: what is stored of each scene."""
    found = []
    for scenes, stored in zip(folders, parts, strict=True):
        held = [set(scene.names) - {""} for scene in scenes]
        queries = [
            (i, j)
            for i, scene in enumerate(scenes)
            for j, name in enumerate(scene.names)
            if any(name in other for other in held[:i] + held[i + 1 :])
        ]
        vectors = np.stack([scenes[i].true[j] for i, j in queries])
        said = np.stack([answer(vectors, part) for part in stored], 1)
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
