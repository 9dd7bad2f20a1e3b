"""Results of `soir evaluate` as a table for the terminal, as Markdown, and as a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from soir_qdrant.lab.evaluate.compare import ROWS

Results = Mapping[str, Mapping[str, Any]]


def table(results: Results, title: str) -> Table:
    """One line a row. See docs/how-to/evaluation.md for the columns."""
    sizes = next((list(row["by_size"]) for row in results.values() if row.get("by_size")), [])
    shown = Table("row", "mAP", "R@1", "R@10", *sizes, "box", "ms", title=title, box=SIMPLE)
    for name, row in results.items():
        if name in ROWS:
            cells = [row[key] for key in ("mAP", "R@1", "R@10")] + [row["by_size"].get(s) for s in sizes]
            spent = row.get("ms_per_candidate")
            title = ", ".join(filter(None, (ROWS[name], row.get("encoder"))))
            shown.add_row(title, *map(number, cells), share(row.get("localised")), number(spent, 2))
    shown.caption = (
        f"{', '.join(sizes)}: mAP by size of the thing; R@1: first hit right; box: right boxes among "
        "the right hits of the first ten; ms: of reranking, per candidate"
    )
    return shown


def notes(results: Results) -> list[str]:
    """Lines below the table: the detector, and what ingesting costs."""
    lines = []
    if "detector" in results:
        detector = results["detector"]
        lines.append(
            f"detector: recall@0.5 {detector['recall@0.5']:.3f} at {detector['boxes']:.1f} boxes an image"
        )
        lines.append(f"recall by size: {by_size(detector.get('by_size', {}))}")
    if "ingest" in results:
        lines.append(f"ingesting: {results['ingest']['core_seconds']:.2f} core-seconds an image")
    return lines


def detection_table(results: Results) -> Table:
    """One line a folder, of `detection.evaluate_detector`."""
    columns = ("AR@10", "AR@25", "AR@100", "recall@100", "AP", "recall@0.5")
    shown = Table("folder", "images", "objects", *columns, "boxes", "core-s", box=SIMPLE)
    for name, row in results.items():
        cells = [number(row[column], 3) for column in columns]
        costs = number(row["boxes"]), number(row["core_seconds"], 2)
        shown.add_row(name, str(row["images"]), str(row["objects"]), *cells, *costs)
    shown.caption = (
        "AR: over IoU 0.5 to 0.95; recall@100: at IoU 0.5; recall@0.5, boxes, core-seconds: at the default "
        "threshold and cap; AP: of the images where everything is labelled"
    )
    return shown


def by_size(recalls: Mapping[str, float | None]) -> str:
    """The sizes that there are, each with its recall."""
    return ", ".join(f"{name} {value:.3f}" for name, value in recalls.items() if value is not None)


def number(value: float | None, digits: int = 1) -> str:
    """A cell; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A cell of a share, 0..1."""
    return number(value, 2)


def beside(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> str:
    """A cell of figures of the same queries, [n], n > 1: their mean and, in brackets, the mean difference from the
    baseline's and its standard error."""
    gain = values - baseline
    return f"{values.mean():.1f} ({gain.mean():+.1f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.1f})"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Columns of numbers, and empty ones, stand to the right."""
    right = [not any(row[i].strip("0123456789.") for row in rows) for i in range(len(columns))]
    lines = [columns, ["---:" if number_column else "---" for number_column in right], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_json(file: Path, value: Any) -> None:
    """Write a file, whole or not at all; makes its folder."""
    write_text(file, json.dumps(value, indent=2))


def write_text(file: Path, text: str) -> None:
    """Write a file, whole or not at all; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


@contextmanager
def cache_folder(resume: Path | None, file: Path | None) -> Iterator[Path | None]:
    """Where an evaluation keeps what it ingested: `resume`, which stays; else beside the file of its results,
    removed when the block ends well; else nowhere."""
    if resume is not None or file is None:
        yield resume
        return
    beside = file.with_name(f"{file.name}.cache")
    yield beside
    shutil.rmtree(beside, ignore_errors=True)
