"""What decoding JPEG files at a reduced size saves, and what it costs: `ReadOptions(reduce=...)`.

    python benchmarks/reduced.py --images 8

Photographs that ship. time: each is enlarged to 48 million pixels and decoded as it is and with
`reduce=10_000_000`, at half its sides; milliseconds, median, and megabytes of pixels. vectors: the middle of
each as it is, 768 x 576 pixels, and decoded at half its sides, 384 x 288, as vectors of one object: it is larger
than the encoder's 224 pixels in both, as a thing of half a percent of an image of 10 million pixels is; their
cosine. small: the same of 192 x 144 pixels, which is larger than that in neither. other: the cosine of the middles of
different photographs.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from soir_qdrant.images.pixels import from_bytes
from soir_qdrant.lab.demo import photographs
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import RGB, Box, Vector

PIXELS, ENOUGH = 48_000_000, 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    count = parser.parse_args().images
    files = sorted((photographs() / "gallery").glob("*.jpg"))[:: max(1, 24 // count)][:count]
    spent: dict[int | None, list[float]] = {None: [], ENOUGH: []}
    for file in files[:4]:
        data = enlarged(file)
        for enough, seconds in spent.items():
            start = time.perf_counter()
            rgb = from_bytes(data, file.name, PIXELS * 2, enough).rgb
            seconds.append(time.perf_counter() - start)
            print(f"{file.name}: {rgb.shape[1]} x {rgb.shape[0]}, {rgb.nbytes >> 20} MB", flush=True)
    print({enough: f"{1000 * np.median(seconds):.0f} ms" for enough, seconds in spent.items()}, flush=True)
    pipeline = Pipeline()
    for name, share in (("vectors", 0.6), ("small", 0.15)):
        pairs = [[middle(pipeline, rgb, share) for rgb in sizes(file)] for file in files]
        same = [float(a @ b) for a, b in pairs]
        other = [float(pairs[i][0] @ pairs[j][0]) for i in range(len(pairs)) for j in range(i)]
        print(f"{name}: least {min(same):.4f}, median {np.median(same):.4f}; other {max(other):.3f} at most")


def enlarged(file: Path) -> bytes:
    with Image.open(file) as image:
        factor = (PIXELS / (image.width * image.height)) ** 0.5
        large = image.convert("RGB").resize((round(image.width * factor), round(image.height * factor)))
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sizes(file: Path) -> tuple[RGB, RGB]:
    """As it is, and at half its sides."""
    data = file.read_bytes()
    whole = from_bytes(data, file.name, PIXELS).rgb
    return whole, from_bytes(data, file.name, PIXELS, whole.shape[0] * whole.shape[1] // 4).rgb


def middle(pipeline: Pipeline, rgb: RGB, share: float) -> Vector:
    """The vector of an object in the middle, so large a share of each side."""
    height, width = rgb.shape[:2]
    low, high = (1 - share) / 2, (1 + share) / 2
    box: Box = (width * low, height * low, width * high, height * high)
    return pipeline.query(rgb, box=box)


if __name__ == "__main__":
    main()
