"""Logos and furniture: two benchmark folders out of photographs in public repositories, to measure with only.

git clone https://github.com/skovacevic94/logo_detection && git -C logo_detection checkout 770dc93
python benchmarks/more_photographs.py logo_detection bench/logos --kind logos
git clone https://github.com/superliza/e-commerce-spa && git -C e-commerce-spa checkout 4a5521b
python benchmarks/more_photographs.py e-commerce-spa bench/rooms --kind rooms

What was decided by eye is in more_photographs.json: logos that are left out, where furniture is in a room (in percent
of the image), which shop's pictures ask for it. OUT/origin.json says which file of the source each image is.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.lab.needlebench.folder import complete, write_json

Box = tuple[int, int, int, int]  # x0, y0, x1, y1

GALLERY, QUERIES = 18, 5  # photographs of a brand
SMALL = 0.002, 0.06  # shares of the image: of the largest logo on a photograph of the gallery
MIN_BOX, MIN_QUERY = 4, 60  # pixels: a logo's shorter side; the longer one of a query
MAX_LIKENESS = 0.8  # of a query's photograph to those of the gallery: more is the same photograph again
MAX_SIDE = 1600


@dataclass
class Folder:
    """A folder of NeedleBench's format, without masks."""

    path: Path
    gallery: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)

    def add_image(self, image: Image.Image, objects: list[tuple[str, Box]], origin: str) -> None:
        file = f"gallery/{len(self.gallery):03d}.jpg"
        self._save(image, file, origin)
        labelled = [{"instance": instance, "box": box} for instance, box in objects]
        self.gallery.append({"file": file, "mask": None, "objects": labelled})

    def add_query(self, image: Image.Image, instance: str, origin: str) -> None:
        file = f"queries/{len(self.queries):03d}.png"
        self._save(image, file, origin)
        self.queries.append({"file": file, "instance": instance})

    def _save(self, image: Image.Image, file: str, origin: str) -> None:
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        image.save(self.path / file, quality=95)
        self.origin[file] = origin

    def write(self) -> None:
        write_json(self.path / "origin.json", self.origin)
        complete(self.path, self.gallery, self.queries)
        print(f"{self.path}: {len(self.gallery)} photographs, {len(self.queries)} queries")


def side(box: Box) -> int:
    """The longer one."""
    return max(box[2] - box[0], box[3] - box[1])


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def around(image: Image.Image, box: Box, margin: float) -> Image.Image:
    x0, y0, x1, y1 = box
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    return image.crop((left, top, min(image.width, int(x1 + margin)), min(image.height, int(y1 + margin))))


@dataclass(eq=False)
class Logo:
    """A photograph with a brand's logos."""

    image: Image.Image
    boxes: list[Box]
    origin: str

    @property
    def largest(self) -> Box:
        return max(self.boxes, key=area)

    @property
    def share(self) -> float:
        return area(self.largest) / (self.image.width * self.image.height)

    def look(self) -> NDArray[np.float64]:
        """Unit vector of the whole image, shrunk: near-copies have nearly the same."""
        shrunk = np.asarray(self.image.resize((12, 12), Image.Resampling.BILINEAR), np.float64).ravel()
        centred: NDArray[np.float64] = shrunk - shrunk.mean()
        return centred / (float(np.linalg.norm(centred)) + 1e-9)


def number(file: Path) -> int:
    return int("".join(filter(str.isdigit, file.name)))


def read_logo(data: Path, boxes_file: Path) -> Logo:
    """Of a file of boxes, a line each: x, y, width, height, brand."""
    brand, name = boxes_file.parent.name, boxes_file.name.removesuffix(".bboxes.txt")
    image = Image.open(data / "jpg" / brand / name).convert("RGB")
    boxes = []
    for line in filter(str.strip, boxes_file.read_text().splitlines()):
        x, y, width, height = map(int, line.split()[:4])
        box = max(0, x), max(0, y), min(image.width, x + width), min(image.height, y + height)
        if min(box[2] - box[0], box[3] - box[1]) >= MIN_BOX:
            boxes.append(box)
    return Logo(image, boxes, f"{brand}/{name}")


def logos(checkout: Path, choices: dict[str, Any], folder: Folder) -> None:
    """Photographs with small logos are the gallery; crops of others, with logos of any size, ask for them."""
    data, rng = checkout / "data", random.Random(0)
    for brand, left_out in choices["left_out"].items():
        files = sorted(file for file in (data / "masks" / brand).iterdir() if number(file) not in left_out)
        photographs = [read_logo(data, file) for file in files]
        rng.shuffle(photographs)
        gallery = [logo for logo in photographs if SMALL[0] <= logo.share <= SMALL[1]][:GALLERY]
        instance, looks = brand.rstrip("0"), np.stack([logo.look() for logo in gallery])
        for logo in gallery:
            folder.add_image(logo.image, [(instance, box) for box in logo.boxes], logo.origin)
        others = [
            logo
            for logo in photographs
            if logo not in gallery
            and side(logo.largest) >= MIN_QUERY
            and (looks @ logo.look()).max() <= MAX_LIKENESS
        ]
        for logo in others[:QUERIES]:
            query = around(logo.image, logo.largest, 0.08 * side(logo.largest))
            folder.add_query(query, instance, logo.origin)


def read_room(checkout: Path, name: str) -> Image.Image:
    places = [checkout / "assets/images" / part / f"{name}.jpg" for part in ("", "e-commerce")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise SystemExit(f"{checkout} has no {name}.jpg: is it at the commit in more_photographs.json?")
    return Image.open(file).convert("RGB")


def content(image: Image.Image, white: int, share: float) -> Box:
    """First and last column and row of which more than a share is darker than white."""
    dark = np.asarray(image).min(axis=2) < white
    columns, rows = (np.flatnonzero(dark.mean(axis=axis) > share) for axis in (0, 1))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def in_pixels(percent: list[int], image: Image.Image) -> Box:
    left, top, right, bottom = (p / 100 for p in percent)
    width, height = image.size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def rooms(checkout: Path, choices: dict[str, Any], folder: Folder) -> None:
    """Photographs of rooms are the gallery; a shop's pictures of furniture, on white, ask for it."""
    for name, things in choices["photographs"].items():
        image = read_room(checkout, name)
        x0, y0, x1, y1 = content(image, 248, 0.02)
        image = image.crop((x0, y0, x1 + 1, y1 + 1))
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        objects = [(instance, in_pixels(percent, image)) for instance, *percent in things]
        folder.add_image(image, objects, name)
    for name in choices["queries"]:
        image = read_room(checkout, name)
        box = content(image, 251, 0.0018)
        folder.add_query(around(image, box, int(0.05 * side(box))), name[:-1], name)


KINDS: dict[str, Callable[[Path, dict[str, Any], Folder], None]] = {"logos": logos, "rooms": rooms}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="of the repository of this kind")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, required=True)
    arguments = parser.parse_args()
    choices = json.loads(Path(__file__).with_suffix(".json").read_text())[arguments.kind]
    folder = Folder(arguments.out)
    KINDS[arguments.kind](arguments.checkout, choices, folder)
    folder.write()


if __name__ == "__main__":
    main()
