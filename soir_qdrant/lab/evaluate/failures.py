"""`soir evaluate --failures`: why queries fail, told from boxes and similarities, and a page of the worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant import images as image_io
from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import areas, intersection_over_union, overlap
from soir_qdrant.lab.evaluate import report
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.collect import Collected
from soir_qdrant.lab.evaluate.compare import Evaluation
from soir_qdrant.lab.evaluate.metrics import average_precision
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.report import html as page
from soir_qdrant.types import RGB, Box, Vector

WORST = 30  # queries on the page
RANKED = (
    "search",
    "rerank-codes",
    "default",
    "rerank-objects",
    "objects",
)  # the first of these rows is explained
RIGHT, LOOSE = 0.5, 0.3  # IoU
HOLDS = 0.8  # share of the thing inside a box that holds it
PART = 0.5  # a box that covers less of the thing is of a part of it
MERGED = 2.0  # a box this many times the thing's area holds other things too
ALIKE = 0.5  # a query this much less similar to the thing than the thing's other views is to blame
WIDE = 420  # pixels of a picture on the page
TRUE, WRONG, DETECTED = (34, 197, 94), (220, 38, 38), (148, 163, 184)

REASONS = {
    "not detected": "no box overlaps it much",
    "part boxed": "the best box covers less than half of it",
    "box merged": "the best box holds it, but is more than twice its area",
    "box loose": "the best box has IoU 0.3 to 0.5",
    "query bad": "the box is right, and far more similar to other views of the thing than to the query",
    "encoder confused": "the box is right, and an object of a wrong image is more similar to the query",
    "lost in the vector": "the box is right and the most similar, but the image's vector is not",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A query and one of its relevant images. rank: of the image, from 0; lost: whether it stands behind a
    place that it should have; reason: of REASONS, None where box and similarity are right."""

    query: int
    image: int
    rank: int
    lost: bool
    reason: str | None


def box_reason(true: NDArray[np.floating], boxes: NDArray[np.floating]) -> str | None:
    """What is wrong with the boxes of one thing: one of REASONS, or None where a box has IoU >= 0.5.

    true: [4]; boxes: [k, 4], those that were detected in its image.
    """
    if not len(boxes):
        return "not detected"
    thing = np.asarray(true, np.float64)[None]
    ious = intersection_over_union(thing, boxes)[0]
    if ious.max() >= RIGHT:
        return None
    if ious.max() >= LOOSE:
        return "box loose"
    common = overlap(thing, boxes)[0]
    covered, filled = common / areas(thing)[0], common / np.maximum(areas(boxes), 1e-9)
    if ((covered >= HOLDS) & (areas(boxes) > MERGED * areas(thing)[0])).any():
        return "box merged"
    best = int(ious.argmax())
    if covered[best] < PART:
        return "part boxed" if filled[best] >= PART else "not detected"
    return "box merged"


def cases(bench: Bench, done: Evaluation, vectors: Sequence[Vector], row: str) -> list[Case]:
    """Every query with each of its relevant images. vectors: float32 [k, D] of each image's objects, as they
    are compared with queries; row: whose order of the images is explained."""
    listed = []
    for number, order in enumerate(done.ranks[row]):
        relevant = bench.relevant(bench.queries[number])
        rank = {int(image): place for place, image in enumerate(order)}
        best = np.array([(some @ done.collected.query_vectors[number]).max(initial=-1) for some in vectors])
        wrong = float(np.delete(best, relevant).max(initial=-1))
        for image in relevant:
            lost, boxed = rank[image] >= len(relevant), _boxed(bench, done.collected, number, image)
            reason: str | None
            if isinstance(boxed, str):
                reason = boxed
            else:
                reason = (
                    _reason(bench, done.collected, vectors, number, image, boxed, wrong) if lost else None
                )
            listed.append(Case(number, image, rank[image], lost, reason))
    return listed


def _boxed(bench: Bench, collected: Collected, number: int, image: int) -> str | int:
    """What is wrong with the boxes of a query's thing in an image, or which object is the thing."""
    true, boxes = _true(bench, image, bench.queries[number].instance), _boxes(collected, image)
    reasons = [box_reason(box, boxes) for box in true]
    if None in reasons:
        return int(intersection_over_union(true, boxes).max(0).argmax())
    order = list(REASONS)
    return max((reason for reason in reasons if reason), key=order.index)  # of the best boxed one


def _reason(
    bench: Bench,
    collected: Collected,
    vectors: Sequence[Vector],
    number: int,
    image: int,
    boxed: int,
    wrong: float,
) -> str:
    """Of a lost image whose box is right. boxed: which object the thing is; wrong: similarity of the most
    similar object in a wrong image."""
    own, query = vectors[image][boxed], collected.query_vectors[number]
    similarity = float(own @ query)
    if similarity >= wrong:
        return "lost in the vector"
    others = [float(own @ view) for view in _views(bench, collected, vectors, number, image)]
    if others and similarity < ALIKE * float(np.median(others)):
        return "query bad"
    return "encoder confused"


def _views(
    bench: Bench, collected: Collected, vectors: Sequence[Vector], number: int, besides: int
) -> list[Vector]:
    """Vectors of a query's thing in the other images where its box is right."""
    views = []
    for image in bench.relevant(bench.queries[number]):
        boxed = _boxed(bench, collected, number, image)
        if image != besides and isinstance(boxed, int):
            views.append(vectors[image][boxed])
    return views


def _true(bench: Bench, image: int, instance: str) -> NDArray[np.float64]:
    boxes = [item.box for item in bench.gallery[image].objects if item.instance == instance]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _boxes(collected: Collected, image: int) -> NDArray[np.float64]:
    return np.array([item.box for item in collected.objects[image]], np.float64).reshape(-1, 4)


def counts(listed: Sequence[Case]) -> list[tuple[str, int, int]]:
    """reason, images with it, and how many of them are lost; those that nothing is wrong with come first."""
    every, lost = Counter(case.reason for case in listed), Counter(c.reason for c in listed if c.lost)
    rows = [("found where it should be", sum(not case.lost for case in listed), 0)]
    return rows + [(reason, every[reason], lost[reason]) for reason in REASONS]


def write(folder: Path, bench: Bench, done: Evaluation, settings: Settings, worst: int = WORST) -> Path:
    """Write FOLDER/index.html, the worst queries, and FOLDER/reasons.md, the counts over all.

    Args:
        folder: made where there is none.
        bench: the labelled folder.
        done: what `compare.run` returned of it, with one of the rows in `RANKED`.
        settings: of that run.
        worst: how many queries are shown.

    Returns:
        The page.

    Raises:
        ConfigError: none of those rows was evaluated.
    """
    row = next((name for name in RANKED if name in done.ranks), None)
    if row is None:
        raise ConfigError(f"--failures explains one of the rows {', '.join(RANKED)}: name one in --rows")
    white = Pipeline(settings).whitening or normalize
    listed = cases(bench, done, [white(rows) for rows in done.collected.rows], row)
    precision = [
        average_precision(np.isin(order, bench.relevant(query)), len(bench.relevant(query)))
        for query, order in zip(bench.queries, done.ranks[row], strict=True)
    ]
    figures = [
        (reason, f"{every} ({lost} lost)" if lost else str(every)) for reason, every, lost in counts(listed)
    ]
    strips = [
        _strip(bench, done, row, listed, i, precision[i]) for i in np.argsort(precision)[:worst].tolist()
    ]
    file = folder / "index.html"
    lead = (
        f"Of {len(bench.queries)} queries those with the lowest average precision, row {row}. Green: where "
        "the thing is; red: the box that matched in a wrong image; grey: what was detected. Counts: of all "
        "queries' relevant images; lost: not among the first n, where n are relevant."
    )
    page.write(file, f"Failures on {bench.root.name}", lead, figures, strips)
    report.write_text(folder / "reasons.md", _markdown(bench, row, listed))
    return file


def _markdown(bench: Bench, row: str, listed: Sequence[Case]) -> str:
    total = max(len(listed), 1)
    rows = [
        [reason, str(every), f"{100 * every / total:.1f}", str(lost), REASONS.get(reason, "")]
        for reason, every, lost in counts(listed)
    ]
    table = report.markdown(["reason", "images", "%", "lost", "what it means"], rows)
    return (
        f"{bench.root.name}, row {row}: {len(listed)} relevant images of {len(bench.queries)} queries. "
        f"lost: not among the first n, where n are relevant.\n\n{table}"
    )


def _strip(
    bench: Bench, done: Evaluation, row: str, listed: Sequence[Case], number: int, precision: float
) -> page.Strip:
    query, order = bench.queries[number], done.ranks[row][number]
    own = [case for case in listed if case.query == number]
    best = min(own, key=lambda case: case.rank)
    lost = Counter(case.reason for case in own if case.lost and case.reason)
    named = ", ".join(f"{reason} {count}" for reason, count in lost.most_common())
    strip = [("the query", _small(image_io.load(query.file).rgb, query.box))]
    wrong = next((int(i) for i in order if int(i) not in bench.relevant(query)), None)
    if wrong is not None:
        matched = _matched(done, row, number, wrong)
        strip.append(
            (f"best wrong image, rank {_rank(order, wrong)}", _drawn(bench, done, wrong, matched, WRONG))
        )
    true = [(x0, y0, x1, y1) for x0, y0, x1, y1 in _true(bench, best.image, query.instance).tolist()]
    caption = f"best right image, rank {best.rank + 1}: {best.reason or 'nothing wrong'}"
    strip.append((caption, _drawn(bench, done, best.image, true, TRUE)))
    return page.Strip(f"{query.instance} · AP {precision:.0f} · lost: {named or 'none'}", strip)


def _rank(order: NDArray[np.int64], image: int) -> int:
    return int(np.flatnonzero(order == image)[0]) + 1


def _matched(done: Evaluation, row: str, number: int, image: int) -> list[Box]:
    """The box of a hit, where the row says it."""
    result = done.collected.searches.get(row)
    box = result.boxes[number].get(image) if result else None
    return [box] if box else []


def _small(image: RGB, box: Box | None) -> RGB:
    if box is not None:
        x0, y0, x1, y1 = (round(v) for v in box)
        image = image[y0:y1, x0:x1]
    scale = 180 / max(image.shape[:2])
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def _drawn(
    bench: Bench, done: Evaluation, image: int, thick: Sequence[Box], colour: tuple[int, int, int]
) -> RGB:
    """An image with what was detected thin, and some boxes thick."""
    rgb = image_io.load(bench.gallery[image].file).rgb
    scale = WIDE / max(rgb.shape[:2])
    small = np.ascontiguousarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    thin = [item.box for item in done.collected.objects[image]]
    for boxes, shade, width in ((thin, DETECTED, 1), (thick, colour, 2)):
        for box in boxes:
            x0, y0, x1, y1 = (round(v * scale) for v in box)
            cv2.rectangle(small, (x0, y0), (x1, y1), shade, width, cv2.LINE_AA)
    return np.asarray(small, np.uint8)
