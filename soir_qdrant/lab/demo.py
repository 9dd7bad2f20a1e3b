"""`soir demo`: the whole way once, on scenes made from the pictures that ship, and a page to look at."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from soir_qdrant import images as pictures
from soir_qdrant.ingest.ingestor import SoirIngestor, summary
from soir_qdrant.lab.evaluate.bench import Bench, BenchQuery, load
from soir_qdrant.lab.evaluate.metrics import average_precision, chance_precision, placed, recall_at
from soir_qdrant.lab.needlebench.needle import generate
from soir_qdrant.lab.needlebench.sources import Sources
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.transport import connect
from soir_qdrant.report.explain import explain
from soir_qdrant.report.html import Search, Shown, heat, write
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import RGB, Box, Hit, LoadedImage, SceneObject

TARGETS, SHOWN, EXPLAINED, TOP = 12, 8, 4, 4


def run(folder: Path, *, scenes: int = 32) -> Path:
    """Make `scenes` scenes, ingest them, search, print a table and write FOLDER/index.html. Resumable."""
    console, start = Console(), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    made = generate(
        folder / f"scenes-{scenes}",
        split="test",
        track="2d",
        scenes=scenes,
        targets=TARGETS,
        sources=Sources.shipped(),
    )
    bench, pipeline = load(made), Pipeline()
    client = connect(path=folder / "qdrant")
    name = f"scenes-{scenes}"
    ingestor = SoirIngestor(client, name, pipeline=pipeline, keep_objects=True)
    report = ingestor.add(made / "gallery")
    console.print(summary(report), highlight=False)
    searcher = SoirSearcher(client, name, pipeline=pipeline)
    found = [_search(searcher, bench, query) for query in bench.queries]
    figures = _figures(bench, found)
    table = Table(
        "query", "rank of the first right picture", "AP", "box on the thing", title="What was found"
    )
    for query, hits in zip(bench.queries, found, strict=True):
        right = _right(bench, query, hits)
        place = _placed(bench, query, hits[0]) if right[0] else None
        first = int(np.argmax(right)) + 1 if right.any() else "-"
        box = {True: "yes", False: "no", None: "-"}[place]
        table.add_row(query.file.name, str(first), f"{average_precision(right):.0f}", box)
    console.print(table)
    for key, value in figures:
        console.print(f"{key}: {value}", highlight=False)
    searches = [
        _shown(pipeline, bench, query, hits, explained=i < EXPLAINED)
        for i, (query, hits) in enumerate(zip(bench.queries[:SHOWN], found, strict=False))
    ]
    page = folder / "index.html"
    lead = (
        "Each query is one small thing. Every picture was stored as ONE vector, made from the objects that "
        "a detector found in it (thin boxes). The green box is the stored object that matched best. Below "
        "some: the attention map of the picture's joint token over that object, before and after refinement."
    )
    write(page, "soir_qdrant: small things found", lead, figures, searches)
    client.close()
    console.print(f"{page} written, {time.perf_counter() - start:.0f} s in all", highlight=False)
    return page


def _search(searcher: SoirSearcher, bench: Bench, query: BenchQuery) -> list[Hit]:
    return searcher.search(query.file, limit=len(bench.gallery))


def _index(bench: Bench, hit: Hit) -> int:
    return next(i for i, entry in enumerate(bench.gallery) if entry.file.name == Path(str(hit.uri)).name)


def _right(bench: Bench, query: BenchQuery, hits: list[Hit]) -> NDArray[np.bool_]:
    relevant = set(bench.relevant(query))
    return np.array([_index(bench, hit) in relevant for hit in hits])


def _placed(bench: Bench, query: BenchQuery, hit: Hit) -> bool:
    """Whether the hit's box lies on the thing, IoU >= 0.5."""
    entry = bench.gallery[_index(bench, hit)]
    return placed(hit.box, [o.box for o in entry.objects if o.instance == query.instance])


def _figures(bench: Bench, found: list[list[Hit]]) -> list[tuple[str, str]]:
    right = [_right(bench, query, hits) for query, hits in zip(bench.queries, found, strict=True)]
    n = len(bench.gallery)
    chance = np.mean([chance_precision(len(bench.relevant(query)), n) for query in bench.queries])
    best = [(q, hits[0]) for q, hits, r in zip(bench.queries, found, right, strict=True) if r[0]]
    placed = np.mean([_placed(bench, query, hit) for query, hit in best]) if best else 0.0
    return [
        ("pictures, queries", f"{n}, {len(bench.queries)}"),
        ("mAP (chance)", f"{np.mean([average_precision(r) for r in right]):.1f} ({chance:.1f})"),
        ("first hit right, R@1", f"{np.mean([recall_at(r, 1) for r in right]):.0f} %"),
        ("of those, box on the thing (IoU >= 0.5)", f"{100 * placed:.0f} %"),
    ]


def _shown(
    pipeline: Pipeline, bench: Bench, query: BenchQuery, hits: list[Hit], *, explained: bool
) -> Search:
    right = _right(bench, query, hits)
    shown = []
    for rank, hit in enumerate(hits[:TOP]):
        boxes: list[Box] = [tuple(o["box"]) for o in hit.payload["soir"]["objects"]]
        entry = bench.gallery[_index(bench, hit)]
        caption = f"#{rank + 1}, score {hit.score:.2f}, {entry.file.name}"
        shown.append(Shown(pictures.load(entry.file).rgb, boxes, hit.box, caption, bool(right[rank])))
    image = pictures.load(query.file)
    maps = _maps(pipeline, shown[0]) if explained else []
    return Search(f"{query.file.name} ({int(right.sum())} pictures hold it)", image.rgb, shown, maps)


def _maps(pipeline: Pipeline, hit: Shown, most: int = 10) -> list[tuple[str, RGB]]:
    """Crop, mask, and map of the joint token before and after MaO's refinement, for the matched object."""
    if hit.matched is None:
        return []
    others = [box for box in hit.boxes if box != hit.matched][: most - 1]
    image = LoadedImage(hit.image, hit.caption, None, "")
    first = explain(pipeline, image, [SceneObject(box) for box in [hit.matched, *others]])[0]
    return [
        ("matched object", first.crop),
        ("its mask", heat(first.crop, first.mask)),
        ("map before", heat(first.crop, first.before)),
        ("map after refinement", heat(first.crop, first.after)),
    ]
