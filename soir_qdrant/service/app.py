"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from qdrant_client.client_base import QdrantBase
from starlette.staticfiles import StaticFiles

import soir_qdrant
from soir_qdrant.service import (
    images_api,
    jobs_api,
    overview_api,
    problems,
    search_api,
    system_api,
)
from soir_qdrant.service.access import Access
from soir_qdrant.service.backend import Backend
from soir_qdrant.service.guard import Guard
from soir_qdrant.service.schemas import Problem
from soir_qdrant.service.schemas_search import SearchRequest, UploadRequest
from soir_qdrant.service.settings import ServiceSettings
from soir_qdrant.service.tracing import Tracing, telemetry

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline


def create_app(
    client: QdrantBase,
    pipeline: Callable[[], Pipeline],
    settings: ServiceSettings | None = None,
    *,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The service for one client and one pipeline.

    Args:
        client: of Qdrant; an embedded one is put behind a lock.
        pipeline: makes what encodes the queries; called once, in the thread that runs the models.
        settings: limits and permissions; None is those of a service for this machine alone.
        tracer_provider: of OpenTelemetry; None is the global one, which is made where the environment names an
            endpoint.

    Returns:
        An ASGI application, with `state.backend`. Its lifespan loads the models and stops the thread.
    """
    settings = settings or ServiceSettings()
    backend = Backend(client, pipeline, settings, Tracing(tracer_provider))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        backend.start()
        yield
        backend.stop()

    app = FastAPI(
        title="soir_qdrant",
        version=soir_qdrant.__version__,
        summary="Find the images that hold this one small thing.",
        lifespan=lifespan,
        docs_url=None,  # those pages load from other hosts
        redoc_url=None,
        **telemetry(tracer_provider),
    )
    app.state.backend = backend
    app.state.access = Access(settings.token)
    problems.install(app)
    for part in (system_api, search_api, images_api, overview_api, jobs_api):
        app.include_router(part.router)
    app.mount("/page", StaticFiles(directory=system_api.PAGE), name="page")
    app.add_middleware(Guard, settings=settings, metrics=backend.metrics, access=app.state.access)
    _describe_bodies(app)
    return app


def _describe_bodies(app: FastAPI) -> None:
    """Put into OpenAPI what no route names as its model: searches, read as JSON and forms, and problems."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generated()
        parts = schema["components"]["schemas"]
        for kind in (SearchRequest, UploadRequest, Problem):
            own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            parts.update(own.pop("$defs", {}))
            parts[kind.__name__] = own
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
