"""Queries that are trained on the detector's tokens (`sum`), beside our own vector and in its place.

    soir needle bench/train-11 --invented --scenes 200 --targets 120 --seed 11
    soir needle bench/test-71 --invented --scenes 60 --targets 48 --seed 71
    python benchmarks/scene_queries.py --train photos/train bench/train-11 --measure photos/dev-things bench/test-71

benchmarks/scene_queries_training.py says what is trained, and how. Tokens, vectors and the training as it stands lie in
the cache folder: a killed run goes on, to the same result, and a second one only measures.

Columns: vectors of an image; mAP in percent by its one vector, and by the best of its vectors, of image queries and
of named classes; in brackets the difference to our one vector over the same queries, and its standard error; of
right first hits by the best vector the share whose box is on the thing (IoU at least 0.5); kB of float32. A class is
searched by the mean of up to five labelled boxes, of no more than half of its images, and these are not searched.
docs/lab/words.md has what came out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scene_queries_training import COUNTS, PASSES, Looks, SceneQueries, examples, looked_at, new_head, trained

from soir_qdrant import images as image_io
from soir_qdrant.lab.evaluate import report
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.evaluate.datasets import AUTO, load
from soir_qdrant.lab.evaluate.metrics import average_precision, placed, ranking
from soir_qdrant.lab.train.progress import HeadPlan, Progress, contents
from soir_qdrant.pooling.pool import generalized_max_pool, mean_pool
from soir_qdrant.pooling.scenes.grids import peak
from soir_qdrant.pooling.scenes.grids import placed as on_image
from soir_qdrant.types import Box, Vector

ADDED, WEIGHT = 0.5, 0.25  # of the best query's score beside ours; of queries as objects
PROTOTYPES = 5  # labelled boxes that a class is searched by
OURS = "ours: crops, generalized max pooling"
MEAN = "the mean of the detector's tokens, nothing trained"
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """A way to search. one: float32 [n, D], of each image; many: its vectors, float32 [k, D]; boxes: where each of
    these looks, if it does; added: vectors whose best similarity is added to both scores, times ADDED."""

    one: Vector
    many: list[Vector]
    boxes: list[list[Box]] | None = None
    added: list[Vector] | None = None

    @property
    def vectors(self) -> float:
        """Of an image, in the mean."""
        return sum(map(len, [*self.many, *(self.added or [])])) / len(self.many)

    def scores(self, queries: Vector) -> tuple[Vector, Vector]:
        """By the one vector, and by the best, float32 [m, n]. queries: float32 [m, D]."""
        bonus = ADDED * best(queries, self.added) if self.added else np.float32(0)
        return queries @ self.one.T + bonus, best(queries, self.many) + bonus


def best(queries: Vector, images: Sequence[Vector]) -> Vector:
    """The similarity to the most similar vector of each image, float32 [m, n]."""
    return np.stack([(queries @ rows.T).max(1) for rows in images], 1)


@dataclass(frozen=True)
class Questions:
    """What is searched for: vectors, float32 [m, D]; relevant, searched: which images are, bool [m, n]; instances: of
    each."""

    vectors: Vector
    relevant: Bools
    searched: Bools
    instances: list[str]

    def precisions(self, scores: Vector) -> NDArray[np.float64]:
        """The average precision of each, in percent. scores: float32 [m, n]."""
        return np.array(
            [
                average_precision(right[among][ranking(row[among])])
                for row, right, among in zip(scores, self.relevant, self.searched, strict=True)
            ]
        )


def by_image(bench: Bench, looks: Looks) -> Questions:
    """The queries of a folder."""
    vectors = []
    for query in track(bench.queries, f"{bench.root.name} queries"):
        image = image_io.load(query.file)
        vectors.append(looks.pipeline.query(image.rgb, box=query.box, mask=image.alpha))
    right = shown(bench, [query.instance for query in bench.queries])
    return Questions(
        np.stack(vectors), right, np.ones_like(right), [query.instance for query in bench.queries]
    )


def by_class(bench: Bench, looks: Looks) -> Questions:
    """Each thing of a folder that more than one image shows, as a class."""
    listed = sorted({str(name) for image in bench.gallery for name in image.instances if name})
    names = [name for name, right in zip(listed, shown(bench, listed), strict=True) if right.sum() > 1]
    relevant = shown(bench, names)
    searched, vectors = np.ones_like(relevant), list[Vector]()
    for right, among, name in zip(
        relevant, searched, track(names, f"{bench.root.name} classes"), strict=True
    ):
        images = np.flatnonzero(right)
        count = min(PROTOTYPES, len(images) // 2)
        chosen = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
        among[chosen] = False
        entries = [bench.gallery[i] for i in chosen]
        rows = [
            looks.described(entry, labelled(entry)).object_vectors[entry.instances.index(name)]
            for entry in entries
        ]
        vectors.append(mean_pool(np.stack(rows)))
    return Questions(np.stack(vectors), relevant, searched, names)


def shown(bench: Bench, names: Sequence[str]) -> Bools:
    """Whether each image shows each thing, bool [names, images]."""
    return np.array([[name in image.instances for image in bench.gallery] for name in names])


def rows_of(bench: Bench, looks: Looks, head: SceneQueries) -> dict[str, Row]:
    """What is compared, by title."""
    settings = looks.pipeline.settings.vector
    scenes, whole, means, queries, boxes = [], [], [], list[Vector](), list[list[Box]]()
    untrained = new_head(looks)
    for entry in track(bench.gallery, bench.root.name):
        scenes.append(looks.described(entry))
        whole.append(looks.whole(entry))
        grid = torch.from_numpy(looks.grid(entry))
        means.append(untrained.projected(grid.float().mean((0, 1))).detach().numpy())
        vectors, maps = looked_at(head, grid)
        shape = (scenes[-1].height, scenes[-1].width)
        queries.append(vectors.numpy())
        boxes.append([on_image(peak(heat), shape, 1.0).box for heat in maps.numpy()])
    crops = [scene.object_vectors for scene in scenes]
    crop_boxes = [[item.box for item in scene.objects] for scene in scenes]
    ours = np.stack([scene.vector for scene in scenes])
    rows = {
        "whole image": Row(np.stack(whole), [row[None] for row in whole]),
        "crops, mean": Row(np.stack([mean_pool(x) for x in crops]), crops, crop_boxes),
        OURS: Row(ours, crops, crop_boxes),
        MEAN: Row(np.stack(means), [row[None] for row in means]),
        f"ours, and {ADDED:g} times that": Row(ours, crops, crop_boxes, [row[None] for row in means]),
    }
    first = {k: [x[:k] for x in queries] for k in COUNTS}
    for k, some in first.items():
        one = np.stack([generalized_max_pool(x, settings.ridge) for x in some])
        rows[f"`sum`, {k}"] = Row(one, some, boxes)
    for k, some in first.items():
        rows[f"ours, and {ADDED:g} times the best of `sum`, {k}"] = Row(ours, crops, crop_boxes, some)
    for k, some in first.items():
        both = [np.concatenate(pair) for pair in zip(crops, some, strict=True)]
        weights = [
            np.array([item.score**settings.by_score for item in scene.objects] + [WEIGHT] * k)
            for scene in scenes
        ]
        pooled = zip(both, weights, strict=True)
        one = np.stack([generalized_max_pool(x, settings.ridge, weight) for x, weight in pooled])
        all_boxes = [a + b[:k] for a, b in zip(crop_boxes, boxes, strict=True)]
        rows[f"ours, `sum`, {k}, as more objects of weight {WEIGHT:g}"] = Row(one, both, all_boxes)
    return rows


def on_the_thing(bench: Bench, row: Row, questions: Questions) -> str:
    """Of right first hits by the best vector the share, in percent, whose box is on the thing."""
    if row.boxes is None:
        return ""
    right = []
    for vector, scores, relevant, name in zip(
        questions.vectors,
        best(questions.vectors, row.many),
        questions.relevant,
        questions.instances,
        strict=True,
    ):
        first = int(ranking(scores)[0])
        if relevant[first]:
            true = [item.box for item in bench.gallery[first].objects if item.instance == name]
            right.append(placed(row.boxes[first][int((row.many[first] @ vector).argmax())], true))
    return report.number(100 * float(np.mean(right)), 0) if right else ""


def lines(bench: Bench, looks: Looks, head: SceneQueries) -> Iterator[list[str]]:
    """The cells of each row."""
    rows = rows_of(bench, looks, head)
    searches = [by_image(bench, looks), by_class(bench, looks)]
    ours = [questions.precisions(rows[OURS].scores(questions.vectors)[0]) for questions in searches]
    for title, row in rows.items():
        cells = []
        for questions, baseline in zip(searches, ours, strict=True):
            for scores in row.scores(questions.vectors):
                cells.append(compared(questions.precisions(scores), baseline))
        cells.insert(2, "" if row.added else on_the_thing(bench, row, searches[0]))
        yield [
            title,
            report.number(row.vectors, 0),
            *cells,
            report.number(row.vectors * row.one.shape[1] * 4e-3, 0),
        ]


def compared(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> str:
    """See `report.beside`; the mean alone of what is the baseline."""
    return report.beside(values, baseline) if (values != baseline).any() else f"{values.mean():.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=Path, nargs="+", required=True, help="labelled folders: COCO, NeedleBench"
    )
    parser.add_argument("--holdout", type=Path, nargs="*", default=[], help="more, to measure while training")
    parser.add_argument("--measure", type=Path, nargs="*", default=[], help="folders with queries")
    parser.add_argument("--images", type=int, default=500, help="of each folder to train on, at most")
    parser.add_argument("--epochs", type=int, default=25, help=f"of {PASSES} passes over the images")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--fixed", action="store_true", help="the read-out stays that part of the projection")
    parser.add_argument("--compete", action="store_true", help="each token is shared out among the queries")
    parser.add_argument("--cache", type=Path, default=Path("build/scene-queries"))
    parser.add_argument("--out", type=Path, default=Path("build/scene-queries.md"))
    chosen = parser.parse_args()
    looks = Looks(chosen.cache)
    benches = [load(folder, AUTO) for folder in [*chosen.train, *chosen.holdout]]
    data = examples(benches, looks, chosen.images)
    head = new_head(looks, compete=chosen.compete)
    head.read.requires_grad_(not chosen.fixed)
    plan = HeadPlan(chosen.epochs, batch=16, lr=chosen.lr)
    name = f"trained{'-fixed' * chosen.fixed}{'-compete' * chosen.compete}"
    state, log = (chosen.cache / f"{name}.{ending}" for ending in ("pt", "jsonl"))
    trained(head, data, len(chosen.train), Progress(plan, state, log, contents(benches, str(chosen.images))))
    columns = (
        "",
        "vectors",
        "one vector",
        "best of them",
        "box on it",
        "classes: one",
        "classes: best",
        "kB",
    )
    text = ""
    for folder in chosen.measure:
        bench = load(folder, AUTO)
        table = report.markdown(columns, list(lines(bench, looks, head)))
        text += f"{folder.name}: {len(bench.gallery)} images, {len(bench.queries)} queries\n\n{table}\n"
        report.write_text(chosen.out, text)
    print(f"{text}{chosen.out} written" if text else "trained; name folders to --measure")


if __name__ == "__main__":
    main()
