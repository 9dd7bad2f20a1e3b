"""How much of the text in images is read: words on composed packets, and names of products on photographed shelves.

python benchmarks/reading.py --scenes 25
python benchmarks/reading.py --photos PHOTOS/dev-things --every 2 --only shop/

Composed: cards with a known word, turned, lit and bent as NeedleBench does with its things, half a percent to three
of a photograph's area, 1024 x 768 pixels, JPEG. A word counts as read where the text of its object has it, whole, in
any case: what `filters.has_text` finds. Photographed: of objects whose packet says their name (`NAMES`) the share whose
own text has it, and of images with such an object the share that the name finds; boxes are the labelled ones. What is
printed on the hidden side, or too small, counts as missed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from soir_qdrant.config import OcrSettings
from soir_qdrant.images import load
from soir_qdrant.lab.needlebench.compose import (
    LARGEST,
    RGBA,
    SMALLEST,
    Pose,
    Scene,
    crop_ground,
    develop,
    encode_jpeg,
    relight,
    resize_area,
)
from soir_qdrant.models.ocr import TextReader, assigned
from soir_qdrant.serving.check_images import backgrounds
from soir_qdrant.types import SceneObject

SIZE = (1024, 768)
CARDS = 6  # of a scene
POSE = Pose(turn=15, corner_shift=0.05)
PRINTED = (
    "Milk Coffee Sugar Butter Honey Pepper Tomato Soup Cocoa Vanilla Lemon Organic Classic Original Rice Noodles "
    "Olive Garlic Bread Cheese Yoghurt Orange Apple Cherry Almond Oat Barley Ginger Mustard Ketchup Tuna Salmon"
)
WORDS = PRINTED.split()
HEIGHTS = (0, 8, 12, 16, 24, 1000)  # of capitals, in pixels: the bins that are printed
NAMES = {  # what the packets of dev-things say
    "shop/pepsi-can": ("pepsi",),
    "shop/pepsi-bottle": ("pepsi",),
    "shop/coke-can": ("coca", "cola", "coke"),
    "shop/coke-bottle": ("coca", "cola", "coke"),
    "shop/kitkat": ("kitkat", "kit", "kat"),
    "shop/lemon puff": ("lemon", "puff"),
}


def words_of(text: str | None) -> set[str]:
    """Whole words, in lower case, as Qdrant's index has them."""
    return set(re.findall(r"\w+", (text or "").lower()))


def card(word: str, rng: np.random.Generator) -> tuple[RGBA, int]:
    """A packet with a word across it, and the height of its capitals."""
    font = ImageFont.load_default(size=int(rng.integers(60, 110)))
    left, top, right, bottom = font.getbbox(word)
    width, height = int(right - left) + 60, int((bottom - top) * rng.uniform(2, 5)) + 60
    dark = rng.random() < 0.5
    paper, ink = (rng.integers(low, high, 3) for low, high in ((150, 256), (0, 90))[:: -1 if dark else 1])
    image = Image.new("RGBA", (width, height), (*paper.tolist(), 255))
    at = (30 - left, float(rng.uniform(30, height - 30 - (bottom - top))) - top)
    ImageDraw.Draw(image).text(at, word, fill=(*ink.tolist(), 255), font=font)
    capital = font.getbbox("H")
    return np.asarray(image), int(capital[3] - capital[1])


def composed(seed: int) -> tuple[np.ndarray, list[tuple[str, float, SceneObject]]]:
    """A scene, and of each of its cards the word, the height of its capitals in pixels, and the object."""
    rng = np.random.default_rng(seed)
    photographs = backgrounds()
    scene, placed = Scene(crop_ground(photographs[seed % len(photographs)], SIZE, rng)), []
    for word in rng.choice(WORDS, CARDS, replace=False):
        for _ in range(30):
            flat, capital = card(str(word), rng)
            area = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))) * SIZE[0] * SIZE[1]
            posed = relight(resize_area(flat, area, POSE, rng), rng)
            x, y = (int(rng.integers(max(1, a - b))) for a, b in zip(SIZE, posed.shape[1::-1], strict=True))
            if scene.fits(posed, x, y, None):
                scene.paste(posed, x, y, rng)
                placed.append((str(word), capital * (area / (flat.shape[0] * flat.shape[1])) ** 0.5))
                break
    image = develop(scene.rgb, rng)
    data = cv2.imdecode(np.frombuffer(encode_jpeg(image, 88), np.uint8), cv2.IMREAD_COLOR)
    boxes = [scene.box(i) for i in range(len(placed))]
    listed = [
        (*one, SceneObject(tuple(map(float, box)))) for one, box in zip(placed, boxes, strict=True) if box
    ]
    return cv2.cvtColor(data, cv2.COLOR_BGR2RGB), listed


def on_scenes(reader: TextReader, seeds: Iterable[int]) -> None:
    counts: dict[int, list[bool]] = defaultdict(list)
    others = 0
    for seed in seeds:
        image, cards = composed(seed)
        objects, rest = assigned(reader.read(image), [item for _, _, item in cards])
        own = set()
        for (word, height, _), item in zip(cards, objects, strict=True):
            counts[int(np.digitize(height, HEIGHTS)) - 1].append(word.lower() in words_of(item.text))
            own |= {word.lower()}
        others += len((words_of(rest) | {w for item in objects for w in words_of(item.text)}) - own)
        print(
            f"scene {seed}: {sum(map(sum, counts.values()))} of {sum(map(len, counts.values()))}", flush=True
        )
    for i, read in sorted(counts.items()):
        print(f"capitals of {HEIGHTS[i]} to {HEIGHTS[i + 1]} px: {sum(read)} of {len(read)} words read")
    print(f"other words, of no card or misread: {others}")


def on_photographs(reader: TextReader, folder: Path, only: str, every: int) -> None:
    gallery = json.loads((folder / "annotations.json").read_text())["gallery"]
    listed = [entry for entry in gallery if any(o["instance"].startswith(only) for o in entry["objects"])][
        ::every
    ]
    objects_read: dict[str, list[bool]] = defaultdict(list)
    images_read: dict[str, list[tuple[bool, bool]]] = defaultdict(list)  # by the words: there, found
    for entry in listed:
        boxes = [SceneObject(tuple(map(float, o["box"])), label=o["instance"]) for o in entry["objects"]]
        objects, rest = assigned(reader.read(load(folder / entry["file"]).rgb), boxes)
        every_word = set().union(words_of(rest), *(words_of(item.text) for item in objects))
        for item in objects:
            if item.label in NAMES:
                objects_read[str(item.label)].append(bool(words_of(item.text) & set(NAMES[str(item.label)])))
        for names in set(NAMES.values()):
            there = any(NAMES.get(str(item.label)) == names for item in objects)
            images_read[names[0]].append((there, bool(every_word & set(names))))
        print(f"{entry['file']}: {sorted(every_word)}", flush=True)
    for label, read in sorted(objects_read.items()):
        print(f"{label}: {sum(read)} of {len(read)} objects have their name in their text")
    for name, pairs in sorted(images_read.items()):
        right = sum(there and hit for there, hit in pairs)
        print(
            f"{name}: found in {right} of {sum(there for there, _ in pairs)} images with it, "
            f"{sum(hit and not there for there, hit in pairs)} wrongly, of {len(pairs)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=0, help="composed ones")
    parser.add_argument("--first", type=int, default=0, help="the first scene's number")
    parser.add_argument("--photos", type=Path, help="a folder with annotations.json")
    parser.add_argument("--only", default="shop/", help="start of the labels of images that are read")
    parser.add_argument("--every", type=int, default=2, help="one of so many of these images")
    options = parser.parse_args()
    reader = TextReader(OcrSettings())
    on_scenes(reader, range(options.first, options.first + options.scenes))
    if options.photos:
        on_photographs(reader, options.photos, options.only, options.every)


if __name__ == "__main__":
    main()
