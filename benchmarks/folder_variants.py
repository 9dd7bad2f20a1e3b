"""A folder of many images as real ones are, made of fewer photographs."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from soir_qdrant.images import folder_images

HUGE = (6000, 4000)
DAMAGED_EVERY, TWICE_EVERY, HUGE_EVERY = 100, 110, 125


def fill(photos: Path, count: int, folder: Path) -> Path:
    """Make the folder, unless it is there with so many files. Returns it."""
    if folder.is_dir() and sum(1 for _ in folder.iterdir()) == count:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    sources, random_ = sorted(Path(str(file)) for _, file in folder_images(photos)), random.Random(0)
    previous = b""
    for i in range(count):
        file = folder / f"{i:06}{random_.choices(('.jpg', '.png', '.webp'), (90, 5, 5))[0]}"
        if i % TWICE_EVERY == TWICE_EVERY - 1:
            file.write_bytes(previous)
            continue
        image = variant(Image.open(sources[i % len(sources)]).convert("RGB"), random_, i >= len(sources))
        if i % HUGE_EVERY == HUGE_EVERY - 1:
            file = file.with_suffix(".jpg")
            image = image.resize(HUGE)
        image.save(file, quality=random_.randint(60, 95))
        previous = file.read_bytes()
        if i % DAMAGED_EVERY == DAMAGED_EVERY - 1:
            file.write_bytes(previous[: len(previous) // 3])
    return folder


def variant(image: Image.Image, random_: random.Random, part: bool) -> Image.Image:
    """The image, or a part of it, at another size."""
    if part:
        width, height = (round(side * random_.uniform(0.5, 0.95)) for side in image.size)
        left, top = random_.randint(0, image.width - width), random_.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
    longest = random_.randint(400, 1000)
    scale = longest / max(image.size)
    return image.resize((max(round(image.width * scale), 8), max(round(image.height * scale), 8)))
