"""Photographs with marks drawn onto them: emblems, words and stripes on what is there, to train the detector on.

A logo on a shirt, a badge on a door, print on a box: few photographs have such things labelled, and a detector
that has not learnt them takes them for texture. Here they are invented and printed onto labelled
photographs, turned, seen from aside and shaded by what is below them; the photographs' own labels stay.

Or some designs are printed again and again, as a brand's mark is: named and masked, to learn a projection from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track as progress_bar

from soir_qdrant import images as image_io
from soir_qdrant.geometry.boxes import areas, overlap
from soir_qdrant.lab.evaluate.bench import MAX_OBJECTS, Bench, BenchObject
from soir_qdrant.lab.needlebench.compose import bent_corners, encode_jpeg, encode_png
from soir_qdrant.lab.needlebench.emblems import Stamp, stamp
from soir_qdrant.lab.needlebench.folder import complete, labels_digest, prepare_beside
from soir_qdrant.lab.needlebench.invent import Inventor
from soir_qdrant.lab.needlebench.sources import Sources
from soir_qdrant.types import RGB, Box

VERSION = 2  # of the recipe: raise it when the same arguments give other pixels
COUNT = (2, 7)  # marks tried on a photograph, the second exclusive
OF_DESIGNS = (4, 9)  # the same where designs come again
AREA = (0.0008, 0.04)  # shares of the photograph that a mark's box covers
ON_THINGS = 0.75  # share of the marks that are tried on a labelled thing
MAX_SIDE = 0.75  # of the side of the thing that a mark is on
MIN_SIDE = 7  # pixels of a mark's shorter side
MAX_HIDDEN = 0.4  # share of a thing that a mark may hide
TRIES = 8
TURN = 20.0  # degrees
CORNERS = 0.14  # how far a mark's corners move, in shares of its sides
TONED = 0.3  # share that are of the colour below them, lighter or darker, as if woven, cast or embossed
TONE = (0.10, 0.35)  # by how much
CONTRAST = 0.22  # of the others: the least difference in brightness between a mark and what is below it, 0..1


@dataclass(frozen=True, slots=True, eq=False)
class Print:
    """A mark as it lies in a photograph, its upper left corner at x, y. name: of its design, where that comes again;
    box: of what can be seen of it."""

    name: str | None
    mark: Stamp
    x: int
    y: int
    box: Box


def generate(
    out: Path,
    bench: Bench,
    *,
    scenes: int = 200,
    seed: int = 0,
    designs: int = 0,
    inventor: Inventor | None = None,
    fonts: Sequence[Path] = (),
    progress: bool = True,
) -> Path:
    """Write the photographs with marks, in NeedleBench's format without queries; a folder that is complete with
    the same arguments stays as it is.

    Args:
        out: the folder.
        bench: photographs with boxes.
        scenes: how many of the photographs, chosen by the seed; all, where there are no more.
        seed: of every choice.
        designs: so many different marks, each on many photographs, and they alone are labelled: named and masked.
            0: every mark is a new one, labelled beside what was.
        inventor: gives the silhouettes that some marks have; None takes the full sources' drawings.
        fonts: files that words are lettered in; none: what OpenCV draws.

    Raises:
        DatasetError: something else is in the folder, or it is that of the photographs.
    """
    out = out.expanduser()
    labels = labels_digest(bench, [entry.exhaustive for entry in bench.gallery])
    recipe = {"marks": VERSION, "labels": labels, "seed": seed, "scenes": scenes}
    chosen = {"designs": designs, "fonts": [file.name for file in fonts]}
    if not prepare_beside(out, bench, recipe | {name: value for name, value in chosen.items() if value}):
        return out
    inventor = inventor or Inventor.of(Sources.full(fetch=True), np.random.default_rng((seed, 1)))
    order = np.random.default_rng((seed, 5)).permutation(len(bench.gallery)).astype(int)[:scenes].tolist()
    rng = np.random.default_rng((seed, 7))
    again = [(f"mark-{seed}-{i}", stamp(inventor, rng, fonts)) for i in range(designs)]
    gallery = []
    for i, number in enumerate(progress_bar(order, "marks", disable=not progress)):
        entry, rng = bench.gallery[number], np.random.default_rng((seed, 6, number))
        rgb = image_io.load(entry.file).rgb.copy()
        prints = draw(rgb, entry.boxes, some(again, rng) if again else new(inventor, rng, fonts), rng)
        file, mask = f"gallery/{i:05d}.jpg", f"masks/{i:05d}.png" if again else None
        (out / file).write_bytes(encode_jpeg(rgb, int(rng.integers(75, 95))))
        if mask is not None:
            (out / mask).write_bytes(encode_png(_ids(rgb.shape, prints)))
        objects = _objects([] if again else entry.objects, prints)
        exhaustive = entry.exhaustive and not again
        gallery.append({"file": file, "mask": mask, "exhaustive": exhaustive, "objects": objects})
    return complete(out, gallery, [])


def _objects(things: Sequence[BenchObject], prints: list[Print]) -> list[dict[str, Any]]:
    """Labels of things, without their instances, and of marks."""
    objects = [
        {"instance": None, "name": x.name, "box": list(x.box)} for x in things[: MAX_OBJECTS - len(prints)]
    ]
    return objects + [{"instance": p.name, "name": "mark", "box": list(p.box)} for p in prints]


def _ids(shape: tuple[int, ...], prints: list[Print]) -> NDArray[np.uint8]:
    """Which mark each pixel shows, counted from 1; 0 for none. shape: of the photograph."""
    ids = np.zeros(shape[:2], np.uint8)
    for i, p in enumerate(prints, 1):
        rows, columns, share = _inside(p.mark, p.x, p.y, shape)
        ids[rows, columns][share > 0.5] = i
    return ids


def some(designs: Sequence[tuple[str, Stamp]], rng: np.random.Generator) -> list[tuple[str, Stamp]]:
    """Of marks that come again those that go onto one photograph, with their names."""
    count = min(len(designs), int(rng.integers(*OF_DESIGNS)))
    return [designs[i] for i in rng.choice(len(designs), count, replace=False).tolist()]


def new(
    inventor: Inventor, rng: np.random.Generator, fonts: Sequence[Path] = ()
) -> Iterator[tuple[None, Stamp]]:
    """Marks that nothing else has, as many as go onto one photograph, without names."""
    for _ in range(int(rng.integers(*COUNT))):
        yield None, stamp(inventor, rng, fonts)


def draw(
    rgb: RGB,
    things: NDArray[np.float32],
    marks: Iterable[tuple[str | None, Stamp]],
    rng: np.random.Generator,
) -> list[Print]:
    """Print marks onto a photograph, in place; those without a free place are left out.

    rgb: uint8 [H, W, 3]. things: boxes of what is labelled in it, [n, 4]. marks: names and emblems, drawn one after
    the other."""
    prints: list[Print] = []
    for name, mark in marks:
        for _ in range(TRIES):
            warped, x, y = _posed(mark, things, rgb.shape[:2], rng)
            place = _box(warped, x, y)
            if place is not None and _free(place, things, [p.box for p in prints], rgb.shape[:2]):
                _print(rgb, warped, x, y, rng)
                prints.append(Print(name, warped, x, y, place))
                break
    return prints


def _posed(
    mark: Stamp, things: NDArray[np.float32], shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Stamp, int, int]:
    """A mark at its size, turned and seen from aside, and where its upper left corner comes to."""
    height, width = shape[0], shape[1]
    area = float(np.exp(rng.uniform(*np.log(AREA)))) * height * width
    x0, y0, x1, y1 = 0.0, 0.0, float(width), float(height)
    if len(things) and rng.random() < ON_THINGS:
        x0, y0, x1, y1 = things[int(rng.integers(len(things)))].astype(float).tolist()
    h, w = mark.share.shape
    scale = min((area / (h * w)) ** 0.5, MAX_SIDE * (x1 - x0) / w, MAX_SIDE * (y1 - y0) / h)
    warped = _warp(mark, max(scale, 1e-3), rng)
    high, wide = warped.share.shape
    x, y = (rng.uniform(low, max(low, end)) for low, end in ((x0, x1 - wide), (y0, y1 - high)))
    return warped, int(x), int(y)


def _warp(mark: Stamp, scale: float, rng: np.random.Generator) -> Stamp:
    """The mark as it lies in the photograph."""
    h, w = mark.share.shape
    angle = np.deg2rad(rng.normal(0, TURN / 2))
    corners, placed, size = bent_corners(w, h, scale, angle, CORNERS, rng)
    # Shrunk smoothly first: a warp alone would alias.
    small = (max(4, round(w * min(scale, 1))), max(4, round(h * min(scale, 1))))
    layers = np.dstack([mark.ink * mark.share[..., None], mark.share])
    layers = cv2.resize(layers, small, interpolation=cv2.INTER_AREA)
    inside = (corners * (small[0] / w, small[1] / h)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(inside, placed)
    bent = np.asarray(cv2.warpPerspective(layers, matrix, size), np.float32)
    ink = bent[..., :3] / np.maximum(bent[..., 3:], np.float32(1e-4))
    return Stamp(np.asarray(ink, np.float32), bent[..., 3].clip(0, 1))


def _box(warped: Stamp, x: int, y: int) -> Box | None:
    """Of what can be seen of it, in the photograph's pixels; None where it is too small to be seen."""
    rows, columns = (np.flatnonzero((warped.share > 0.5).any(axis)) for axis in (1, 0))
    if min(len(rows), len(columns)) < MIN_SIDE:
        return None
    return float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1)


def _free(place: Box, things: NDArray[np.float32], marks: list[Box], shape: tuple[int, ...]) -> bool:
    """Whether a mark may be here: inside the photograph, on no other mark, and hiding no thing."""
    if place[0] < 0 or place[1] < 0 or place[2] > shape[1] or place[3] > shape[0]:
        return False
    others = np.array([*things.tolist(), *marks], np.float32).reshape(-1, 4)
    hidden = overlap(np.array([place]), others)[0] / np.maximum(areas(others), 1e-6)
    limits = np.r_[np.full(len(things), MAX_HIDDEN), np.zeros(len(marks))]
    return bool((hidden <= limits).all())


def _print(rgb: RGB, warped: Stamp, x: int, y: int, rng: np.random.Generator) -> None:
    """Lay the ink onto the photograph, in place: lighter and darker as what is below it is."""
    rows, columns, share = _inside(warped, x, y, rgb.shape)
    ink = warped.ink[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    below = np.asarray(rgb[rows, columns], np.float32) / np.float32(255)
    light = cv2.GaussianBlur(below.mean(2), (0, 0), float(rng.uniform(0.8, 2.5)))
    mean = float(np.average(light, weights=share + 1e-6))
    if rng.random() < TONED:
        ink = _toned(below, share, mean, rng)
    else:
        ink = _visible(ink, share, mean)
    folds = np.clip((light + 0.05) / (mean + 0.05), 0.5, 1.6) ** rng.uniform(0.2, 0.9)
    soft = cv2.GaussianBlur(share, (0, 0), float(rng.uniform(0.4, 1.1))) * rng.uniform(0.75, 1)
    mixed = below * (1 - soft[..., None]) + np.clip(ink * folds[..., None], 0, 1) * soft[..., None]
    rgb[rows, columns] = np.round(mixed * 255)


def _inside(mark: Stamp, x: int, y: int, shape: tuple[int, ...]) -> tuple[slice, slice, NDArray[np.float32]]:
    """The part of a mark that is in the photograph: its rows and columns there, and how much of it there is."""
    h, w = mark.share.shape
    rows, columns = slice(max(y, 0), min(y + h, shape[0])), slice(max(x, 0), min(x + w, shape[1]))
    return rows, columns, mark.share[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]


def _toned(
    below: NDArray[np.float32], share: NDArray[np.float32], mean: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Ink of the colour that is below the mark, lighter or darker, float32 [3]. mean: of that colour, 0..1."""
    colour = np.average(below.reshape(-1, 3), axis=0, weights=share.reshape(-1) + 1e-6)
    step = rng.uniform(*TONE)
    lighter = mean < 0.35 or (mean < 0.65 and rng.random() < 0.5)
    return np.asarray(np.clip(colour + (step if lighter else -step), 0, 1), np.float32)


def _visible(ink: NDArray[np.float32], share: NDArray[np.float32], below: float) -> NDArray[np.float32]:
    """The ink, made darker or lighter where it would not stand out from what is below it, 0..1."""
    mean = float(np.average(ink.mean(2), weights=share + 1e-6))
    if abs(mean - below) >= CONTRAST:
        return ink
    return ink * np.float32(0.3) if below > 0.5 else 1 - (1 - ink) * np.float32(0.3)
