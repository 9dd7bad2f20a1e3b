"""What a badly drawn box costs: things of labelled photographs asked for by boxes whose sides are off.

    python benchmarks/drawn_boxes.py PHOTOS/dev-things PHOTOS/dev-chess

Queries are objects of the gallery's own images, --each of every instance, in boxes as a user draws them: as
labelled, each side off by up to 10 and 20 % of the box' own, all sides 20 % too far out or in. The image that the box
was drawn in does not count. mAP of `search()` (the default) and the share of queries whose first hit is right; each
also with the box first moved as detected ones are, by tokens of the whole image. --db keeps what was ingested.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient

from soir_qdrant import SoirIngestor, SoirSearcher
from soir_qdrant.assembly import make_pipeline
from soir_qdrant.config import Settings
from soir_qdrant.images import load as load_image
from soir_qdrant.ingest.outcome import summary
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.evaluate.datasets import AUTO, load
from soir_qdrant.lab.evaluate.metrics import average_precision
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import Box

Draw = Callable[[np.random.Generator], np.ndarray]  # how far each side is off, in sides of the box, outwards

WAYS: dict[str, Draw] = {
    "as labelled": lambda _: np.zeros(4),
    "up to 10 % off": lambda rng: rng.uniform(-0.1, 0.1, 4),
    "up to 20 % off": lambda rng: rng.uniform(-0.2, 0.2, 4),
    "20 % too large": lambda _: np.full(4, 0.2),
    "20 % too small": lambda _: np.full(4, -0.2),
}


def drawn(box: Box, off: np.ndarray, width: int, height: int) -> Box:
    """The box with its left, top, right and bottom side moved outwards, inside the image."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    left, top = max(x0 - off[0] * w, 0), max(y0 - off[1] * h, 0)
    return (float(left), float(top), float(min(x1 + off[2] * w, width)), float(min(y1 + off[3] * h, height)))


def queries_of(bench: Bench, each: int) -> Iterator[tuple[GalleryImage, str, Box]]:
    """Of every instance that several images show: images that it is asked for from, and its box there."""
    places: dict[str, list[tuple[GalleryImage, Box]]] = defaultdict(list)
    for entry in bench.gallery:
        for item in entry.objects:
            if item.instance and all(entry is not other for other, _ in places[item.instance]):
                places[item.instance].append((entry, item.box))
    for instance, listed in sorted(places.items()):
        if len(listed) > 1:
            for i in np.random.default_rng(0).permutation(len(listed))[:each]:
                yield listed[i][0], instance, listed[i][1]


def measured(bench: Bench, client: QdrantClient, pipeline: Pipeline, each: int) -> Iterator[str]:
    """A line for each way of drawing, and of searching with it. An image is opened, and looked at whole, once."""
    files = [entry.file for entry in bench.gallery]
    name = bench.root.name
    print(summary(SoirIngestor(client, name, pipeline=pipeline).add(files)), flush=True)
    searcher = SoirSearcher(client, name, pipeline=pipeline)
    holds = {str(entry.file): {item.instance for item in entry.objects} for entry in bench.gallery}
    rngs = {drawn_so: np.random.default_rng(0) for drawn_so in WAYS}
    rows = defaultdict[tuple[str, str], list[tuple[float, bool]]](list)
    for entry, instance, box in queries_of(bench, each):
        image = load_image(entry.file)
        for drawn_so, draw in WAYS.items():
            at = drawn(box, draw(rngs[drawn_so]), image.width, image.height)
            ((fitted, _),) = pipeline.segmenter.refine_boxes(image.rgb, np.array([at]))
            for way, place in (("as drawn", at), ("fitted", fitted)):
                hits = searcher.search(image.rgb, box=place, limit=len(files))
                ranked = np.array(
                    [instance in holds[str(hit.uri)] for hit in hits if hit.uri != str(entry.file)]
                )
                rows[drawn_so, way].append((average_precision(ranked), bool(ranked[0])))
    for (drawn_so, way), row in rows.items():
        precision, right = np.mean(row, axis=0)
        yield f"{drawn_so}, {way}: {precision:.1f} mAP, {100 * right:.0f} % ({len(row)} queries)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="labelled folders; see `soir evaluate`")
    parser.add_argument("--profile", default="embedded", help="a name, or a JSON file of settings")
    parser.add_argument(
        "--db", type=Path, default=Path("build/drawn-boxes"), help="folder of the collections"
    )
    parser.add_argument("--each", type=int, default=4, help="queries of each instance")
    chosen = parser.parse_args()
    pipeline = make_pipeline(Settings.for_profile(chosen.profile))
    client = QdrantClient(path=str(chosen.db))
    for folder in chosen.folders:
        print(folder.name, flush=True)
        for line in measured(load(folder, AUTO), client, pipeline, chosen.each):
            print(line, flush=True)


if __name__ == "__main__":
    main()
