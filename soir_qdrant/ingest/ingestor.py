"""Images into a collection: in batches, skipping what is there, outliving bad images, and saying what became
of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

from qdrant_client import QdrantClient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from soir_qdrant.assembly import make_pipeline, served_pipeline
from soir_qdrant.errors import ConfigError, ServerError
from soir_qdrant.images import MAX_PIXELS, Images, count_sources
from soir_qdrant.ingest.run import Run
from soir_qdrant.ingest.sources import items_of
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.payload import PointId
from soir_qdrant.qdrant.schema import Quantization, quantization_of
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.types import IngestReport, OnExists, SceneObject

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime

T = TypeVar("T")
CODES = 256  # numbers of each object's vector in the payload; see docs/concepts/search.md
PerImage: TypeAlias = Iterable[T] | Mapping[str, T]


class IngestStopped(ServerError):
    """The server was lost on the way. report: what had become of the images until then."""

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report


class SoirIngestor:
    """Fills one collection; makes it if need be.

    client: of qdrant_client, for `:memory:`, a path or a server. pipeline: None makes that of `profile` when
    the first image comes. runtime: where the models of `profile` run, such as `TritonRuntime("host:8001")`,
    which is asked at once whether it has them; None is here. profile: None is that of the runtime's settings,
    else "embedded". vector_name: None is Qdrant's unnamed vector.
    keep_objects: also store every object's own vector, in the multivector "objects", for
    `search(rerank="objects")`; an existing collection that has it gets them in any case. object_codes: how
    many numbers of each object's vector to keep in the payload, one byte each, so that a hit can name the
    object that matched, and `search(rerank="codes")` finds more; 0 for none. object_patches: also keep each
    object's patches there, so that `search(rerank="patches")` need not open pictures (docs/concepts/search.md has what
    they take).
    quantization: of a new collection: "scalar" (a quarter of the memory), "binary" (1/32), or a configuration
    of Qdrant; searches then rescore twice as many candidates by the vectors on disk (docs/concepts/search.md).
    max_pixels: the largest image that is decoded. timeout: seconds for one write (where the client's
    `upsert` has no such argument, give QdrantClient itself one). retry: for lost connections,
    timeouts, 429 and 5xx.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str = "images",
        *,
        pipeline: Pipeline | None = None,
        profile: str | None = None,
        runtime: Runtime | None = None,
        vector_name: str | None = None,
        keep_objects: bool = False,
        quantization: Quantization | None = None,
        object_codes: int = CODES,
        object_patches: bool = False,
        max_pixels: int = MAX_PIXELS,
        timeout: int = 60,
        retry: Retry | None = None,
    ) -> None:
        if object_codes < 0:
            raise ConfigError(f"object_codes {object_codes}: give 0 for none, or how many numbers to keep")
        quantization_of(quantization)  # refused here rather than after the first pictures
        self.store = Store(client, collection, vector_name=vector_name, timeout=timeout, retry=retry)
        self.profile = profile
        self.keep_objects = keep_objects
        self.quantization = quantization
        self.object_codes = object_codes
        self.object_patches = object_patches
        self.max_pixels = max_pixels
        self._pipeline = served_pipeline(pipeline, profile, runtime)

    @property
    def pipeline(self) -> Pipeline:
        """What turns images into vectors; made on first use."""
        if self._pipeline is None:
            self._pipeline = make_pipeline(self.profile)
        return self._pipeline

    def add(
        self,
        images: Images,
        *,
        ids: PerImage[PointId] | None = None,
        payloads: PerImage[Mapping[str, Any] | None] | None = None,
        objects: PerImage[Sequence[SceneObject] | None] | None = None,
        batch_size: int = 8,
        on_exists: OnExists = "skip",
        progress: bool = True,
    ) -> IngestReport:
        """Store images, one point each, and report what became of every one of them.

        images: a folder, one image, or any iterable of paths, bytes, PIL images and uint8 arrays; it is
        consumed as it goes, about three batches ahead of the store at most.
        ids, payloads, objects: in the order of the images, or by name in a dict (of a folder's images, the
        name is the path within the folder; of others, the path as given). ids: whole numbers or UUIDs;
        by default UUIDv5 of the content, so that adding twice changes nothing. payloads: kept beside the key
        "soir". objects: where they are known; None detects them, an empty list takes the image as a whole.
        on_exists: "skip" leaves a point that has the id as it is, without decoding the image again; "update"
        makes it anew where the image or the recipe (see `IngestReport.stale`) is another one; "replace"
        makes every one anew. Of a point that is made anew, vectors and payload keys that others set stay.
        The same image twice in one call is stored once; the second counts as skipped. progress: a bar on
        stderr, where that is a terminal.

        A bad image, payload, id or box fails that image and stops no other. Raises ImageError where the
        folder is missing or holds no images, ConfigError and CollectionError for settings that do not fit,
        and IngestStopped (a ServerError, with the report so far) when the server is lost: what was stored
        stays, and the same call goes on where this one ended. An interrupt leaves a sound collection too.
        """
        if on_exists not in get_args(OnExists):
            raise ConfigError(f'on_exists={on_exists!r}: choose "skip", "update" or "replace"')
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: must be at least 1")
        items = items_of(images, ids, payloads, objects)
        report = IngestReport()
        try:
            with _bar(progress, images) as advance:
                self._run(report, advance, on_exists).all(items, batch_size)
        except ServerError as error:
            raise _stopped(error, report, self.store.collection) from error
        return report

    def _run(self, report: IngestReport, advance: Callable[[int], None], on_exists: OnExists) -> Run:
        return Run(
            store=self.store,
            pipeline=lambda: self.pipeline,
            report=report,
            advance=advance,
            on_exists=on_exists,
            keep_objects=self.keep_objects,
            quantization=self.quantization,
            object_codes=self.object_codes,
            object_patches=self.object_patches,
            max_pixels=self.max_pixels,
        )


def _stopped(error: ServerError, report: IngestReport, collection: str) -> IngestStopped:
    updated = f"{report.updated} updated, " if report.updated else ""
    return IngestStopped(
        f"{error}\nStored in collection {collection!r} by then: {report.added} images, {updated}"
        f"{report.skipped} skipped, {len(report.failed)} failed; the same call goes on from there",
        report,
    )


@contextmanager
def _bar(wanted: bool, images: Images) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; what it gives is called with the number of images done with."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda _: None
        return
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("images", total=count_sources(images))
        yield lambda done: progress.advance(task, done)


def summary(report: IngestReport, *, max_failures: int = 20) -> str:
    """A report in words: counts, seconds per stage, what can be renewed, and the first failures."""
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in sorted(report.seconds.items()))
    counts = {"added": report.added, "updated": report.updated, "skipped": report.skipped}
    lines = [", ".join(f"{count} {what}" for what, count in counts.items() if count or what != "updated")]
    lines[0] += f", {len(report.failed)} failed" + (f" ({stages})" if stages else "")
    for count, what in ((report.stale, "stored by another recipe"), (report.changed, "changed since")):
        if count:
            lines.append(f"{count} {what}: on_exists='update' renews them")
    lines += [f"  {failure.name}: {failure.reason}" for failure in report.failed[:max_failures]]
    if len(report.failed) > max_failures:
        lines.append(f"  and {len(report.failed) - max_failures} more")
    return "\n".join(lines)
