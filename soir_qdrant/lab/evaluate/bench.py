"""Reads a NeedleBench folder: the format, checked, as plain values. NumPy and Pillow only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.coco_masks import Outline
from soir_qdrant.types import Box, Mask

ANNOTATIONS = "annotations.json"
MAX_OBJECTS = 255  # a mask is 8-bit and 0 is the ground


@dataclass(frozen=True, slots=True)
class BenchObject:
    """One labelled object of a scene.

    instance: which thing it is, None where nobody knows. box: x0, y0, x1, y1 in pixels of the scene, tight
    around the visible pixels; x1, y1 exclusive. name: of its kind, such as "mug", where it has one.
    """

    instance: str | None
    box: Box
    name: str | None = None


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One scene. mask: 8-bit, [H, W], value i + 1 on the pixels of objects[i], 0 on the background.
    exhaustive: False where things may be in it that nobody labelled. outlines: where there is no mask file,
    one for each object, in their order."""

    file: Path
    mask: Path | None
    objects: list[BenchObject]
    exhaustive: bool = True
    outlines: list[Outline] | None = None

    @property
    def boxes(self) -> NDArray[np.float32]:
        """float32 [k, 4], in the order of objects."""
        return np.array([o.box for o in self.objects], dtype=np.float32).reshape(-1, 4)

    @property
    def instances(self) -> list[str | None]:
        return [o.instance for o in self.objects]

    @property
    def masked(self) -> bool:
        """Whether the mask of any object is known."""
        return self.mask is not None or any(outline.known for outline in self.outlines or [])

    def masks(self) -> Sequence[Mask | None] | None:
        """One bool [H, W] for each object, None for those whose mask is not known; None where no object has
        one. Raises DatasetError where a file or an outline cannot be read."""
        if not self.masked:
            return None
        if self.mask is None:
            return [outline.mask() for outline in self.outlines or []]
        ids = read_mask(self.mask, len(self.objects))
        return [ids == i + 1 for i in range(len(self.objects))]


@dataclass(frozen=True, slots=True)
class BenchQuery:
    """A crop of one thing, or a picture with it in `box`; right answers are the scenes with that instance."""

    file: Path
    instance: str
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """A whole benchmark. All paths are absolute. depth: ranks that the average precision looks at (all)."""

    root: Path
    gallery: list[GalleryImage]
    queries: list[BenchQuery]
    depth: int | None = None

    def relevant(self, query: BenchQuery) -> list[int]:
        """Indices into gallery of the scenes that hold the query's instance."""
        return [i for i, g in enumerate(self.gallery) if query.instance in g.instances]


def load(root: str | Path) -> Bench:
    """Reads ROOT/annotations.json and checks it against the files beside it; opens no picture."""
    folder = Path(root).expanduser().resolve()
    source = folder / ANNOTATIONS
    if not source.is_file():
        hint = "an interrupted generation has none: run it again" if folder.is_dir() else "no such folder"
        raise DatasetError(f"{folder}: no {ANNOTATIONS} ({hint})")
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{source}: not readable as JSON ({error})") from error
    _expect(isinstance(data, dict), source, "the top level must be an object")
    gallery = [
        _gallery_image(folder, source, entry, f"gallery[{i}]")
        for i, entry in enumerate(_list(data, "gallery", source, "the top level"))
    ]
    queries = [
        _query(folder, source, entry, f"queries[{i}]")
        for i, entry in enumerate(_list(data, "queries", source, "the top level"))
    ]
    _expect(bool(gallery), source, "gallery is empty")
    known = {instance for image in gallery for instance in image.instances}
    for i, query in enumerate(queries):
        _expect(query.instance in known, source, f"queries[{i}]: no scene holds {query.instance!r}")
    return Bench(folder, gallery, queries)


def read_mask(file: Path, objects: int) -> NDArray[np.uint8]:
    """The mask as uint8 [H, W]; DatasetError where it is not 8-bit grey or has values beyond the objects."""
    try:
        with Image.open(file) as image:
            ids = np.asarray(image)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not readable as an image ({error})") from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DatasetError(f"{file}: a mask must be 8-bit with one channel, this is {ids.dtype} {ids.shape}")
    if int(ids.max(initial=0)) > objects:
        raise DatasetError(f"{file}: value {int(ids.max())} but the scene has {objects} objects")
    return ids


def _gallery_image(folder: Path, source: Path, entry: Any, where: str) -> GalleryImage:
    _expect(isinstance(entry, dict), source, f"{where} must be an object")
    mask = entry.get("mask")
    objects = _list(entry, "objects", source, where)
    _expect(len(objects) <= MAX_OBJECTS, source, f"{where}: more than {MAX_OBJECTS} objects")
    exhaustive = entry.get("exhaustive", True)
    _expect(isinstance(exhaustive, bool), source, f"{where}.exhaustive must be true or false")
    return GalleryImage(
        file=_file(folder, source, entry.get("file"), f"{where}.file"),
        mask=None if mask is None else _file(folder, source, mask, f"{where}.mask"),
        objects=[_object(source, o, f"{where}.objects[{i}]") for i, o in enumerate(objects)],
        exhaustive=exhaustive,
    )


def _object(source: Path, entry: Any, where: str) -> BenchObject:
    _expect(isinstance(entry, dict), source, f"{where} must be an object")
    instance = entry.get("instance")
    name = entry.get("name")
    _expect(instance is None or isinstance(instance, str), source, f"{where}.instance must be text or null")
    _expect(name is None or isinstance(name, str), source, f"{where}.name must be text or null")
    box = entry.get("box")
    numbers = isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)
    _expect(numbers, source, f"{where}.box must be four numbers, is {box!r}")
    x0, y0, x1, y1 = (float(v) for v in box)
    _expect(0 <= x0 < x1 and 0 <= y0 < y1, source, f"{where}.box must be x0 < x1, y0 < y1, is {box!r}")
    return BenchObject(instance, (x0, y0, x1, y1), name)


def _query(folder: Path, source: Path, entry: Any, where: str) -> BenchQuery:
    _expect(isinstance(entry, dict), source, f"{where} must be an object")
    instance = entry.get("instance")
    _expect(isinstance(instance, str) and bool(instance), source, f"{where}.instance must be text")
    return BenchQuery(_file(folder, source, entry.get("file"), f"{where}.file"), instance)


def _file(folder: Path, source: Path, name: Any, where: str) -> Path:
    _expect(isinstance(name, str) and bool(name), source, f"{where} must be a file name, is {name!r}")
    path: Path = (folder / name).resolve()
    _expect(path.is_relative_to(folder), source, f"{where}: {name!r} leads out of the folder")
    if not path.is_file():
        raise DatasetError(f"{path}: missing, though {source} names it ({where})")
    return path


def _list(entry: dict[str, Any], key: str, source: Path, where: str) -> list[Any]:
    value = entry.get(key)
    if not isinstance(value, list):
        raise DatasetError(f"{source}: {where} needs a list {key!r}, has {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _expect(condition: bool, source: Path, problem: str) -> None:
    if not condition:
        raise DatasetError(f"{source}: {problem}")
