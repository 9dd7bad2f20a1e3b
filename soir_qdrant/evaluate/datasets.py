"""Published small-object sets as a `Bench`, laid out as docs/evaluation.md says; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soir_qdrant.errors import DatasetError
from soir_qdrant.evaluate import bench
from soir_qdrant.evaluate.bench import Bench, BenchObject, BenchQuery, GalleryImage

Entry = dict[str, Any]


def load(folder: Path, layout: str = "needle") -> Bench:
    """layout: "needle", "voxdet", "instre" or "permir". Raises DatasetError saying what is missing and where
    the set can be had."""
    if layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout](folder.expanduser().resolve())


def voxdet(folder: Path) -> Bench:
    """VoxDet-SoIR: `anns.pt`, a dict with "gallery" and "queries", beside the pictures it names.

    gallery: file -> list of {"instance", "bbox": [x, y, w, h]}; queries: list of {"file", "instance"}.
    """
    import torch

    file = folder / "anns.pt"
    _need(
        file,
        "VoxDet-SoIR: the authors of arXiv 2503.07038 publish it beside their code; VoxDet's pictures "
        "come from github.com/Jaraxxus-Me/VoxDet",
    )
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise DatasetError(f"{file}: not readable by torch.load(weights_only=True): {error}") from error
    return _bench(folder, held, file)


def permir(folder: Path) -> Bench:
    """PerMiR: `permir.json` in the layout of `voxdet`, beside the pictures it names."""
    file = folder / "permir.json"
    _need(file, "PerMiR: github.com/NVlabs/PDM publishes it")
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise DatasetError(f"{file}: not JSON ({error})") from error
    return _bench(folder, held, file)


def instre(folder: Path) -> Bench:
    """INSTRE-XS and -XXS: for each picture a text file of its name with one line "class x y w h" per object;
    gallery/ and queries/ hold the pictures, and the first line of a query's file names its thing."""
    gallery, queries = folder / "gallery", folder / "queries"
    for part in (gallery, queries):
        _need(
            part,
            "INSTRE: www.vipl.ict.ac.cn publishes it; make gallery/ and queries/ by the lists of arXiv "
            "2503.07038",
        )
    images = [
        GalleryImage(p, None, [BenchObject(name, box) for name, box in _lines(p)]) for p in _pictures(gallery)
    ]
    asked = [BenchQuery(p, _lines(p)[0][0]) for p in _pictures(queries)]
    return _checked(Bench(folder, images, asked))


LAYOUTS: dict[str, Callable[[Path], Bench]] = {
    "needle": bench.load,
    "voxdet": voxdet,
    "instre": instre,
    "permir": permir,
}


def _bench(folder: Path, held: Any, file: Path) -> Bench:
    try:
        images = [
            GalleryImage(_picture(folder, name), None, [_object(entry) for entry in entries])
            for name, entries in held["gallery"].items()
        ]
        asked = [BenchQuery(_picture(folder, q["file"]), str(q["instance"])) for q in held["queries"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{file}: not laid out as docs/evaluation.md says ({error!r})") from error
    return _checked(Bench(folder, images, asked))


def _object(entry: Entry) -> BenchObject:
    x, y, width, height = (float(v) for v in entry["bbox"])
    return BenchObject(str(entry["instance"]), (x, y, x + width, y + height))


def _lines(picture: Path) -> list[tuple[str, tuple[float, float, float, float]]]:
    file = picture.with_suffix(".txt")
    _need(file, "it should hold a line 'class x y w h' for each object of the picture")
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            name, *numbers = line.split()
            x, y, width, height = (float(v) for v in numbers)
        except ValueError as error:
            raise DatasetError(f"{file}, line {number}: expected 'class x y w h', found {line!r}") from error
        rows.append((name, (x, y, x + width, y + height)))
    if not rows:
        raise DatasetError(f"{file}: empty")
    return rows


def _pictures(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise DatasetError(f"{folder}: no pictures there")
    return found


def _picture(folder: Path, name: str) -> Path:
    file = folder / name
    _need(file, "the annotations name it")
    return file


def _need(file: Path, where: str) -> None:
    if not file.exists():
        raise DatasetError(f"{file} is missing. {where}")


def _checked(made: Bench) -> Bench:
    for query in made.queries:
        if not made.relevant(query):
            raise DatasetError(f"{query.file}: no picture of the gallery holds {query.instance!r}")
    return made
