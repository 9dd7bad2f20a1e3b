"""Furniture to fill rooms with: the pieces of unpacked catalogues of Sweet Home 3D, as they describe themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import DatasetError

PROPERTIES = "PluginFurnitureCatalog.properties"
CATEGORIES = (
    "Living room",
    "Miscellaneous",
    "Kitchen",
    "Bedroom",
    "Bathroom",
    "Office",
    "Lights",
    "Exterior",
)
OUTDOORS, LIGHTS = "Exterior", "Lights"
MAX_BYTES = 5_000_000  # of a model; larger ones take long to read
MAX_SIDE, MAX_OUTDOORS, MIN_WIDTH = 3.2, 2.0, 0.02  # metres
FEW = 60  # pieces of a kind, below which rooms would repeat themselves
TEXTURE_BYTES = (20_000, 2_000_000)  # of an image that may cover a floor or a wall
Y_UP = ((1, 0, 0), (0, 0, -1), (0, 1, 0))  # how a model's axes lie in a room

HINT = "see docs/reference/needlebench.md for where to get them and how to unpack them"


@dataclass(frozen=True, slots=True)
class Piece:
    """One model. size: width, depth and height in metres; its front looks down -y. elevation: of its base, where it
    hangs. rotation: nine numbers, rows of a matrix that turns the model upright, y pointing up; None for upright."""

    key: str
    name: str
    category: str
    model: Path
    size: tuple[float, float, float]
    elevation: float
    rotation: tuple[float, ...] | None = None

    @property
    def width(self) -> float:
        """The larger side of its footprint."""
        return max(self.size[:2])


@dataclass(frozen=True, slots=True)
class Stock:
    """What a room may hold. floor, small, hanging, wall: pieces by where they belong. textures: image files."""

    floor: list[Piece]
    small: list[Piece]
    hanging: list[Piece]
    wall: list[Piece]
    textures: list[Path]


def stock(folder: Path) -> Stock:
    """Everything below a folder in which each catalogue has a folder of its own. Raises DatasetError where there is
    too little."""
    pieces = (
        [piece for place in sorted(folder.iterdir()) for piece in _catalogue(place)]
        if folder.is_dir()
        else []
    )
    full = Stock(
        floor=[p for p in pieces if _stands(p)],
        small=[p for p in pieces if max(p.size) < 0.6 and p.size[2] > 0.03 and p.elevation < 1.2],
        hanging=[p for p in pieces if p.category == LIGHTS and p.elevation > 1.2],
        wall=[p for p in pieces if p.elevation > 0.5 and p.size[1] < 0.4 and p.category != LIGHTS],
        textures=sorted(
            file
            for file in folder.rglob("*.jpg")
            if TEXTURE_BYTES[0] < file.stat().st_size < TEXTURE_BYTES[1]
        ),
    )
    if min(len(full.floor), len(full.small)) < FEW or not full.textures:
        raise DatasetError(
            f"{folder}: {len(full.floor)} pieces that stand, {len(full.small)} small ones and "
            f"{len(full.textures)} textures of Sweet Home 3D's furniture are too few; {HINT}"
        )
    return full


def _stands(piece: Piece) -> bool:
    if piece.category == LIGHTS and piece.size[2] > 1:
        return True
    return piece.elevation < 0.2 and piece.width > 0.3 and piece.size[2] > 0.25 and piece.category != LIGHTS


def _catalogue(place: Path) -> Iterator[Piece]:
    """The pieces of one catalogue that fit into a room."""
    if not (place / PROPERTIES).is_file():
        return
    entries: dict[int, dict[str, str]] = {}
    for line in (place / PROPERTIES).read_text(encoding="latin-1").splitlines():
        name, _, value = line.partition("=")
        key, _, number = name.rpartition("#")
        if number.isdigit() and not line.startswith("#"):
            entries.setdefault(int(number), {})[key] = value
    for _, entry in sorted(entries.items()):
        piece = _piece(place, entry)
        if piece is not None:
            yield piece


def _piece(place: Path, entry: dict[str, str]) -> Piece | None:
    model = place / entry.get("model", "").lstrip("/")
    if entry.get("category") not in CATEGORIES or model.suffix != ".obj" or not model.is_file():
        return None
    try:
        width, depth, height = (float(entry[key]) / 100 for key in ("width", "depth", "height"))
        elevation = float(entry.get("elevation", 0)) / 100
        turned = tuple(float(value) for value in entry.get("modelRotation", "").split())
    except (KeyError, ValueError):
        return None
    limit = MAX_OUTDOORS if entry["category"] == OUTDOORS else MAX_SIDE
    if model.stat().st_size > MAX_BYTES or max(width, depth, height) > limit or min(width, depth) < MIN_WIDTH:
        return None
    key, size = f"{place.name}-{model.stem}", (width, depth, height)
    return Piece(key, entry["name"], entry["category"], model, size, elevation, turned or None)


def sized(points: NDArray[np.float32], piece: Piece) -> NDArray[np.float32]:
    """Corners of a mesh, float32 [n, 3], turned upright and scaled to a piece's size, its base at z = 0."""
    if piece.rotation is not None:
        axes = np.array(Y_UP, np.float64)
        points = points @ (axes @ np.array(piece.rotation).reshape(3, 3) @ axes.T).T
    low, high = points.min(0), points.max(0)
    scale = np.array(piece.size) / np.maximum(high - low, 1e-6)
    if scale.max() / scale.min() > 3:  # a side that the catalogue measures otherwise
        scale[:] = np.exp(np.log(scale).mean())
    placed = (points - (low + high) / 2) * scale
    placed[:, 2] -= placed[:, 2].min()
    upright: NDArray[np.float32] = placed.astype(np.float32)
    return upright
