"""Products seen twice on real photographs: labelled folders out of GroceryStoreDataset (MIT).

git clone https://github.com/marcusklasson/GroceryStoreDataset
python benchmarks/groceries.py GroceryStoreDataset bench/groceries

Each package has a shop's picture on white and photographs out of shops, mostly in a hand. Which box is the package is
told by the detector and by the likeness to the shop's picture, of boxes near the middle. Writes OUT/train, to learn
from, and OUT/held, every fourth package, to measure with: its shop's picture and crops of three photographs ask for
the others. Boxes are kept in OUT/boxes.jsonl: run again after an interruption. Two to three core-seconds a photograph.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from soir_qdrant import images as image_io
from soir_qdrant.assembly import make_pipeline
from soir_qdrant.cli.console import bar
from soir_qdrant.config import Settings
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import Detections, Vector

CLASSES = 31  # of the 38 packages
AREA = 170_000  # pixels at which these photographs, of 348 x 348 and more, are looked at
MIN_SHARE, MIN_COSINE = 0.05, 0.08  # of the image; to the shop's picture
QUERIES = 3  # photographs of a package that is held out


def packages(root: Path, photographs: int) -> list[tuple[str, Path, list[Path]]]:
    """Name, shop's picture and photographs of each package."""
    rng, listed = random.Random(0), []
    for row in csv.DictReader((root / "classes.csv").open()):
        icon = root / row["Iconic Image Path (str)"].lstrip("/")
        if "Packages" not in icon.parts:
            continue
        place = icon.parent.relative_to(root / "iconic-images-and-descriptions")
        files = sorted(
            file for part in ("train", "val", "test") for file in (root / part / place).glob("*.jpg")
        )
        rng.shuffle(files)
        listed.append((row["Class Name (str)"], icon, files[:photographs]))
    return listed[:CLASSES]


def package_box(pipeline: Pipeline, file: Path, icon: Vector) -> dict[str, Any] | None:
    """The box that is most likely the package; None where no box is."""
    image = image_io.load(file).rgb
    height, width = image.shape[:2]
    assert pipeline.detector is not None
    (detections,) = pipeline.detector.detect([image])
    boxes, scores = detections.boxes, detections.scores
    if not len(boxes):
        return None
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 / width - 0.5, (boxes[:, 1] + boxes[:, 3]) / 2 / height - 0.5
    share = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (width * height)
    central = np.sqrt(share * scores) * np.exp(-(x**2 + y**2) / 0.15) * (share >= MIN_SHARE)
    first = [i for i in np.argsort(-central)[:3] if central[i] > 0]
    if not first:
        return None
    items = pipeline.fitted(image, Detections(boxes[first], scores[first]))
    cosines = pipeline.describe(pipeline.encode(pipeline.crops([image], [items]))) @ icon
    best = int(np.argmax(cosines + central[first]))
    box = [float(value) for value in items[best].box]
    return {"file": str(file), "box": box, "cosine": float(cosines[best])}


def boxes(
    pipeline: Pipeline, listed: list[tuple[str, Path, list[Path]]], cache: Path
) -> dict[str, dict[str, Any]]:
    """By photograph, of those that were not looked at before too."""
    lines = cache.read_text().splitlines() if cache.is_file() else []
    known = {entry["file"]: entry for entry in map(json.loads, lines)}
    with bar("photographs", sum(len(files) for *_, files in listed)) as advance, cache.open("a") as out:
        for _, icon, files in listed:
            vector: Vector | None = None
            for file in files:
                if str(file) not in known:
                    if vector is None:
                        image = image_io.load(icon)
                        vector = pipeline.query(image.rgb, mask=image.alpha)
                    known[str(file)] = package_box(pipeline, file, vector) or {
                        "file": str(file),
                        "cosine": -1,
                    }
                    out.write(json.dumps(known[str(file)]) + "\n")
                    out.flush()
                advance()
    return known


def write(folder: Path, listed: list[tuple[str, Path, list[dict[str, Any]]]], queries: int) -> None:
    """A folder of NeedleBench's format, without masks."""
    for part in ("gallery", "queries"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    gallery, searches = [], []
    for name, icon, photographs in sorted(listed):
        Image.open(icon).convert("RGB").save(folder / "queries" / f"{name}.png")
        searches.append({"file": f"queries/{name}.png", "instance": name})
        random.shuffle(photographs)
        for i, entry in enumerate(photographs):
            with Image.open(entry["file"]) as image:
                x0, y0, x1, y1 = entry["box"]
                box = [max(0, x0), max(0, y0), min(image.width, x1), min(image.height, y1)]
                if i < queries:
                    file = f"queries/{name}-{i}.png"
                    image.convert("RGB").crop([int(value) for value in box]).save(folder / file)
                    searches.append({"file": file, "instance": name})
                    continue
            shutil.copy(entry["file"], folder / "gallery" / f"{name}-{i:02d}.jpg")
            objects = [{"instance": name, "box": box}]
            gallery.append({"file": f"gallery/{name}-{i:02d}.jpg", "mask": None, "objects": objects})
    (folder / "annotations.json").write_text(json.dumps({"gallery": gallery, "queries": searches}))
    print(f"{folder}: {len(gallery)} photographs, {len(searches)} queries")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a checkout of GroceryStoreDataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--photographs", type=int, default=20, help="of each package, at most")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipeline = make_pipeline(Settings.for_profile("fast"))
    pipeline.detector.areas = [AREA]  # type: ignore[union-attr]  # the trained detector's
    listed = packages(arguments.source / "dataset", arguments.photographs)
    known = boxes(pipeline, listed, arguments.out / "boxes.jsonl")
    labelled = [
        (name, icon, [known[str(file)] for file in files if known[str(file)]["cosine"] > MIN_COSINE])
        for name, icon, files in listed
    ]
    unseen = sorted(name for name, *_ in labelled)[3::4]
    random.seed(0)
    write(arguments.out / "train", [entry for entry in labelled if entry[0] not in unseen], 0)
    write(arguments.out / "held", [entry for entry in labelled if entry[0] in unseen], QUERIES)


if __name__ == "__main__":
    main()
