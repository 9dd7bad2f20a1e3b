"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGES = ("decode", "encode", "qdrant", "rerank")  # of a search, in their order; see timing.py
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))  # others are "other"
KINDS = ("search", "overlay", "ingest")  # of what runs the models; see worker.py


class Metrics:
    """Counts and times of one service. Every series of a stage and of a kind is there from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "soir_requests", "Answered requests", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = self._histogram("soir_request_seconds", "Time to answer a request", "route")
        self.stages = self._histogram(
            "soir_stage_seconds",
            "Time of a stage of one run of searches: decode, encode, qdrant, rerank",
            "stage",
            STAGES,
        )
        self.waits = self._histogram("soir_wait_seconds", "Time of a task in the queue", "kind", KINDS)
        self.runs = self._histogram("soir_run_seconds", "Time of one run of the models", "kind", KINDS)
        self.batches = Histogram(
            "soir_batch_size", "Searches run together", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.images = Counter("soir_images", "Images of jobs", ["outcome"], registry=self.registry)
        self._waiting = Gauge("soir_queue_waiting", "Tasks that wait for the models", registry=self.registry)

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """waiting: called when the metrics are read."""
        self._waiting.set_function(waiting)

    def observe_run(self, kind: str, waits: Sequence[float], seconds: float) -> None:
        """One run of the worker: what each of its tasks waited, and what it took."""
        for wait in waits:
            self.waits.labels(kind).observe(wait)
        self.runs.labels(kind).observe(seconds)
        if kind == "search":
            self.batches.observe(len(waits))

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """One run of searches: stage -> seconds."""
        for stage, value in seconds.items():
            self.stages.labels(stage).observe(value)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answered request. route: the path's template, so that ids make no new series."""
        method = method if method in METHODS else "other"
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In the text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, about: str, label: str, values: Sequence[str] = ()) -> Histogram:
        histogram = Histogram(name, about, [label], buckets=SECONDS, registry=self.registry)
        for value in values:
            histogram.labels(value)
        return histogram
