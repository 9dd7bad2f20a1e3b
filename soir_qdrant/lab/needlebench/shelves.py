"""Scenes of shelves and signs: dense rows of equal things side by side, and emblems on photographs.

NeedleBench's scenes lay single things on photographs. These teach what they do not show: neighbours that
touch and look alike, things of every size, flat prints. All is invented (`packets.py`), anew for each seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track as progress_bar

from soir_qdrant.geometry.masks import extent
from soir_qdrant.lab.evaluate.bench import MAX_OBJECTS
from soir_qdrant.lab.needlebench.compose import (
    RGBA,
    bent_corners,
    develop,
    encode_jpeg,
    encode_png,
    relight,
)
from soir_qdrant.lab.needlebench.folder import complete, prepare
from soir_qdrant.lab.needlebench.invent import Inventor
from soir_qdrant.lab.needlebench.packets import Printer
from soir_qdrant.lab.needlebench.sources import Sources
from soir_qdrant.types import RGB

VERSION = 1  # of the recipe: raise it when the same arguments give other pixels
WIDTH, HEIGHT = 1024, 768
BRANDS, VARIANTS = 60, 3  # of a folder; products of a brand look alike
EMBLEMS = 60
SIGNS = 0.3  # share of scenes that are photographs with emblems
MIN_VISIBLE = 0.5  # share of a thing that must be in the picture


@dataclass(slots=True)
class Canvas:
    """An image that knows whose every pixel is. rgb: uint8 [H, W, 3]; ids: uint8 [H, W], i + 1 the i-th
    thing's."""

    rgb: RGB
    ids: NDArray[np.uint8]
    instances: list[str] = field(default_factory=list)

    def paste(self, rgba: RGBA, x: int, y: int, instance: str) -> None:
        """Lay a thing down, its upper left corner at x, y; nothing where too little of it would be seen."""
        h, w = rgba.shape[:2]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, WIDTH), min(y + h, HEIGHT)
        if (
            (x1 - x0) * (y1 - y0) < MIN_VISIBLE * h * w
            or x1 <= x0
            or y1 <= y0
            or len(self.instances) >= MAX_OBJECTS
        ):
            return
        part = rgba[y0 - y : y1 - y, x0 - x : x1 - x]
        share = cv2.GaussianBlur(part[..., 3], (3, 3), 0.6).astype(np.float32)[..., None] / 255
        place = self.rgb[y0:y1, x0:x1]
        place[...] = np.round(place * (1 - share) + part[..., :3] * share)
        self.instances.append(instance)
        self.ids[y0:y1, x0:x1][part[..., 3] > 127] = len(self.instances)


def generate(
    out: Path,
    *,
    scenes: int = 200,
    seed: int = 0,
    inventor: Inventor | None = None,
    progress: bool = True,
) -> Path:
    """Write a labelled folder of shelves and signs in NeedleBench's format, with a query for each product
    that is in more than one scene; one that is complete with the same arguments stays as it is. inventor: of what
    it is made; None takes the full sources' drawings and photographs. Raises DatasetError for a folder of
    something else."""
    out = out.expanduser()
    if not prepare(out, {"shelves": VERSION, "scenes": scenes, "seed": seed}):
        return out
    inventor = inventor or Inventor.of(Sources.full(), np.random.default_rng((seed, 1)))
    printer = Printer(inventor, np.random.default_rng((seed, 2)))
    brands = [printer.design() for _ in range(BRANDS)]
    products = {
        f"{seed}/packet-{i}-{j}": printer.printed(design, variant=j > 0)
        for i, design in enumerate(brands)
        for j in range(VARIANTS)
    }
    emblems = {f"{seed}/emblem-{i}": printer.printed(printer.design(flat=True)) for i in range(EMBLEMS)}
    gallery = []
    for i in progress_bar(range(scenes), "shelves", disable=not progress):
        rng = np.random.default_rng((seed, 3, i))
        background = cv2.resize(inventor.background(), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        canvas = Canvas(np.asarray(background, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8))
        if rng.random() < SIGNS:
            _signs(canvas, emblems | products, rng)
        else:
            _shelf(canvas, products, rng)
        gallery.append(_write(out, i, _tilted(canvas, rng), rng))
    visible = [
        item["instance"]
        for entry in gallery
        for item in {o["instance"]: o for o in entry["objects"]}.values()
    ]
    again = [name for name in (products | emblems) if visible.count(name) > 1]
    queries = [_query(out, i, name, (products | emblems)[name], seed) for i, name in enumerate(again)]
    return complete(out, gallery, queries)


def _shelf(canvas: Canvas, products: dict[str, RGBA], rng: np.random.Generator) -> None:
    """Rows of facings: each product one to seven times side by side, touching or nearly."""
    if rng.random() < 0.7:
        canvas.rgb[...] = np.round(canvas.rgb * 0.15 + rng.uniform(10, 200))
    names, rows = list(products), int(rng.integers(2, 7))
    y, high = int(rng.integers(-40, 30)), HEIGHT // rows
    brand = int(rng.integers(len(names)))
    for _ in range(rows):
        board = max(6, int(high * rng.uniform(0.06, 0.16)))
        floor, x = y + high - board, int(rng.integers(-60, 40))
        while x < WIDTH:
            brand = (brand + int(rng.integers(1, VARIANTS + 2))) % len(names)  # look-alikes stand together
            facing = products[names[brand]]
            scale = (high - board) * rng.uniform(0.55, 0.97) / facing.shape[0]
            gap = int(rng.uniform(-0.03, 0.12) * facing.shape[1] * scale)
            for _ in range(int(rng.integers(1, 8))):
                rgba = _posed(facing, scale * rng.uniform(0.97, 1.03), rng, turn=2.0)
                canvas.paste(rgba, x, floor - rgba.shape[0], names[brand])
                x += rgba.shape[1] + gap
                if x > WIDTH:
                    break
            x += int(rng.uniform(0, 0.4) * high) if rng.random() < 0.3 else 0
        cv2.rectangle(canvas.rgb, (0, floor), (WIDTH, floor + board), rng.uniform(20, 240, 3).tolist(), -1)
        canvas.ids[max(floor, 0) : floor + board] = 0
        y += high


def _signs(canvas: Canvas, things: dict[str, RGBA], rng: np.random.Generator) -> None:
    """Emblems of 0.1 to 12 percent of the picture, turned and tilted, apart from each other."""
    names = list(things)
    for _ in range(int(rng.integers(2, 12))):
        name = names[int(rng.integers(len(names)))]
        area = float(np.exp(rng.uniform(np.log(0.001), np.log(0.12)))) * WIDTH * HEIGHT
        thing = things[name]
        scale = float(np.sqrt(area / (thing.shape[0] * thing.shape[1])))
        rgba = _posed(thing, scale, rng, turn=12.0, corner_shift=0.15)
        h, w = rgba.shape[:2]
        x, y = int(rng.integers(-w // 4, WIDTH - 3 * w // 4)), int(rng.integers(-h // 4, HEIGHT - 3 * h // 4))
        if not canvas.ids[max(y, 0) : y + h, max(x, 0) : x + w].any():
            canvas.paste(rgba, x, y, name)


def _posed(
    rgba: RGBA, scale: float, rng: np.random.Generator, *, turn: float, corner_shift: float = 0.02
) -> RGBA:
    """In another light, scaled, turned by up to `turn` degrees, its corners moved by up to `bend`."""
    lit = relight(rgba, rng)
    h, w = max(8, round(rgba.shape[0] * scale)), max(8, round(rgba.shape[1] * scale))
    small = cv2.resize(lit, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    angle = np.deg2rad(rng.uniform(-turn, turn))
    corners, placed, size = bent_corners(w, h, 1.0, angle, corner_shift, rng)
    matrix = cv2.getPerspectiveTransform(corners, placed)
    return np.asarray(cv2.warpPerspective(small, matrix, size), np.uint8)


def _tilted(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    """Seen a little from the side."""
    corners = np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], np.float32)
    moved = corners + rng.uniform(-0.06, 0.06, (4, 2)).astype(np.float32) * (WIDTH, HEIGHT)
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    rgb = cv2.warpPerspective(canvas.rgb, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    ids = cv2.warpPerspective(canvas.ids, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST)
    return Canvas(np.asarray(rgb, np.uint8), np.asarray(ids, np.uint8), canvas.instances)


def _write(out: Path, index: int, canvas: Canvas, rng: np.random.Generator) -> dict[str, Any]:
    """The scene's files; things of which hardly anything is left are no longer labelled."""
    ids = np.zeros_like(canvas.ids)
    objects: list[dict[str, Any]] = []
    for i, instance in enumerate(canvas.instances):
        mask = canvas.ids == i + 1
        around = extent(mask)
        if around is None or mask.sum() < 100:
            continue
        ids[mask] = len(objects) + 1
        objects.append({"instance": instance, "box": list(around)})
    file, mask_file = f"gallery/{index:04d}.jpg", f"masks/{index:04d}.png"
    (out / file).write_bytes(encode_jpeg(develop(canvas.rgb, rng), int(rng.integers(60, 93))))
    (out / mask_file).write_bytes(encode_png(ids))
    return {"file": file, "mask": mask_file, "objects": objects}


def _query(out: Path, index: int, name: str, rgba: RGBA, seed: int) -> dict[str, Any]:
    """The product alone: half of them as shop pictures on white, half cut out."""
    rng = np.random.default_rng((seed, 4, index))
    posed = _posed(rgba, rng.uniform(0.5, 1.0), rng, turn=4.0, corner_shift=0.04)
    pad = [int(max(posed.shape[:2]) * rng.uniform(0.04, 0.2)) for _ in range(4)]
    framed = np.pad(posed, (tuple(pad[:2]), tuple(pad[2:]), (0, 0)))
    if index % 2:
        share = framed[..., 3:].astype(np.float32) / 255
        framed = np.asarray(np.round(framed[..., :3] * share + 255 * (1 - share)), np.uint8)
    file = f"queries/{index:03d}.png"
    (out / file).write_bytes(encode_png(framed))
    return {"file": file, "instance": name}
