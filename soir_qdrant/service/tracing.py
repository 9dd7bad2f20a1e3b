"""OpenTelemetry spans of what waits for the models and what they run, under FastAPI's own of each request.

Nothing is recorded where no tracer provider is configured: `soir serve` configures one, with an exporter, where
OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set and the extra telemetry is installed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current

NAME = "soir_qdrant.service"


def telemetry(provider: trace.TracerProvider | None) -> dict[str, Any]:
    """FastAPI's setting `telemetry`, which versions before there was one ignore: spans of requests, no logs, and no
    metrics, which /metrics has. provider: None is the global one, or what the environment asks for."""
    off = {"logs": False, "metrics": False, "operation_spans": False}
    return {"telemetry": {**off, "tracer_provider": provider, "auto_configure": True}}


class Tracing:
    """The spans of one worker. provider: None is the global one."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer(NAME, tracer_provider=provider)

    @staticmethod
    def here() -> Context:
        """What a task takes along from the request that queues it."""
        return get_current()

    @contextmanager
    def batch(self, stage: str, contexts: Sequence[Context], waited: Sequence[float]) -> Iterator[None]:
        """Around the run of a batch: a span "queue" in each one's trace, and a span "run" in the first one's, which is
        linked to the others.

        Args:
            stage: what kind of task it is, such as "search".
            contexts: of `here`, one for each task.
            waited: seconds in the queue, one for each task.
        """
        now = time.time_ns()
        for context, seconds in zip(contexts, waited, strict=True):
            span = self._tracer.start_span("queue", context, start_time=now - int(seconds * 1e9))
            span.end(now)
        links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts[1:]]
        attributes: dict[str, str | int] = {"soir.stage": stage, "soir.batch_size": len(contexts)}
        with self._tracer.start_as_current_span("run", contexts[0], links=links, attributes=attributes):
            yield
