"""Furnished rooms, rendered: every piece boxed and masked, and images of the pieces alone, to train on.

Photographs of rooms with complete labels are few. These are invented: furniture of free catalogues stands along
the walls and on each other, under the light of a window and a lamp, seen as a camera would see it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track as progress_bar

from soir_qdrant.errors import DatasetError
from soir_qdrant.geometry.masks import extent
from soir_qdrant.lab.needlebench.blender import Render, Studio, open_studio
from soir_qdrant.lab.needlebench.compose import RGBA, encode_jpeg, encode_png, trim
from soir_qdrant.lab.needlebench.folder import complete, prepare
from soir_qdrant.lab.needlebench.furnish import Furnisher
from soir_qdrant.lab.needlebench.furniture import Piece, Stock, stock
from soir_qdrant.types import RGB

VERSION = 1  # of the recipe: raise it when the same arguments give other pixels
MIN_SHARE = 0.0006  # of the image that a labelled piece covers
MIN_FILLED = 0.06  # of its box that a labelled piece covers
MIN_PIXELS = 300  # of a piece that is an instance, to be known again
SHOULDER = 0.7  # of white, above which bright light is compressed


def generate(out: Path, furniture: Path, *, scenes: int = 200, seed: int = 0, progress: bool = True) -> Path:
    """Write rooms in NeedleBench's format, with an image of each piece alone as its query, where it is seen well; a
    folder that is complete with the same arguments stays as it is. About 5 core-seconds a room.

    Args:
        out: the folder.
        furniture: unpacked catalogues of Sweet Home 3D.
        scenes: how many rooms.
        seed: of every choice.

    Raises:
        DatasetError: something else is in the folder, the furniture is too little, or Blender is not installed.
    """
    out, pieces = out.expanduser(), stock(furniture.expanduser())
    kinds = [
        len(pieces.floor),
        len(pieces.small),
        len(pieces.hanging),
        len(pieces.wall),
        len(pieces.textures),
    ]
    if not prepare(out, {"rooms": VERSION, "furniture": kinds, "scenes": scenes, "seed": seed}):
        return out
    gallery: list[dict[str, Any]] = []
    instances: dict[str, tuple[Piece, int]] = {}
    shown: dict[str, Any] = {"console": Console(stderr=True), "disable": not progress}
    with open_studio() as studio:
        for i in progress_bar(range(scenes), "rooms", **shown):
            entry = _room(out, studio, pieces, seed, i, instances)
            if entry["objects"]:
                gallery.append(entry)
        queries = []
        for name in progress_bar(sorted(instances), "pieces", **shown):
            image = _alone(studio, *instances[name])
            if image is not None:
                (out / f"queries/{name}.png").write_bytes(encode_png(image))
                queries.append({"file": f"queries/{name}.png", "instance": name})
    if not gallery:
        raise DatasetError(f"{out}: none of {scenes} rooms shows a piece of furniture: ask for more scenes")
    return complete(out, gallery, queries)


def _room(
    out: Path, studio: Studio, pieces: Stock, seed: int, number: int, instances: dict[str, tuple[Piece, int]]
) -> dict[str, Any]:
    """Render one room and write it. instances: gets those that are in it."""
    rng = random.Random(seed * 100_000 + number)
    studio.clear(number)
    render = studio.shot(Furnisher(studio, pieces, rng).room())
    ids = np.zeros(render.ids.shape, np.uint8)
    objects: list[dict[str, Any]] = []
    for i, (piece, shade) in enumerate(studio.pieces, 1):
        mask = render.ids == i
        box = _box(mask)
        if box is None:
            continue
        instance = f"{piece.key}-{shade}" if mask.sum() >= MIN_PIXELS else None
        if instance is not None:
            instances[instance] = piece, shade
        objects.append({"instance": instance, "name": piece.name, "box": box})
        ids[mask] = len(objects)
    file, mask_file = f"gallery/{number:04d}.jpg", f"masks/{number:04d}.png"
    (out / file).write_bytes(encode_jpeg(photographed(render, rng), rng.randint(75, 95)))
    (out / mask_file).write_bytes(encode_png(ids))
    return {"file": file, "mask": mask_file, "objects": objects}


def _box(mask: NDArray[np.bool_]) -> list[float] | None:
    """Of what is seen of a piece; None where it is too little to be labelled."""
    around = extent(mask)
    if around is None or mask.sum() < MIN_SHARE * mask.size:
        return None
    x0, y0, x1, y1 = around
    return None if mask.sum() < MIN_FILLED * (x1 - x0) * (y1 - y0) else [float(side) for side in around]


def photographed(render: Render, rng: random.Random) -> RGB:
    """What a camera makes of the light: exposed, a little off in its white, with a shoulder. uint8 [H, W, 3]."""
    light = render.light[..., :3] * np.array([rng.uniform(0.92, 1.08), 1, rng.uniform(0.88, 1.1)])
    light *= rng.uniform(0.22, 0.42) / max(float(np.percentile(light.mean(-1), 60)), 1e-4)
    above = np.maximum(light - SHOULDER, 0) / (1 - SHOULDER)
    light = np.where(light > SHOULDER, SHOULDER + (1 - SHOULDER) * (1 - np.exp(-above)), np.maximum(light, 0))
    return np.round(255 * gamma(light)).astype(np.uint8)


def gamma(light: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB of linear light, 0..1."""
    curved = 1.055 * np.maximum(light, 1e-6) ** (1 / 2.4) - 0.055
    return np.clip(np.where(light <= 0.0031308, 12.92 * light, curved), 0, 1)


def _alone(studio: Studio, piece: Piece, shade: int) -> RGBA | None:
    """A piece as a shop shows it, cut out; None where nothing of it is seen."""
    render = studio.alone(piece, shade)
    if render is None or not (render.light[..., 3] > 0.5).any():
        return None
    share = np.clip(render.light[..., 3:], 0, 1)
    light = render.light[..., :3] / np.maximum(share, 1e-3)
    bright = float(np.percentile(light.mean(-1)[share[..., 0] > 0.5], 70))
    image = np.concatenate([gamma(light * min(0.5 / max(bright, 1e-3), 1.2)), share], axis=-1)
    return trim(np.round(255 * image).astype(np.uint8))
