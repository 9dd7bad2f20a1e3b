"""Other layouts as a `Bench`: COCO with instances, and published sets by name (published.py)."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate import bench, published
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, GalleryImage
from soir_qdrant.lab.evaluate.coco_masks import Outline
from soir_qdrant.lab.evaluate.published import SETS

COCO, AUTO = "coco", "auto"
INSTANCE = ("instance_id", "instance")  # keys of a COCO annotation, or of its "attributes"


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
    return published.load(path, layout)


def _coco(path: Path) -> Bench:
    """COCO's JSON, where annotations may also say which thing they show (see INSTANCE) and of what kind it is
    (`name`, else the category's), and images whether all is labelled (`exhaustive`, true unless it says
    otherwise); there are no queries.

    Images are looked for beside the file and in `images/` there, or a folder above. Masks are
    decoded when they are asked for; see `Outline`. Crowds are left alone; boxes end at the image, and those
    without area are left out.
    """
    usual = path / f"{COCO}.json"
    files = [path] if path.is_file() else [usual] if usual.is_file() else sorted(path.glob("*.json"))
    if len(files) != 1:
        raise DatasetError(f"{path}: {len(files)} JSON files; name the one with the COCO annotations")
    try:
        content = json.loads(files[0].read_text(encoding="utf-8"))
        objects: dict[Any, list[BenchObject]] = {image["id"]: [] for image in content["images"]}
        outlines: dict[Any, list[Outline]] = {key: [] for key in objects}
        ends = {
            image["id"]: (image.get("width", inf), image.get("height", inf)) for image in content["images"]
        }
        whole = {image["id"]: bool(image.get("exhaustive", True)) for image in content["images"]}
        kinds = {kind["id"]: kind.get("name") for kind in content.get("categories", [])}
        for item in content["annotations"]:
            x, y, w, h = (float(value) for value in item["bbox"])
            right, bottom = ends[item["image_id"]]
            box = (max(x, 0.0), max(y, 0.0), min(x + w, float(right)), min(y + h, float(bottom)))
            if not item.get("iscrowd") and box[0] < box[2] and box[1] < box[3]:
                name = item.get("name", kinds.get(item.get("category_id")))
                objects[item["image_id"]].append(BenchObject(_instance(item), box, name))
                outlines[item["image_id"]].append(Outline(item.get("segmentation"), bottom, right))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{files[0]}: not COCO annotations ({error!r})") from error
    root = files[0].parent
    gallery = []
    for key, name in names.items():
        places = [top / part / name for top in (root, root.parent) for part in (".", "images")]
        here = [place for place in places if place.is_file()]
        if not here:
            raise DatasetError(f"{root / name}: missing, though {files[0].name} names it")
        gallery.append(GalleryImage(here[0], None, objects[key], whole[key], outlines[key]))
    return Bench(root, gallery, [])


def _instance(item: dict[str, Any]) -> str | None:
    attributes = item.get("attributes") or {}
    named = [item.get(key, attributes.get(key)) for key in INSTANCE]
    return next((str(name) for name in named if name is not None), None)
