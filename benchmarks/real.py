"""Retrieval and detection on real photographs: one file of tables, for one profile or several side by side.

    make bench-real PHOTOS=photos
    python benchmarks/real.py photos --profile embedded --profile mine.json --composed bench/test-2d

Retrieval on every PHOTOS/dev-* (the layout of `soir evaluate`; docs/reference/needlebench.md), with objects detected
and given, and on the composed folders, which stand below. Detection on PHOTOS/check (COCO's layout), on
CHECKED of its images, always the same ones (see lab/evaluate/detection.py). The photographs are not in the
repository: the folder's own LICENSES.md names the repository, the commit and the licence of each source.

What was ingested is kept in the cache folder: a killed run goes on, and a second one only searches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soir_qdrant.cli.console import bar
from soir_qdrant.config import Settings
from soir_qdrant.lab.evaluate import report
from soir_qdrant.lab.evaluate.compare import ROWS, evaluate
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.detection import CAPS, evaluate_detector, labelled_images
from soir_qdrant.lab.evaluate.metrics import SHARES

CHECKED = 150  # images of the folder that detection is measured on
SHOWN = (
    "global-untuned",
    "global",
    "mean",
    "default",
    "search",
    "rerank-codes",
    "rerank-objects",
    "chance",
)
RETRIEVAL = ("set", "objects", "profile", "row", "mAP", "R@1", "R@10", "localised")
DETECTION = (
    *("set", "profile", "images", "objects", *(f"AR@{cap}" for cap in CAPS), "recall@100", "AP"),
    *("recall@0.5", "boxes", *SHARES, "core-s"),
)


@dataclass(frozen=True)
class Work:
    """What is measured. profiles: of `Settings.for_profile`; cache: see `evaluate`."""

    profiles: list[str]
    rows: tuple[str, ...]
    cache: Path
    retrieval: list[dict[str, Any]] = field(default_factory=list)
    detection: list[dict[str, Any]] = field(default_factory=list)

    def search(self, folder: Path) -> Iterator[None]:
        """Objects detected and given, by each profile; stops after each."""
        bench = load(folder)
        for profile in self.profiles:
            for objects in ("detected", "given"):
                with bar(
                    f"{folder.name} {objects} {profile}", len(bench.gallery) + len(bench.queries)
                ) as advance:
                    results = evaluate(
                        bench,
                        objects=objects,
                        rows=self.rows,
                        settings=Settings.for_profile(profile),
                        advance=advance,
                        cache=self.cache,
                    )
                named = {"set": folder.name, "objects": objects, "profile": profile}
                self.retrieval.append(named | {"results": results})
                yield

    def detect(self, folder: Path, count: int) -> Iterator[None]:
        images = labelled_images(folder, max_images=count)
        for profile in self.profiles:
            with bar(f"{folder.name} {profile}", len(images)) as advance:
                results = evaluate_detector(
                    images, Settings.for_profile(profile), advance=advance, cache=self.cache
                )
            self.detection.append({"set": folder.name, "profile": profile, "results": results})
            yield

    def write(self, out: Path) -> str:
        """The file of figures, and the tables beside it."""
        report.write_json(out, {"retrieval": self.retrieval, "detection": self.detection})
        text = self.tables()
        report.write_text(out.with_suffix(".md"), text)
        return text

    def tables(self) -> str:
        retrieval = [
            [one["set"], one["objects"], Path(one["profile"]).stem, *line]
            for one in self.retrieval
            for line in searched(one["results"])
        ]
        detection = [
            [one["set"], Path(one["profile"]).stem, *boxed(one["results"])] for one in self.detection
        ]
        detection += [
            [one["set"], Path(one["profile"]).stem, *stored(one["results"])]
            for one in self.retrieval
            if "detector" in one["results"]
        ]
        return (
            f"{report.markdown(RETRIEVAL, retrieval)}\n{report.markdown(DETECTION, detection)}\n"
            "Columns: docs/how-to/evaluation.md. Of sets that are searched, recall and boxes are of what is stored "
            "(boxes moved to their masks), core-s is of the whole ingesting.\n"
        )


def searched(results: dict[str, Any]) -> Iterator[list[str]]:
    """The cells of each row, from the fourth column on."""
    for name, row in results.items():
        if name in ROWS:
            cells = [report.number(row[key]) for key in ("mAP", "R@1", "R@10")]
            yield [ROWS[name], *cells, report.share(row.get("localised"))]


def boxed(row: dict[str, Any]) -> list[str]:
    """The cells of a measured detector, from the third column on."""
    shares = [*(row[f"AR@{cap}"] for cap in CAPS), row["recall@100"], row["AP"], row["recall@0.5"]]
    sizes = [report.number(row["by_size"][name], 3) for name in SHARES]
    cells = [report.number(value, 3) for value in shares] + [report.number(row["boxes"]), *sizes]
    return [str(row["images"]), str(row["objects"]), *cells, report.number(row["core_seconds"], 2)]


def stored(results: dict[str, Any]) -> list[str]:
    """The same of what was ingested, as far as it is known."""
    row = results["detector"]
    sizes = [report.number(row["by_size"][name], 3) for name in SHARES]
    blank = [""] * (DETECTION.index("recall@0.5") - 2)
    cost = report.number(results["ingest"]["core_seconds"], 2)
    return [*blank, report.number(row["recall@0.5"], 3), report.number(row["boxes"]), *sizes, cost]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder with dev-* and check")
    parser.add_argument("--composed", type=Path, nargs="*", default=[], help="NeedleBench folders")
    parser.add_argument("--profile", action="append", help="once for each; a name or a JSON file")
    parser.add_argument("--rows", default=",".join(SHOWN))
    parser.add_argument("--checked", type=int, default=CHECKED)
    parser.add_argument("--out", type=Path, default=Path("build/real.json"), help="a .md goes beside it")
    parser.add_argument("--cache", type=Path, default=Path("build/real.cache"))
    chosen = parser.parse_args()
    folders = [*sorted(chosen.photos.glob("dev-*")), *chosen.composed]
    check = chosen.photos / "check"
    if not folders and not check.is_dir():
        parser.error(f"{chosen.photos}: neither dev-* nor check there")
    work = Work(chosen.profile or ["embedded"], tuple(chosen.rows.split(",")), chosen.cache)
    steps = [work.search(folder) for folder in folders]
    steps += [work.detect(check, chosen.checked)] if check.is_dir() else []
    for step in steps:
        for _ in step:
            work.write(chosen.out)
    print(f"{work.tables()}\n{chosen.out} and {chosen.out.with_suffix('.md')} written")


if __name__ == "__main__":
    main()
