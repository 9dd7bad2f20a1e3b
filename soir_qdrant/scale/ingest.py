"""A folder, a list of URIs or a Parquet file of them, by many actors into one collection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from soir_qdrant.errors import ConfigError, ServerError, SoirError
from soir_qdrant.images import Images, LeftOut, iter_sources, uri_of
from soir_qdrant.ingest.outcome import ShowProgress, bar, unreadable
from soir_qdrant.qdrant.last_ingest import remember
from soir_qdrant.scale.embed import Embed
from soir_qdrant.scale.target import Target
from soir_qdrant.types import IngestReport

PARQUET = ".parquet"
LOCAL = "local"  # an address of Ray: started here, for this call
_CAUSE = "The above exception was the direct cause of the following exception:"  # in a traceback of Python
_EVERY = 1.0  # seconds between two looks at how many images are done


def ingest(
    images: Images,
    target: Target,
    *,
    address: str = LOCAL,
    actors: int = 2,
    threads: int = 1,
    gpus: float = 0,
    batch_size: int = 8,
    embed: Any = None,
    progress: ShowProgress = True,
) -> IngestReport:
    """Store images like `SoirIngestor.add`, by several actors at once.

    What is stored is skipped, so that the same call goes on where a killed one ended. Actors that are lost are
    replaced, and their blocks computed again.

    Args:
        images: paths on a disk that all machines share, addresses, as in `SoirIngestor.add`, or a Parquet file with
            a column `uri` (see `Embed` for others).
        target: the collection and the pipeline.
        address: of a Ray cluster ("auto", "ray://host:10001"), or "local".
        actors: each with a pipeline of its own.
        threads: of each.
        gpus: of each; 0.5 lets two share one.
        batch_size: images at once; bounds the memory.
        embed: a subclass of `Embed`; None is that.
        progress: as in `SoirIngestor.add`.

    Returns:
        What became of the images, which the page of `soir serve` shows too. Of those that a killed call stored, this
        one says skipped. The seconds are those of all actors together.

    Raises:
        ConfigError: where Ray is not installed, and for images that are no files.
        ImageError: for a folder without images.
        ServerError: where the actors cannot go on, such as without Qdrant.
    """
    if actors < 1:
        raise ConfigError(f"actors {actors}: at least 1")
    ray, left_out = _started(address), LeftOut()
    from soir_qdrant.scale.sink import QdrantSink

    pool = {"compute": ray.data.ActorPoolStrategy(size=actors), "num_cpus": threads, "num_gpus": gpus or None}
    batches = {"batch_size": batch_size, "batch_format": "pyarrow", "fn_constructor_args": (target, threads)}
    dataset = _dataset(images, target, left_out, batch_size, actors)
    with bar(progress, count := dataset.count()) as advance, _counted(ray, count, advance) as counter:
        sink = QdrantSink(target, counter)
        _write(dataset.map_batches(embed or Embed, **batches, **pool), sink)
    return _completed(sink.report, left_out, target)


def _completed(report: IngestReport, left_out: LeftOut, target: Target) -> IngestReport:
    """With what was left out before there were rows; the collection keeps its counts and failures, for the page."""
    report.failed += unreadable(left_out)
    report.left_out += left_out.others
    report.excluded = left_out.excluded
    remember(target.store(), report.counts, report.failed, report.left_out)
    return report


def _write(described: Any, sink: Any) -> None:
    """Raises ServerError with what an actor raised, where they cannot go on."""
    import ray

    try:
        described.write_datasink(sink, ray_remote_args={"num_cpus": 0})  # actors may have all the cores
    except ray.exceptions.RayError as error:
        raise ServerError(
            f"the actors cannot go on: {_reason(str(error))}. What came before is stored, and the same call goes on"
        ) from error


def _reason(traceback: str) -> str:
    """The message of what an actor raised, out of the text that Ray makes of it: what an exception says stands
    behind the last frame, and Ray's own exception behind that of its cause."""
    *causes, last = traceback.strip().split(_CAUSE)
    raised = causes[-1] if causes and "UserCodeException" in last else last
    lines = raised.strip().splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith("  ")]
    message = "\n".join(lines[frames[-1] + 1 :]) if frames else lines[-1]
    return message.partition(": ")[2] if message.startswith(SoirError.__module__) else message


class Counter:
    """An actor that adds up how many images are done."""

    def __init__(self) -> None:
        self._done = 0

    def add(self, images: int) -> None:
        """So many more."""
        self._done += images

    def done(self) -> int:
        """All of them."""
        return self._done


@contextmanager
def _counted(ray: Any, count: int, advance: Callable[[int], None]) -> Iterator[Any]:
    """A `Counter`, which is looked at again and again, and tells `advance`. count: images; blocks that are written
    twice, after a loss, do not count beyond it."""
    counter, over = ray.remote(num_cpus=0)(Counter).remote(), threading.Event()

    def look() -> None:
        before, last = 0, False
        while not last:
            last = over.wait(_EVERY)
            done = min(ray.get(counter.done.remote()), count)
            advance(done - before)
            before = done

    def watch() -> None:
        with suppress(ray.exceptions.RayError):  # the run itself says so
            look()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield counter
    finally:
        over.set()
        watching.join()


def _started(address: str) -> Any:
    """Ray, connected. Raises ConfigError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("ingesting with Ray needs it: pip install 'soir-qdrant[ray]'") from error
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is ours
    return ray


def _dataset(images: Any, target: Target, left_out: LeftOut, batch_size: int, actors: int) -> Any:
    """Rows with `uri`."""
    import ray

    if isinstance(images, (str, Path)) and str(images).endswith(PARQUET):
        return ray.data.read_parquet(str(images), ray_remote_args={"num_cpus": 0})
    uris = []
    for name, source in iter_sources(images, left_out, target.reading):
        if isinstance(source, np.ndarray | Image | bytes | bytearray | memoryview):
            raise ConfigError(f"{name}: actors open files themselves: give paths or addresses")
        uris.append(uri_of(source))
    # Blocks of a few batches: an actor that is lost costs no more than those.
    blocks = max(len(uris) // (4 * batch_size), min(2 * actors, len(uris)), 1)
    return ray.data.from_items([{"uri": uri} for uri in uris], override_num_blocks=blocks)
