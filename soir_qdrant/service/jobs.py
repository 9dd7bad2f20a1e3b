"""Adding images in the background: one image at a time, so that searches go between them."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soir_qdrant.errors import ServerError, SoirError
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.last_ingest import remember
from soir_qdrant.service.errors import Busy
from soir_qdrant.service.schemas import FailedImage, JobModel
from soir_qdrant.service.worker import Priority
from soir_qdrant.types import Failure, IngestReport, OnExists

if TYPE_CHECKING:
    from soir_qdrant.service.backend import Backend

log = logging.getLogger(__name__)
MAX_WAITING, MAX_REMEMBERED, MAX_FAILURES = 8, 100, 200
State = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(slots=True, eq=False)
class Job:
    """One run. files: what is to be added, with the names that the answers use."""

    id: str
    collection: str
    files: Sequence[tuple[str, Path]]
    payload: Mapping[str, Any]
    on_exists: OnExists
    state: State = "waiting"
    done: int = 0
    added: int = 0
    updated: int = 0
    skipped: int = 0
    stale: int = 0
    failures: int = 0
    failed: list[FailedImage] = field(default_factory=list)  # the first of them
    error: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")

    def model(self) -> JobModel:
        """As it is answered."""
        return JobModel(
            id=self.id,
            collection=self.collection,
            state=self.state,
            total=len(self.files),
            done=self.done,
            added=self.added,
            updated=self.updated,
            skipped=self.skipped,
            stale=self.stale,
            failed=list(self.failed),
            error=self.error,
        )


class Jobs:
    """The jobs of one service, run one after the other."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="soir-jobs")
        self._lock = threading.Lock()

    def add(
        self,
        collection: str,
        files: Sequence[tuple[str, Path]],
        payload: Mapping[str, Any],
        on_exists: OnExists = "skip",
    ) -> Job:
        """Start a job. Raises Busy where too many wait."""
        with self._lock:
            self.check_room()
            job = Job(secrets.token_urlsafe(9), collection, files, payload, on_exists)
            self._jobs[job.id] = job
            for old in [key for key, item in self._jobs.items() if item.over][:-MAX_REMEMBERED]:
                del self._jobs[old]
        self._pool.submit(self._run, job)
        return job

    def check_room(self) -> None:
        """Raises Busy where so many jobs wait that the next one is refused."""
        if sum(not job.over for job in list(self._jobs.values())) >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} jobs wait already: try again later", 30)

    def get(self, id_: str) -> Job | None:
        """A job, or None where it is unknown or long over."""
        return self._jobs.get(id_)

    def all(self) -> Iterator[Job]:
        """The latest first."""
        return reversed(list(self._jobs.values()))

    def stop(self) -> None:
        """End each after its current image."""
        for job in self._jobs.values():
            job.cancelled.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job) -> None:
        job.state = "running"
        try:
            for name, path in job.files:
                if job.cancelled.is_set():
                    job.state = "cancelled"
                    return
                report = self.backend.worker.submit(
                    Priority.INGEST,
                    lambda path=path: self._one(job, path),  # type: ignore[misc]
                ).result()
                self._count(job, name, path, report)
            job.state = "done"
            self._remember(job)
        except Busy:
            job.state = "cancelled"
        except (SoirError, OSError) as error:  # would come back for every image
            job.error, job.state = str(error), "failed"
        except Exception:
            log.exception("job %s failed", job.id)
            job.error, job.state = "an unexpected error: the service's log has it", "failed"

    def _remember(self, job: Job) -> None:
        """For the page, also after a restart."""
        counts = {"added": job.added, "updated": job.updated, "skipped": job.skipped}
        failed = [Failure(one.name, one.reason) for one in job.failed]
        store = Store(self.backend.client, job.collection, namespace=self.backend.settings.namespace)
        remember(store, counts, failed, failures=job.failures)

    def _one(self, job: Job, path: Path) -> IngestReport:
        try:
            return self.backend.ingestor(job.collection).add(
                [path], payloads=[dict(job.payload)], on_exists=job.on_exists, progress=False
            )
        except ServerError:
            self.backend.forget(job.collection)
            raise

    def _count(self, job: Job, name: str, path: Path, report: IngestReport) -> None:
        job.done += 1
        job.added += report.added
        job.updated += report.updated
        job.skipped += report.skipped
        job.stale += report.stale
        job.failures += len(report.failed)
        if len(job.failed) < MAX_FAILURES:
            reasons = [failure.reason.replace(str(path), name) for failure in report.failed]
            job.failed += [FailedImage(name=name, reason=reason) for reason in reasons]
        for outcome, count in {**report.counts, "failed": len(report.failed)}.items():
            self.backend.metrics.images.labels(outcome).inc(count)
        for stage, seconds in report.seconds.items():
            self.backend.metrics.stages.labels(stage).observe(seconds)
