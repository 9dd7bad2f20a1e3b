"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts and times of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "soir_requests", "Answered requests", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "soir_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.stages = Histogram(
            "soir_stage_seconds",
            "Time of a stage: wait (in the queue), run (one batch of the models' thread), and of jobs",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "soir_batch_size", "Searches run together", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.images = Counter("soir_images", "Images of jobs", ["outcome"], registry=self.registry)
        self._waiting = Gauge("soir_queue_waiting", "Tasks that wait for the models", registry=self.registry)

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """waiting: called when the metrics are read."""
        self._waiting.set_function(waiting)

    def observe_task(self, stage: str, seconds: float, count: int) -> None:
        """One batch of the worker: "wait" or "run"."""
        self.stages.labels(stage).observe(seconds)
        if stage == "run":
            self.batches.observe(count)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answered request. route: the path's template, so that ids make no new series."""
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In the text format."""
        return generate_latest(self.registry)
