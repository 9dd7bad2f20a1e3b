"""What the routes share: one client, one pipeline, one worker, and what is remembered for a while."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qdrant_client.client_base import QdrantBase

from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.service.collections import Collections
from soir_qdrant.service.jobs import Jobs
from soir_qdrant.service.local import threadsafe
from soir_qdrant.service.metrics import Metrics
from soir_qdrant.service.originals import Originals
from soir_qdrant.service.recent import Recent
from soir_qdrant.service.settings import ServiceSettings
from soir_qdrant.service.tracing import Tracing
from soir_qdrant.service.worker import ModelWorker, Priority

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.service.schemas_search import ImageQuery

log = logging.getLogger(__name__)
UPLOAD_BYTES, UPLOAD_SECONDS = 256_000_000, 1800.0
SEARCHES, THUMBNAIL_BYTES = 1000, 64_000_000
WORDS = "a thing"  # to see whether the encoder reads any
RETRY = Retry(attempts=2)  # a person waits
RELOAD_SECONDS, MAX_RELOAD_SECONDS = 5.0, 300.0  # until models that could not be loaded are tried again


@dataclass(frozen=True, slots=True)
class Upload:
    """An image that a client sent. It is kept in memory alone. size: width, height, upright."""

    data: bytes
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PastSearch:
    """The query of a search that was run, for heat maps. image: None for words."""

    collection: str
    image: ImageQuery | None


class Backend:
    """One service's parts.

    Args:
        client: of Qdrant.
        pipeline: makes the pipeline; called once, in the worker's thread.
        settings: limits and permissions.
        tracing: of what the worker runs; None is that of the global provider.
    """

    def __init__(
        self,
        client: QdrantBase,
        pipeline: Callable[[], Pipeline],
        settings: ServiceSettings,
        tracing: Tracing | None = None,
    ) -> None:
        self.client = threadsafe(client)
        self.settings = settings
        self.metrics = Metrics()
        self.collections = Collections(
            self.client, settings.collections, settings.folders, settings.namespace, settings.stores
        )
        self.worker = ModelWorker(settings.queue, settings.batch, self.metrics.observe_run, tracing)
        self.metrics.watch_queue(lambda: self.worker.waiting)
        self.uploads: Recent[Upload] = Recent(UPLOAD_BYTES, UPLOAD_SECONDS, lambda item: len(item.data))
        self.searches: Recent[PastSearch] = Recent(SEARCHES, UPLOAD_SECONDS)
        self.thumbnails: Recent[bytes] = Recent(THUMBNAIL_BYTES, 86_400.0, len)
        self.originals = Originals(settings)
        self.jobs = Jobs(self)
        self.stopping = threading.Event()
        self.ready = threading.Event()
        self.not_ready: str | None = None  # what the last probe was told
        self.reads_text = False  # known once the models are loaded
        self.failure: str | None = None  # why the models could not be loaded the last time
        self._make_pipeline = pipeline
        self._pipeline: Pipeline | None = None
        self._searchers: dict[str, SoirSearcher] = {}

    @property
    def pipeline(self) -> Pipeline:
        """The models; for the worker's thread."""
        if self._pipeline is None:
            self._pipeline = self._make_pipeline()
        return self._pipeline

    def start(self) -> None:
        """Load the models, in the worker's thread; `ready` is set afterwards. What fails is tried again."""
        self.worker.start()
        self.worker.submit(Priority.INGEST, lambda: self._load(RELOAD_SECONDS))

    def _load(self, pause: float) -> None:
        """pause: seconds until the next try, where this one fails."""
        try:
            self.pipeline.query(np.full((32, 32, 3), 124, np.uint8), box=(4.0, 4.0, 28.0, 28.0))
            self.reads_text = _reads_text(self.pipeline)
            self.pipeline.query_text(np.full((32, 32, 3), 124, np.uint8))
        except Exception as error:
            log.exception("the models cannot be loaded; the next try is in %.0f s", pause)
            self.failure = str(error) or type(error).__name__
            again = threading.Timer(pause, self._load_again, [min(2 * pause, MAX_RELOAD_SECONDS)])
            again.daemon = True
            again.start()
        else:
            self.failure = None
            self.ready.set()

    def _load_again(self, pause: float) -> None:
        if not self.stopping.is_set():
            self.worker.submit(Priority.INGEST, lambda: self._load(pause))

    def stop(self) -> None:
        """Finish what runs, refuse what waits."""
        self.stopping.set()
        self.jobs.stop()
        self.worker.stop()

    def searcher(self, collection: str) -> SoirSearcher:
        """That of a collection; for the worker's thread."""
        if collection not in self._searchers:
            self._searchers[collection] = SoirSearcher(
                self.client,
                collection,
                pipeline=self.pipeline,
                max_pixels=self.settings.max_pixels,
                vector_name=self.settings.vector_name,
                namespace=self.settings.namespace,
                retry=RETRY,
            )
        return self._searchers[collection]

    def ingestor(self, collection: str, namespace: str | None = None) -> SoirIngestor:
        """One for a collection; for the worker's thread. namespace: where the service shows all, that of the
        images."""
        return SoirIngestor(
            self.client,
            collection,
            pipeline=self.pipeline,
            max_pixels=self.settings.max_pixels,
            vector_name=self.settings.vector_name,
            namespace=self.settings.namespace or namespace,
        )

    def forget(self, collection: str) -> None:
        """Make the searcher of a collection anew, after an error that says the collection has changed."""
        self._searchers.pop(collection, None)

    def image_bytes(self, collection: str, id_: int | str) -> tuple[bytes, dict[str, Any]]:
        """The file of a stored image, and its payload. Raises NoImage, NotServed."""
        _, data, payload = self._file(collection, id_)
        return data, payload

    def checked_payload(self, collection: str, id_: int | str) -> dict[str, Any]:
        """The payload of a stored image with one place alone, whose file may be opened: for the searcher, which
        opens it again by itself. Raises NoImage, NotServed."""
        uri, _, payload = self._file(collection, id_)
        return {**payload, "soir": {**payload["soir"], "uri": uri, "uris": [uri]}}

    def _file(self, collection: str, id_: int | str) -> tuple[str, bytes, dict[str, Any]]:
        payload = self.collections.payload(collection, id_)
        return *self.originals.open(payload.get("soir") or {}), payload


def _reads_text(pipeline: Pipeline) -> bool:
    """Whether the profile's encoder reads words."""
    try:
        pipeline.text(WORDS)
    except ConfigError:
        return False
    return True
