"""Images into a collection: in batches, skipping what is there, outliving bad images, and saying what became
of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

from qdrant_client import models
from qdrant_client.client_base import QdrantBase

from soir_qdrant.assembly import make_pipeline, profile_of, served_pipeline
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import Images, LeftOut, ReadOptions
from soir_qdrant.ingest.corrections import remove, update_payload
from soir_qdrant.ingest.details import Details
from soir_qdrant.ingest.outcome import IngestStopped as IngestStopped
from soir_qdrant.ingest.outcome import ShowProgress, bar, broken_off, unreadable, with_report
from soir_qdrant.ingest.outcome import summary as summary
from soir_qdrant.ingest.run import Run
from soir_qdrant.ingest.sources import items_of
from soir_qdrant.ingest.sync import Sync, SyncReport, by_name, synchronize
from soir_qdrant.ingest.watch import keep_in_step
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.identity import PointId
from soir_qdrant.qdrant.payload import clean_payload
from soir_qdrant.qdrant.schema import Quantization, quantization_of
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.types import IngestReport, OnExists, SceneObject

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime

T = TypeVar("T")
PerImage: TypeAlias = Iterable[T] | Mapping[str, T]


class SoirIngestor:
    """Fills one collection; makes it if need be.

    Args:
        client: a QdrantClient (`:memory:`, a path or a server) or an EdgeClient.
        collection: its name; it is made if need be.
        pipeline: turns images into vectors; None makes that of `profile` when the first image comes.
        profile: a name or a file of settings; None is that of the runtime's settings, else "embedded", or
            "embedded-0.1" where version 0.1 filled the collection.
        runtime: where the models of `profile` run, such as `TritonRuntime("host:8001")`, which is asked at
            once whether it has them; None is here.
        vector_name: None is Qdrant's unnamed vector.
        namespace: of a tenant, a shop, a folder ...: equal images of two namespaces are two points, and
            removal and `sync` touch those of their own alone. None: the images without any.
        keep_objects: also store every object's own vector, in the multivector "objects", for
            `search(rerank="objects")`; an existing collection that has it gets them in any case.
        object_codes: how many numbers of each object's vector to keep in the payload, half a byte each, so that
            a hit can name the object that matched, and `search(rerank="codes")` finds more; 0 for none; None
            is as the collection was made, by default 512, or 128 where it has code vectors.
        code_vectors: of a new collection: keep the codes as a multivector too, in this form, so that Qdrant itself
            orders a thousand candidates by them (docs/concepts/search.md).
        object_patches: also keep each object's patches there, 0.8 kB an object, so that `search` orders hits by them
            too; None: as the collection was made, by default where the pipeline has them at hand.
        quantization: of a new collection: "scalar" (a quarter of the memory), "turbo" (1/8), "binary" (1/32), or a
            configuration of Qdrant; searches then rescore twice as many candidates by the vectors on disk
            (docs/concepts/search.md).
        reading: which files are read (patterns, videos, further pages, http), and the limits of size and memory.
        max_pixels: the largest image that is decoded; None: that of `reading`.
        shard_key: of what is written, in a collection with shards by key.
        timeout: seconds for one request.
        retry: how long a request is tried again; 120 s.
    """

    def __init__(
        self,
        client: QdrantBase,
        collection: str = "images",
        *,
        pipeline: Pipeline | None = None,
        profile: str | None = None,
        runtime: Runtime | None = None,
        vector_name: str | None = None,
        keep_objects: bool = False,
        quantization: Quantization | None = None,
        object_codes: int | None = None,
        object_patches: bool | None = None,
        reading: ReadOptions | None = None,
        max_pixels: int | None = None,
        namespace: str | None = None,
        shard_key: models.ShardKeySelector | None = None,
        timeout: int = 60,
        retry: Retry | None = None,
        code_vectors: Quantization | None = None,
    ) -> None:
        quantization_of(quantization)  # refused here rather than after the first images
        self.store = Store(
            client,
            collection,
            vector_name=vector_name,
            namespace=namespace,
            shard_key=shard_key,
            timeout=timeout,
            retry=retry,
            code_vectors=code_vectors,
        )
        self.profile = profile
        self.keep_objects = keep_objects
        self.quantization = quantization
        self.details = Details(object_codes, object_patches)
        reading = reading or ReadOptions()
        self.reading = reading if max_pixels is None else replace(reading, max_pixels=max_pixels)
        self._pipeline = served_pipeline(pipeline, profile, runtime)

    @property
    def pipeline(self) -> Pipeline:
        """What turns images into vectors; made on first use."""
        if self._pipeline is None:
            self._pipeline = make_pipeline(self.profile or profile_of(self.store.existing()))
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
        progress: ShowProgress = True,
    ) -> IngestReport:
        """Store images, one point each, and report what became of every one of them.

        A bad image, payload, id or box fails that image and stops no other. An image that comes twice is stored once.

        Args:
            images: a folder, a pattern ("photos/**/*.jpg"), an address (s3://bucket/photos), one image, or any
                iterable of these, bytes, PIL images and uint8 arrays [H, W, 3], RGB; it is consumed as it goes,
                about three batches ahead of the store at most.
            ids: whole numbers or UUIDs, in the order of the images, or by name in a dict (of a folder's images, the
                path within it; of others, the path as given). None: UUIDv5 of the content.
            payloads: likewise; kept beside the key "soir".
            objects: likewise, where they are known; None detects them, an empty list takes the image as a whole.
            batch_size: images at once; bounds the memory.
            on_exists: "skip" leaves a point that has the id as it is, without decoding the image again; "update"
                makes it anew where the image or the recipe (see `IngestReport.stale`) is another one; "replace"
                makes every one anew. Vectors and payload keys that others set on a point stay.
            progress: a bar on stderr, lines in the log where that is no terminal, or a callback.

        Raises:
            ImageError: the folder is missing or holds no images.
            ConfigError, CollectionError: for settings that do not fit.
            IngestStopped: a ServerError, with the report so far, when the server is lost, an iterable of yours raises,
                or anything else ends a run that has begun. What came before is stored, and the same call goes on.
        """
        if on_exists not in get_args(OnExists):
            raise ConfigError(f'on_exists={on_exists!r}: choose "skip", "update" or "replace"')
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: must be at least 1")
        left_out, report = LeftOut(), IngestReport()
        items, count = items_of(images, ids, payloads, objects, left_out, self.reading)
        with with_report(report, self.store.collection), bar(progress, count) as advance:
            run = self.run(report, advance, on_exists)
            run.all(items, batch_size)
        report.failed += unreadable(left_out)
        report.left_out += left_out.others
        report.excluded = left_out.excluded
        if run.broken is not None:
            raise broken_off(run.broken, report, self.store.collection) from run.broken
        return report

    def sync(
        self,
        folder: str | Path,
        *,
        payloads: Mapping[str, Mapping[str, Any]] | None = None,
        objects: Mapping[str, Sequence[SceneObject]] | None = None,
        keep: bool = False,
        dry_run: bool = False,
        batch_size: int = 8,
        progress: ShowProgress = True,
    ) -> SyncReport:
        """Bring the collection in step with a folder, doing the least: a file that was moved or renamed only
        has its place rewritten, one whose metadata changed its hash, and no model runs for either. New and
        changed files, and those that were stored by another recipe, are stored as by `add`; points of which
        no file is left in the folder are removed. Points whose files lie elsewhere are left alone.

        Args:
            folder: a path or an address, read as by `add`. One without any image is refused, rather than its
                points removed.
            payloads, objects: by name within the folder, for files that are stored now. A point whose objects
                were once given, and are not now, is made anew only where its file has changed.
            keep: leave the points of files that are gone.
            dry_run: only say what would be done. Nothing is written and no model runs.
            batch_size, progress: as in `add`.

        Raises:
            ImageError: where there is no such folder, or no image in it.
            ConfigError, CollectionError: for settings that do not fit.
            IngestStopped: when the server is lost: the same call goes on where this one ended.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: must be at least 1")
        report, stored = SyncReport(), IngestReport()
        shown = progress and not dry_run
        with with_report(stored, self.store.collection), bar(shown, None) as advance:
            run = self.run(stored, advance, "update")
            sync = Sync(run, folder, by_name(objects), by_name(payloads), keep)
            synchronize(sync, dry_run=dry_run, batch_size=batch_size, report=report)
        return report

    def watch(
        self,
        folder: str | Path,
        *,
        keep: bool = False,
        settle: float = 2.0,
        stop: threading.Event | None = None,
        on_report: Callable[[SyncReport], None] = lambda _: None,
    ) -> None:
        """`sync` now and after every change in the folder, until `stop` is set or an interrupt.

        Args:
            folder, keep: as in `sync`.
            settle: seconds without a change before a pass, so that half-written files are waited for.
            stop: an event; None: it ends with an interrupt.
            on_report: called with the report of each pass.

        Raises:
            ConfigError: where the package watchfiles is missing, and as `sync` does. A lost server or
                folder is waited for, with a warning in the log.
        """
        keep_in_step(
            lambda: self.sync(folder, keep=keep, progress=False),
            Path(folder),
            settle=settle,
            stop=stop,
            on_report=on_report,
        )

    def remove(
        self,
        *,
        ids: Iterable[PointId] = (),
        uris: Iterable[str | Path] = (),
        filter: models.Filter | None = None,
    ) -> None:
        """Remove images from the collection, those of this ingestor's namespace.

        Args:
            ids: of points; others' stay.
            uris: of files, absolute paths as in `hit.uri`. An image that lies elsewhere too keeps its point.
            filter: Qdrant's: all images that it holds for.
        """
        self.store.open()
        remove(self.store, ids, uris, filter)

    def update_payload(
        self,
        payload: Mapping[str, Any],
        *,
        ids: Iterable[PointId] = (),
        uris: Iterable[str | Path] = (),
        filter: models.Filter | None = None,
    ) -> None:
        """Correct the payload of images, without running a model: these keys are written, others stay.

        Args:
            payload: yours, beside the key "soir".
            ids, uris, filter: which images, as in `remove`.

        Raises:
            PayloadError: for a payload that JSON has no form for.
        """
        keys = clean_payload(payload)
        self.store.open()
        update_payload(self.store, keys, ids, uris, filter)

    def run(self, report: IngestReport, advance: Callable[[int], None], on_exists: OnExists) -> Run:
        """One call of `add`, before its first image."""
        return Run(
            store=self.store,
            pipeline=lambda: self.pipeline,
            report=report,
            advance=advance,
            on_exists=on_exists,
            keep_objects=self.keep_objects,
            quantization=self.quantization,
            details=self.details,
            reading=self.reading,
        )
