"""Other layouts as a `Bench`: COCO with instances, and published small-object sets.

Those are all in the one layout that the authors of MaO use: a torch file holds `{picture: {"is_query",
"bbox", "ins", "set"?, "mask"?}}`; see docs/how-to/evaluation.md. Nothing is downloaded. Masks are read
of COCO alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate import bench
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, BenchQuery, GalleryImage
from soir_qdrant.lab.evaluate.coco_masks import Outline
from soir_qdrant.types import Box

NAMES = ("anns.pt", "annotations.pt")
COCO, AUTO = "coco", "auto"
INSTANCE = ("instance_id", "instance")  # keys of a COCO annotation, or of its "attributes"


@dataclass(frozen=True, slots=True)
class Published:
    """A set in that layout. origin: where to get it. part: the one "set" whose entries are read (all)."""

    title: str
    origin: str
    part: str | None = None


SETS = {
    "voxdet": Published(
        "VoxDet-SoIR",
        "get the pictures from github.com/Jaraxxus-Me/VoxDet, and make the file with create_dataset.py of "
        "github.com/pihash2k/VoxDet-SoIR",
        part="RoboTools",
    ),
    "owid": Published("OWID, the synthetic part of VoxDet-SoIR", "as for voxdet", part="OWID"),
    "instre": Published(
        "INSTRE-XS or -XXS",
        "get the pictures from the authors of INSTRE (Wang and Jiang, ACM TOMM 2015), and the file from "
        "those of arXiv 2503.07038",
    ),
    "permir": Published(
        "PerMiR",
        "get the pictures from github.com/NVlabs/PDM, and the file from the authors of arXiv 2503.07038",
    ),
}


def load(path: Path, layout: str = "needle") -> Bench:
    """layout: "auto" (needle or coco, by what is there), "needle", "coco", or a key of SETS. path: the
    folder, or its file of annotations.

    Raises DatasetError saying what is missing and where the set can be had.
    """
    path = path.expanduser().resolve()
    if layout == AUTO:
        layout = "needle" if (path / bench.ANNOTATIONS).is_file() or not any(path.glob("*.json")) else COCO
    if layout == "needle":
        return bench.load(path)
    if layout == COCO:
        return _coco(path)
    if layout not in SETS:
        raise DatasetError(f"layout {layout!r}: choose one of {', '.join((AUTO, 'needle', COCO, *SETS))}")
    return _published(path, SETS[layout])


def _coco(path: Path) -> Bench:
    """COCO's JSON, where annotations may also say which thing they show (see INSTANCE) and of what kind it is
    (`name`, else the category's), and images whether all is labelled (`exhaustive`, true unless it says
    otherwise); there are no queries.

    Pictures are looked for beside the file and in `images/` there, or a folder above. Masks are
    decoded when they are asked for; see `Outline`. Crowds are left alone; boxes end at the picture, and those
    without area are left out.
    """
    usual = path / f"{COCO}.json"
    files = [path] if path.is_file() else [usual] if usual.is_file() else sorted(path.glob("*.json"))
    if len(files) != 1:
        raise DatasetError(f"{path}: {len(files)} JSON files; name the one with the COCO annotations")
    try:
        told = json.loads(files[0].read_text(encoding="utf-8"))
        objects: dict[Any, list[BenchObject]] = {image["id"]: [] for image in told["images"]}
        outlines: dict[Any, list[Outline]] = {key: [] for key in objects}
        ends = {image["id"]: (image.get("width", inf), image.get("height", inf)) for image in told["images"]}
        whole = {image["id"]: bool(image.get("exhaustive", True)) for image in told["images"]}
        kinds = {kind["id"]: kind.get("name") for kind in told.get("categories", [])}
        for item in told["annotations"]:
            x, y, w, h = (float(value) for value in item["bbox"])
            right, bottom = ends[item["image_id"]]
            box = (max(x, 0.0), max(y, 0.0), min(x + w, float(right)), min(y + h, float(bottom)))
            if not item.get("iscrowd") and box[0] < box[2] and box[1] < box[3]:
                name = item.get("name", kinds.get(item.get("category_id")))
                objects[item["image_id"]].append(BenchObject(_instance(item), box, name))
                outlines[item["image_id"]].append(Outline(item.get("segmentation"), bottom, right))
        names = {image["id"]: str(image["file_name"]) for image in told["images"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{files[0]}: not COCO annotations ({error!r})") from error
    root = files[0].parent
    gallery = []
    for key, name in names.items():
        places = [top / part / name for top in (root, root.parent) for part in (".", "images")]
        found = [place for place in places if place.is_file()]
        if not found:
            raise DatasetError(f"{root / name}: missing, though {files[0].name} names it")
        gallery.append(GalleryImage(found[0], None, objects[key], whole[key], outlines[key]))
    return Bench(root, gallery, [])


def _instance(item: dict[str, Any]) -> str | None:
    held = item.get("attributes") or {}
    named = [item.get(key, held.get(key)) for key in INSTANCE]
    return next((str(name) for name in named if name is not None), None)


def _published(path: Path, chosen: Published) -> Bench:
    file = _annotations(path, chosen)
    where = _Pictures(file.parent)
    gallery: list[GalleryImage] = []
    queries: list[BenchQuery] = []
    for name, entry in _read(file).items():
        try:
            if chosen.part is not None and entry.get("set", chosen.part) != chosen.part:
                continue
            if entry.get("is_query", False):
                queries.append(BenchQuery(where(name), str(entry["ins"]), _box(entry.get("bbox"))))
            else:
                picture = where(name)
                gallery.append(GalleryImage(picture, None, _objects(entry, picture)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DatasetError(
                f"{file}: entry {name!r} is not as docs/how-to/evaluation.md says ({error!r})"
            ) from error
    if not gallery or not queries:
        raise DatasetError(
            f"{file}: {len(gallery)} gallery pictures, {len(queries)} queries: not {chosen.title}"
        )
    made = Bench(file.parent, gallery, queries)
    known = {o.instance for image in gallery for o in image.objects}
    asked = [query for query in queries if query.instance in known]
    if not asked:
        raise DatasetError(f"{file}: no query shows anything that the gallery holds")
    return Bench(made.root, gallery, asked)  # a query without a right answer has no average precision


def _annotations(path: Path, chosen: Published) -> Path:
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise DatasetError(f"{path / NAMES[0]} is missing. {chosen.title}: {chosen.origin}")


def _read(file: Path) -> dict[str, Any]:
    import torch

    try:  # boxes are tuples of NumPy integers in the authors' own files
        with torch.serialization.safe_globals(_numpy_scalars()):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise DatasetError(f"{file}: not readable by torch.load(weights_only=True): {error}") from error
    if not isinstance(held, dict):
        raise DatasetError(f"{file}: holds a {type(held).__name__}, not one entry per picture")
    return held


def _numpy_scalars() -> list[Any]:
    """What a pickled NumPy scalar or array is made of: plain data, no code."""
    import numpy as np

    kinds: list[Any] = [np.dtype, np.ndarray, type(np.dtype("int64")), type(np.dtype("int32"))]
    kinds += [type(np.dtype(name)) for name in ("float32", "float64", "uint8", "bool")]
    core = np._core.multiarray  # type: ignore[attr-defined]
    old = "numpy.core.multiarray"  # NumPy 1 wrote this name
    for function in (core.scalar, core._reconstruct):
        kinds += [function, (function, f"{old}.{function.__name__}")]
    return kinds


def _objects(entry: dict[str, Any], picture: Path) -> list[BenchObject]:
    """ins and bbox are lists side by side, or one of each; a picture without a box is one object."""
    instances, boxes = entry["ins"], entry.get("bbox")
    if not isinstance(instances, list):
        instances, boxes = [instances], [boxes]
    elif boxes is None:
        boxes = [None] * len(instances)
    pairs = zip(instances, boxes, strict=True)
    return [BenchObject(str(name), _box(box) or _whole(picture)) for name, box in pairs]


def _whole(picture: Path) -> Box:
    try:
        with Image.open(picture) as image:
            return 0.0, 0.0, float(image.width), float(image.height)
    except OSError as error:
        raise DatasetError(f"{picture}: not readable as an image ({error})") from error


def _box(values: Any) -> Box | None:
    """x0, y0, x1, y1 in pixels; None where there is none."""
    if values is None or len(values) == 0:
        return None
    x0, y0, x1, y1 = (float(v) for v in values)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"box {(x0, y0, x1, y1)} is empty")
    return max(x0, 0.0), max(y0, 0.0), x1, y1


class _Pictures:
    """Finds pictures that are named by the paths of the machine the file was made on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skip = 0  # leading parts of a name that are not here: the same for all of them

    def __call__(self, name: Any) -> Path:
        given = Path(str(name))
        parts = PurePosixPath(str(name).replace("\\", "/")).parts
        found = given if given.is_absolute() and given.is_file() else self._below(parts)
        if found is None:
            raise DatasetError(
                f"{self.root}: picture {str(name)!r} is missing, though the annotations name it"
            )
        return found

    def _below(self, parts: tuple[str, ...]) -> Path | None:
        for skip in (self.skip, *range(len(parts))):
            if parts[skip:] and (self.root.joinpath(*parts[skip:])).is_file() and parts[skip] != "/":
                self.skip = skip
                return self.root.joinpath(*parts[skip:])
        return None
