"""`soir demo`: photographs that ship are ingested and searched, beside a search by whole images."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from soir_qdrant.images import load as load_image
from soir_qdrant.ingest.ingestor import SoirIngestor, summary
from soir_qdrant.lab.evaluate.bench import Bench, BenchQuery, load
from soir_qdrant.lab.evaluate.metrics import (
    Bools,
    average_precision,
    chance_precision,
    chance_recall,
    placed,
    ranking,
    recall_at,
)
from soir_qdrant.lab.evaluate.plain_rows import PlainRows
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.transport import connect
from soir_qdrant.report.explain import explain
from soir_qdrant.report.html import Search, Shown, heat, write
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import RGB, Box, Hit, LoadedImage, SceneObject

COLLECTION, WHOLE = "demo", "global"
EXPLAINED, TOP, MAX_MAPPED = 2, 4, 10  # queries with attention maps, hits shown, objects of a map
LEAD = (
    "Each query is one thing, cut out of another photograph. Every image was stored as ONE vector, made from the "
    "objects that a detector found in it (thin boxes). Green: the stored object that matched best. Below some: "
    "the attention map of the image's joint token over that object, before and after refinement."
)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one query.

    Attributes:
        query: the thing.
        hits: of `search()`, the whole gallery.
        right: bool [n], in the order of the hits, whether an image holds the thing.
        whole: the same in the order of a search by descriptors of whole images.
        box: whether the first hit's box lies on the thing; None where that hit is wrong.
    """

    query: BenchQuery
    hits: list[Hit]
    right: Bools
    whole: Bools
    box: bool | None


def photographs() -> Path:
    """The folder of the photographs that ship, their boxes and licences."""
    return Path(str(resources.files("soir_qdrant") / "data" / "demo"))


def run(folder: Path, *, show: bool = False) -> Path:
    """Ingest the photographs, search, print a table and write FOLDER/index.html. Resumable.

    Args:
        folder: of the page and of the embedded Qdrant (FOLDER/qdrant).
        show: open the page in a browser, where there is one.

    Returns:
        The page.
    """
    console, start = Console(), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    bench, pipeline = load(photographs()), Pipeline()
    client = connect(path=folder / "qdrant")
    ingestor = SoirIngestor(client, COLLECTION, pipeline=pipeline)
    console.print(summary(ingestor.add(bench.root / "gallery")), highlight=False)
    results = _results(SoirSearcher(client, COLLECTION, pipeline=pipeline), bench)
    client.close()
    figures = _figures(bench, results)
    console.print(_table(results))
    for key, value in figures:
        console.print(f"{key}: {value}", highlight=False)
    searches = [_shown(pipeline, one, explained=i < EXPLAINED) for i, one in enumerate(results)]
    page = folder / "index.html"
    write(page, "soir_qdrant: small things found in photographs", LEAD, figures, searches)
    console.print(f"{page} written, {time.perf_counter() - start:.0f} s in all", highlight=False)
    console.print(f"draw boxes yourself: soir serve --path {folder / 'qdrant'}", highlight=False)
    if show and _has_browser():
        webbrowser.open(page.resolve().as_uri())
    return page


def _has_browser() -> bool:
    """Whether somebody sits at a screen: a page for a log, or in a browser of the terminal, helps nobody."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _results(searcher: SoirSearcher, bench: Bench) -> list[Result]:
    rows = PlainRows(searcher.pipeline)
    whole = np.stack([rows.image(load_image(one.file).rgb, [], [WHOLE])[WHOLE] for one in bench.gallery])
    index = {entry.file.name: i for i, entry in enumerate(bench.gallery)}
    results = []
    for query in bench.queries:
        relevant = bench.relevant(query)
        hits = searcher.search(query.file, limit=len(bench.gallery))
        order = [index[Path(str(hit.uri)).name] for hit in hits]
        descriptor = rows.query(load_image(query.file).rgb, [WHOLE])[WHOLE]
        right, by_whole = np.isin(order, relevant), np.isin(ranking(whole @ descriptor), relevant)
        true = [o.box for o in bench.gallery[order[0]].objects if o.instance == query.instance]
        box = placed(hits[0].box, true) if right[0] else None
        results.append(Result(query, hits, right, by_whole, box))
    return results


def _table(results: list[Result]) -> Table:
    names = ("thing", "images", "whole image: first right", "AP", "search(): first right", "AP", "its box")
    table = Table(*names, title="Where each thing was found")
    for one in results:
        cells = []
        for right in (one.whole, one.right):
            cells += [_first(right), f"{average_precision(right):.0f}"]
        box = {True: "right", False: "wrong", None: "-"}[one.box]
        table.add_row(one.query.instance, str(int(one.right.sum())), *cells, box)
    return table


def _first(right: Bools) -> str:
    """Rank of the first right image."""
    return f"#{int(np.argmax(right)) + 1}"


def _figures(bench: Bench, results: list[Result]) -> list[tuple[str, str]]:
    n, counts = len(bench.gallery), [int(one.right.sum()) for one in results]
    rows = {"search()": [one.right for one in results], "whole image": [one.whole for one in results]}
    precision = {name: np.mean([average_precision(right) for right in row]) for name, row in rows.items()}
    first = {name: np.mean([recall_at(right, 1) for right in row]) for name, row in rows.items()}
    precision["chance"] = np.mean([chance_precision(count, n) for count in counts])
    first["chance"] = np.mean([chance_recall(count, n, 1) for count in counts])
    boxes = [one.box for one in results if one.box is not None]
    return [
        ("photographs, queries", f"{n}, {len(results)}"),
        ("mAP", ", ".join(f"{name} {value:.1f}" for name, value in precision.items())),
        ("first hit right", ", ".join(f"{name} {value:.0f} %" for name, value in first.items())),
        ("box on the thing (IoU >= 0.5)", f"{sum(boxes)} of {len(boxes)} right first hits"),
    ]


def _shown(pipeline: Pipeline, one: Result, *, explained: bool) -> Search:
    shown = []
    for rank, hit in enumerate(one.hits[:TOP]):
        image = load_image(str(hit.uri)).rgb
        boxes: list[Box] = [tuple(o["box"]) for o in hit.payload["soir"]["objects"]]
        caption = f"#{rank + 1}, score {hit.score:.2f}, {Path(str(hit.uri)).name}"
        shown.append(Shown(image, boxes, hit.box, caption, bool(one.right[rank])))
    title = (
        f"{one.query.instance}: in {int(one.right.sum())} images, the first of them {_first(one.right)} "
        f"(by whole images: {_first(one.whole)})"
    )
    maps = _maps(pipeline, shown[0]) if explained else []
    return Search(title, load_image(one.query.file).rgb, shown, maps)


def _maps(pipeline: Pipeline, hit: Shown) -> list[tuple[str, RGB]]:
    """Crop, mask, and map of the joint token before and after MaO's refinement, for the matched object."""
    if hit.matched is None:
        return []
    others = [box for box in hit.boxes if box != hit.matched][: MAX_MAPPED - 1]
    image = LoadedImage(hit.image, hit.caption, None, "")
    first = explain(pipeline, image, [SceneObject(box) for box in [hit.matched, *others]])[0]
    return [
        ("matched object", first.crop),
        ("its mask", heat(first.crop, first.mask)),
        ("map before", heat(first.crop, first.before)),
        ("map after refinement", heat(first.crop, first.after)),
    ]
