"""Real photographs that come with the package: what an export is compared on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.models.compatibility import DATA
from soir_qdrant.types import RGB

IMAGES = DATA / "pictures"
DEMO = DATA / "demo"


def backgrounds() -> list[RGB]:
    """Real photographs to check an export on."""
    files = sorted((IMAGES / "grounds").iterdir())
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def real_crops(size: int, count: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Things in photographs: crops uint8 [count, size, size, 3]; masks float32 [count, size, size], 0..1."""
    things = sorted((IMAGES / "cutouts").iterdir())[:count]
    crops, masks = [], []
    for background, thing in zip(backgrounds() * count, things, strict=False):
        cutout = Image.open(thing).convert("RGBA").resize((size * 3 // 4,) * 2)
        scene = Image.fromarray(resized(background, (size, size)))
        inside = Image.new("L", (size, size))
        place = (size // 8, size // 8)
        scene.paste(cutout, place, cutout)
        inside.paste(cutout.getchannel("A"), place)
        crops.append(np.asarray(scene))
        masks.append(np.asarray(inside, np.float32) / 255)
    return np.stack(crops), np.stack(masks)


def photographs() -> Iterator[RGB]:
    """Every second one of the demo's: fridges, boards, a shop."""
    for entry in _labelled()[::2]:
        yield _opened(entry["file"])


def labelled_crops(size: int, count: int = 2) -> Iterator[RGB]:
    """Up to `count` labelled things of each of the demo's photographs: crops uint8 [size, size, 3]."""
    for entry in _labelled():
        image = Image.fromarray(_opened(entry["file"]))
        for one in entry["objects"][:count]:
            yield np.asarray(image.crop(one["box"]).resize((size, size)))


def _labelled() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads((DEMO / "annotations.json").read_text())["gallery"]
    return listed


def _opened(name: str) -> RGB:
    return np.asarray(Image.open(DEMO / name).convert("RGB"))


def resized(image: RGB, shape: tuple[int, int]) -> RGB:
    """To a shape (height, width)."""
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0])))
