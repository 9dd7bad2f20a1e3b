"""Whether memory and time stay flat: many images in one run, memory and images a second over time.

    python benchmarks/flat.py PHOTOS --images 5000 --profile benchmarks/flat.json --out build/flat

PHOTOS holds photographs. Where there are fewer than --images, variants of them are made beside --out (other parts,
sizes and formats), and as in real folders some are huge, some are there twice and some damaged: all differ, or are
meant not to. They are ingested in one call, into Qdrant Edge on disk, in this process. Every --every images: seconds,
those of processors, and megabytes of memory (anonymous: the process' own; resident: with mapped files, which the
system takes back when it needs to). Writes a CSV and an SVG, of what there is after an interrupt too.

    python benchmarks/flat.py PHOTOS --images 1000 --profile benchmarks/flat.json --ray 2 --out build/flat-ray

By two Ray actors, into a stand-in for a server in another process: rows are those of the driver, and what the actors
noted of themselves is in notes/.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from actors import NotingEmbed, noted
from charts import Panel, svg
from folder_variants import fill
from memory import megabytes

from soir_qdrant import SoirIngestor
from soir_qdrant.assembly import make_pipeline
from soir_qdrant.config import Settings
from soir_qdrant.ingest.outcome import summary
from soir_qdrant.qdrant.edge.client import EdgeClient

COLUMNS = ("images", "seconds", "CPU seconds", "anonymous MB", "resident MB")
Row = dict[str, float]


class Samples:
    """A row every so many images, called by the ingestor with the number of images that are done. Each is written
    to a CSV at once."""

    def __init__(self, every: int, file: Path) -> None:
        self.rows: list[Row] = []
        self._every, self._start, self._file = every, time.perf_counter(), file
        file.write_text(",".join(COLUMNS) + "\n")

    def __call__(self, done: int, total: int | None) -> None:
        if self.rows and done < self.rows[-1]["images"] + self._every and done != total:
            return
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = time.perf_counter() - self._start
        values = (done, seconds, usage.ru_utime + usage.ru_stime, *megabytes())
        self.rows.append({name: round(value, 2) for name, value in zip(COLUMNS, values, strict=True)})
        with self._file.open("a") as file:
            file.write(",".join(str(value) for value in self.rows[-1].values()) + "\n")


def in_one_process(folder: Path, settings: Settings, samples: Samples, batch_size: int) -> None:
    """Ingest all of a folder."""
    pipeline = make_pipeline(settings)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        client = EdgeClient(place)
        ingestor = SoirIngestor(client, "flat", pipeline=pipeline)
        report = ingestor.add(folder, progress=samples, batch_size=batch_size)
        print(summary(report), {stage: round(spent) for stage, spent in report.seconds.items()})
        client.close()


def serve(connection: Connection) -> None:
    """The tests' stand-in for a server, until it is told to end."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from stand_in import StandIn

    connection.send(StandIn().url)
    connection.recv()


def by_actors(folder: Path, settings: Settings, samples: Samples, batch_size: int, actors: int) -> None:
    """The same by Ray actors."""
    from soir_qdrant.scale import Target, ingest

    ours, theirs = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    target = Target(ours.recv(), "flat", settings=settings.model_dump(mode="json"))
    embed = NotingEmbed.into(folder.parent / "notes")
    report = ingest(folder, target, actors=actors, batch_size=batch_size, embed=embed, progress=samples)
    print(summary(report))
    ours.send(None)
    server.join()


def of_actors(notes: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Process, images done and anonymous MB after each batch of every actor."""
    batches = noted(notes)
    for actor in sorted({batch.actor for batch in batches}):
        own = [batch for batch in batches if batch.actor == actor]
        yield actor, np.cumsum([batch.images for batch in own]), np.array([batch.megabytes for batch in own])


def figures(rows: list[Row]) -> dict[str, float]:
    """Memory at the start, at a tenth and at the end; its slope over the second half; images a second of the first
    and the last quarter."""
    done, spent, work, own, _ = (np.array([row[name] for row in rows]) for name in COLUMNS)
    half = done >= done[-1] / 2

    def rate(seconds: np.ndarray, start: float, end: float) -> float:
        at = np.interp([start * done[-1], end * done[-1]], done, seconds)
        return float((end - start) * done[-1] / (at[1] - at[0]))

    return {
        "MB at the first row": own[0],
        "MB at a tenth": float(np.interp(done[-1] / 10, done, own)),
        "MB at the end": own[-1],
        "MB per 1,000 images, second half": float(1000 * np.polyfit(done[half], own[half], 1)[0]),
        "images a second, first quarter": rate(spent, 0, 0.25),
        "images a second, last quarter": rate(spent, 0.75, 1),
        "images a CPU second, first quarter": rate(work, 0, 0.25),
        "images a CPU second, last quarter": rate(work, 0.75, 1),
    }


def panels(rows: list[Row]) -> Iterator[Panel]:
    """Memory and speed over the images."""
    done, _, work, own, resident = (np.array([row[name] for row in rows]) for name in COLUMNS)
    yield Panel("memory, MB", done, {"anonymous": own, "resident": resident})
    at = np.linspace(done[0], done[-1], 41)
    yield Panel("images a CPU second", at[1:], {"": np.diff(at) / np.diff(np.interp(at, done, work))})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--profile", default="embedded", help="a name, or a JSON file of settings")
    parser.add_argument("--every", type=int, default=25, help="images between two rows")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/flat"), help="folder for what is written")
    parser.add_argument("--ray", type=int, default=0, metavar="ACTORS", help="by so many Ray actors")
    chosen = parser.parse_args()
    settings = Settings.for_profile(chosen.profile)
    folder = fill(chosen.photos, chosen.images, chosen.out / f"images-{chosen.images}")
    samples = Samples(chosen.every, chosen.out / "flat.csv")
    try:
        if chosen.ray:
            by_actors(folder, settings, samples, chosen.batch_size, chosen.ray)
        else:
            in_one_process(folder, settings, samples, chosen.batch_size)
    finally:  # an interrupt too
        (chosen.out / "flat.svg").write_text(svg(list(panels(samples.rows)), "images"))
        for name, value in figures(samples.rows).items():
            print(f"{name}: {value:.2f}", flush=True)
        for actor, done, memory in of_actors(chosen.out / "notes"):
            half = done >= done[-1] / 2
            slope = 1000 * np.polyfit(done[half], memory[half], 1)[0]
            print(
                f"actor {actor}: {done[-1]} images, {memory[0]:.0f} MB, {memory[-1]:.0f} MB, {slope:.1f} MB per 1,000"
            )


if __name__ == "__main__":
    main()
