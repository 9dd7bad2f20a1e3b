"""NeedleBench: labelled scenes with small objects, made from pictures, the same for the same arguments.

A track is a way of showing a thing from another side: `2d` bends and turns cut-outs, `3d` renders meshes from
viewpoints up to 45 degrees apart. The format is read by `soir_qdrant.lab.evaluate.bench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track as progress_bar

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.bench import MAX_OBJECTS
from soir_qdrant.lab.needlebench.cast import (
    APPEARANCES,
    OBJECTS,
    TARGETS_A_SCENE,
    Cast,
    Thing,
    Track,
    crowded_plan,
    make_plan,
    open_cast,
)
from soir_qdrant.lab.needlebench.compose import (
    RGBA,
    Scene,
    crop_ground,
    develop,
    encode_jpeg,
    encode_png,
    relight,
    resize_area,
)
from soir_qdrant.lab.needlebench.folder import complete, prepare
from soir_qdrant.lab.needlebench.sources import Ground, Sources, SplitName
from soir_qdrant.types import RGB

WIDTH, HEIGHT = 1024, 768
VERSION = 1  # part of the recipe: raise it when the same arguments give other pixels
AREA = (0.0058, 0.0275)  # drawn on a logarithmic scale; occlusion takes some of it, down to 0.005
OVERLAP = 0.35  # share of objects that try to cover another one
TRIES = 40
QUERY_SIDE = (150, 240)  # pixels, the longer side of a query's object
PLAIN_QUERIES = 0.3  # RGB queries on a plain ground instead of a photograph


def generate(
    out: str | Path,
    *,
    split: SplitName,
    track: Track,
    scenes: int = 200,
    targets: int = 60,
    seed: int = 0,
    sources: Sources | None = None,
    cutout_queries: float = 0.5,
    crowded: bool = False,
    progress: bool = True,
) -> Path:
    """Writes a benchmark folder and returns it; one that is complete with the same arguments stays as it is.

    sources: Sources.full() where it is None. cutout_queries: share of the queries that are RGBA cut-outs; the
    others are RGB crops on another photograph or on a plain ground. crowded: scenes hold targets alone, so that each
    target is in many. An interrupted run leaves no annotations.json and starts over when called again.
    """
    _check(split, track, scenes, targets, cutout_queries, crowded)
    sources = sources or Sources.full()
    recipe = _recipe(split, track, scenes, targets, seed, sources, cutout_queries)
    recipe |= {"crowded": True} if crowded else {}
    root = Path(out).expanduser()
    if not prepare(root, recipe):
        return root
    base = [seed, ("dev", "test").index(split), ("2d", "3d").index(track)]
    grounds = sources.split(split).grounds
    with open_cast(sources, split, track, targets, base) as cast:
        plan = (crowded_plan if crowded else make_plan)(cast, scenes, np.random.default_rng([*base, 1]))
        read = _Photos(grounds)
        order = _grounds_in_turn(len(grounds), scenes, np.random.default_rng([*base, 2]))
        gallery = []
        for i in progress_bar(range(scenes), f"scenes {split} {track}", disable=not progress):
            gallery.append(_write_scene(root, i, plan[i], cast, read(order[i]), [*base, 3, i]))
        queries = [
            _write_query(root, i, cast.things[name], read, [*base, 4, i], _is_cutout(i, cutout_queries))
            for i, name in enumerate(cast.targets)
        ]
    return complete(root, gallery, queries)


def _check(split: str, track: str, scenes: int, targets: int, cutout_queries: float, crowded: bool) -> None:
    if split not in ("dev", "test"):
        raise DatasetError(f"there is no split {split!r}: choose 'dev' or 'test'")
    if track not in ("2d", "3d"):
        raise DatasetError(f"there is no track {track!r}: choose '2d' or '3d'")
    if targets < 1 or scenes < APPEARANCES[1]:
        raise DatasetError(f"{targets} targets, {scenes} scenes: need at least 1 and {APPEARANCES[1]}")
    if crowded and targets < OBJECTS[1]:
        raise DatasetError(f"{targets} targets: crowded scenes hold up to {OBJECTS[1]} of them")
    if not crowded and targets * APPEARANCES[1] > scenes * TARGETS_A_SCENE:
        min_scenes = -(-targets * APPEARANCES[1] // TARGETS_A_SCENE)
        raise DatasetError(f"{targets} targets need at least {min_scenes} scenes, not {scenes}")
    if not 0 <= cutout_queries <= 1:
        raise DatasetError(f"cutout_queries must lie in 0..1, is {cutout_queries}")


def _recipe(
    split: str, track: str, scenes: int, targets: int, seed: int, sources: Sources, cutout_queries: float
) -> dict[str, Any]:
    return {
        "needlebench": VERSION,
        "split": split,
        "track": track,
        "scenes": scenes,
        "targets": targets,
        "seed": seed,
        "sources": sources.name,
        "catalog": sources.fingerprint,
        "cutout_queries": cutout_queries,
    }


class _Photos:
    """Reads grounds once each. Grounds are few: all of them fit in memory."""

    def __init__(self, grounds: tuple[Ground, ...]) -> None:
        self.grounds = grounds
        self._read: dict[int, RGB] = {}

    def __call__(self, index: int) -> RGB:
        if index not in self._read:
            self._read[index] = self.grounds[index].read()
        return self._read[index]


def _grounds_in_turn(count: int, scenes: int, rng: np.random.Generator) -> list[int]:
    """Each photograph comes once before any comes again."""
    rounds = [rng.permutation(count) for _ in range(-(-scenes // count))]
    return [int(i) for i in np.concatenate(rounds)[:scenes]]


def _write_scene(
    root: Path, index: int, names: list[str], cast: Cast, photo: RGB, key: list[int]
) -> dict[str, Any]:
    for attempt in range(20):
        rng = np.random.default_rng([*key, attempt])
        scene = Scene(crop_ground(photo, (WIDTH, HEIGHT), rng))
        if all(_place(scene, cast.things[name], rng) for name in names):
            break
    else:
        raise DatasetError(
            f"scene {index} does not hold its {len(names)} objects: report this with the arguments"
        )
    file, mask = f"gallery/{index:04d}.jpg", f"masks/{index:04d}.png"
    (root / file).write_bytes(encode_jpeg(develop(scene.rgb, rng), int(rng.integers(62, 93))))
    (root / mask).write_bytes(encode_png(scene.ids))
    objects = [{"instance": name, "box": list(scene.box(i) or ())} for i, name in enumerate(names)]
    return {"file": file, "mask": mask, "objects": objects}


def _place(scene: Scene, thing: Thing, rng: np.random.Generator) -> bool:
    """Lays one thing at a random place, sometimes over another; False where no place was found."""
    view = relight(thing.view(rng, False), rng)
    placed = len(scene.full)
    covering = int(rng.integers(placed)) if placed and rng.random() < OVERLAP else None
    low, high = np.log(AREA[0]), np.log(AREA[1])
    for attempt in range(TRIES):
        if attempt == TRIES // 2:
            covering, high = None, (low + high) / 2
        share = float(np.exp(rng.uniform(low, high)))
        rgba = resize_area(view, share * WIDTH * HEIGHT, thing.pose, rng)
        h, w = rgba.shape[:2]
        x, y = int(rng.integers(max(1, WIDTH - w + 1))), int(rng.integers(max(1, HEIGHT - h + 1)))
        box = None if covering is None else scene.box(covering)
        if box is not None:
            x = int(rng.integers(box[0] - w, box[2] + 1))
            y = int(rng.integers(box[1] - h, box[3] + 1))
        if len(scene.full) < MAX_OBJECTS and scene.fits(rgba, x, y, covering):
            scene.paste(rgba, x, y, rng)
            return True
    return False


def _is_cutout(index: int, share: float) -> bool:
    """Spreads the RGBA queries evenly: exactly the share, up to rounding."""
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


def _write_query(
    root: Path, index: int, thing: Thing, read: _Photos, key: list[int], cutout: bool
) -> dict[str, Any]:
    """One picture of the target alone, in a pose and a light of its own."""
    rng = np.random.default_rng(key)
    view = relight(thing.view(rng, True), rng)
    rgba = resize_area(view, float((view[..., 3] > 127).sum()), thing.pose, rng)
    scale = rng.uniform(*QUERY_SIDE) / max(rgba.shape[:2])
    size = (max(8, round(rgba.shape[1] * scale)), max(8, round(rgba.shape[0] * scale)))
    rgba = _resize(rgba, size)
    pad = [int(max(size) * rng.uniform(0.04, 0.14)) for _ in range(4)]
    file = f"queries/{index:03d}.png"
    if cutout:
        framed = np.pad(rgba, (tuple(pad[:2]), tuple(pad[2:]), (0, 0)))
        (root / file).write_bytes(encode_png(framed))
    else:
        whole = (size[0] + pad[2] + pad[3], size[1] + pad[0] + pad[1])
        scene = Scene(_query_ground(whole, read, rng))
        scene.paste(rgba, pad[2], pad[0], rng)
        (root / file).write_bytes(encode_png(develop(scene.rgb, rng)))
    return {"file": file, "instance": thing.instance}


def _query_ground(size: tuple[int, int], read: _Photos, rng: np.random.Generator) -> RGB:
    """size: (width, height). A piece of a photograph, or one colour that grows a little darker."""
    if rng.random() >= PLAIN_QUERIES:
        return crop_ground(read(int(rng.integers(len(read.grounds)))), size, rng)
    colour = rng.uniform(90, 245) + rng.uniform(-20, 20, 3)
    fall = np.linspace(1, rng.uniform(0.75, 1), size[1])[:, None, None]
    return np.clip(np.broadcast_to(colour * fall, (size[1], size[0], 3)), 0, 255).astype(np.uint8)


def _resize(rgba: RGBA, size: tuple[int, int]) -> RGBA:
    """size: (width, height). Colours are weighted with alpha, so that no dark rim comes in."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    way = cv2.INTER_AREA if size[0] < rgba.shape[1] else cv2.INTER_LINEAR
    big = cv2.resize(np.dstack([rgba[..., :3] * alpha, alpha]), size, interpolation=way)
    colour = big[..., :3] / np.maximum(big[..., 3:], 1e-4)
    return np.round(np.dstack([np.clip(colour, 0, 255), big[..., 3:] * 255])).astype(np.uint8)
