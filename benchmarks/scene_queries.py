"""Scene encoders beside our own vector and in its place: dense vectors, clusters, trained queries (`sum`).

    soir needle bench/train-11 --invented --scenes 200 --targets 120 --seed 11
    soir needle bench/test-71 --invented --scenes 60 --targets 48 --seed 71
    python benchmarks/scene_queries.py --train photos/train bench/train-11 --measure photos/dev-things bench/test-71
    python benchmarks/scene_queries.py --measure photos/dev-things bench/test-71  # without `sum`: nothing is trained

benchmarks/scene_rows.py says what is compared, benchmarks/scene_queries_training.py what is trained, and how. Tokens,
vectors and the training as it stands lie in the cache folder: a killed run goes on, to the same result, and a second
one only measures.

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
from numpy.typing import NDArray
from rich.progress import track
from scene_queries_training import PASSES, Looks, SceneQueries, examples, new_head, trained
from scene_rows import Row, best, described, rows_of

from soir_qdrant import images as image_io
from soir_qdrant.lab.evaluate import report
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.evaluate.datasets import AUTO, load
from soir_qdrant.lab.evaluate.metrics import average_precision, placed, ranking
from soir_qdrant.lab.train.progress import HeadPlan, Progress, contents
from soir_qdrant.pooling.pool import mean_pool
from soir_qdrant.types import Vector

PROTOTYPES = 5  # labelled boxes that a class is searched by
Bools = NDArray[np.bool_]


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
            looks.described(image_io.load(entry.file), labelled(entry)).object_vectors[
                entry.instances.index(name)
            ]
            for entry in entries
        ]
        vectors.append(mean_pool(np.stack(rows)))
    return Questions(np.stack(vectors), relevant, searched, names)


def shown(bench: Bench, names: Sequence[str]) -> Bools:
    """Whether each image shows each thing, bool [names, images]."""
    return np.array([[name in image.instances for image in bench.gallery] for name in names])


def on_the_thing(bench: Bench, row: Row, questions: Questions) -> str:
    """Of right first hits by the best vector the share, in percent, whose box is on the thing."""
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


def lines(bench: Bench, looks: Looks, head: SceneQueries | None) -> Iterator[list[str]]:
    """The cells of each row."""
    folder = described(bench, looks, head)
    searches = [by_image(bench, looks), by_class(bench, looks)]
    ours = [questions.precisions(questions.vectors @ folder.ours.T) for questions in searches]
    for title, row in rows_of(folder, looks.pipeline.settings.vector):
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


def trained_head(chosen: argparse.Namespace, looks: Looks) -> SceneQueries:
    """The queries, trained as the options say."""
    benches = [load(folder, AUTO) for folder in [*chosen.train, *chosen.holdout]]
    data = examples(benches, looks, chosen.images)
    head = new_head(looks, compete=chosen.compete)
    head.read.requires_grad_(not chosen.fixed)
    plan = HeadPlan(chosen.epochs, batch=16, lr=chosen.lr)
    name = f"trained{'-fixed' * chosen.fixed}{'-compete' * chosen.compete}"
    state, log = (chosen.cache / f"{name}.{ending}" for ending in ("pt", "jsonl"))
    trained(head, data, len(chosen.train), Progress(plan, state, log, contents(benches, str(chosen.images))))
    return head


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train",
        type=Path,
        nargs="*",
        default=[],
        help="labelled folders, COCO or NeedleBench; none: without `sum`",
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
    head = trained_head(chosen, looks) if chosen.train else None
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
