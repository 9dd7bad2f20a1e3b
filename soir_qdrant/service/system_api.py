"""What this service is and whether it is well: /v1, /healthz, /readyz, /metrics, the page and its session."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

import soir_qdrant
from soir_qdrant.errors import SoirError
from soir_qdrant.images import load
from soir_qdrant.service.access import COOKIE, Access
from soir_qdrant.service.backend import Backend
from soir_qdrant.service.deps import Service, answered
from soir_qdrant.service.errors import Forgotten
from soir_qdrant.service.forms import file_bytes, form_of
from soir_qdrant.service.problems import Refusal, responses
from soir_qdrant.service.queries import UPLOADED, read_upload
from soir_qdrant.service.schemas import (
    EXAMPLE_UPLOAD,
    CollectionModel,
    DetectedObjects,
    Login,
    ServiceModel,
    StoredObject,
)
from soir_qdrant.service.worker import Priority

READY_WITHIN = 5.0  # seconds; Qdrant's client tries for longer

log = logging.getLogger(__name__)
router = APIRouter()
_OBJECTS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "upload": {
                            "type": "string",
                            "description": "an image that was sent before",
                            "examples": [EXAMPLE_UPLOAD],
                        },
                    },
                    "oneOf": [{"required": ["image"]}, {"required": ["upload"]}],
                }
            }
        },
    }
}
PAGE = Path(__file__).parent / "page"
_METRICS = 'soir_requests_total{method="POST",route="/v1/collections/{collection}/search",status="200"} 3.0'


def _status(example: dict[str, object]) -> dict[int | str, dict[str, object]]:
    return {
        200: {"content": {"application/json": {"example": example}}},
        503: {"description": "not now", "content": {"application/json": {"example": {"status": "stopping"}}}},
    }


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


@router.get("/v1", tags=["service"], responses=responses(503))
async def service(backend: Service) -> ServiceModel:
    """What this service can do, and its collections."""
    return await run_in_threadpool(_service, backend)


@router.get("/v1/collections", tags=["service"], responses=responses(503))
async def collections(backend: Service) -> list[CollectionModel]:
    """The collections that may be searched."""
    return (await run_in_threadpool(_service, backend)).collections


def _service(backend: Backend) -> ServiceModel:
    listed = [
        CollectionModel(name=name, count=backend.collections.count(name))
        for name in backend.collections.names()
    ]
    return ServiceModel(
        version=soir_qdrant.__version__,
        collections=listed,
        ready=backend.ready.is_set(),
        reads_text=backend.reads_text,
        writable=backend.settings.writable,
        uploads=backend.settings.writable and backend.settings.uploads is not None,
        max_bytes=backend.settings.max_bytes,
    )


@router.post(
    "/v1/objects",
    tags=["search"],
    responses=responses(410, 415, 422, 429, 503),
    openapi_extra=_OBJECTS_BODY,
)
async def objects(request: Request, backend: Service) -> DetectedObjects:
    """The objects that the detector finds in an image, to search for one of them. Takes seconds."""
    async with form_of(request, max_files=1) as form:
        upload = str(form["upload"]) if "upload" in form else None
        if (upload is None) == ("image" not in form):
            raise Refusal(422, "send an image, or the upload of an earlier answer: one of the two")
        data = b"" if upload is not None else await file_bytes(form["image"], "image")
    if upload is None:
        sent = await run_in_threadpool(read_upload, data, None, backend.settings.max_pixels)
        upload = backend.uploads.add(sent)
    known = backend.uploads.get(upload)
    if known is None:
        raise Forgotten("the uploaded image is no longer in memory: send it again")

    def detect() -> list[StoredObject]:
        decoded = load(known.data, name=UPLOADED, max_pixels=backend.settings.max_pixels)
        (detected,) = backend.pipeline.find([decoded], [None])
        return [StoredObject(box=list(item.box), score=item.score, label=item.label) for item in detected]

    detected = await answered(backend.worker.submit(Priority.OVERLAY, detect), backend, request)
    return DetectedObjects(upload=upload, width=known.size[0], height=known.size[1], objects=detected)


@router.post("/v1/session", status_code=204, tags=["service"], responses=responses(422, 429))
async def log_in(login: Login, request: Request, backend: Service) -> Response:
    """Exchange the token for a cookie, for the page: its images cannot send headers."""
    client = request.client.host if request.client else "unknown"
    if backend.settings.token is None:
        return Response(status_code=204)
    access: Access = request.app.state.access
    if not access.knows(login.token):
        if access.too_many_wrong(client):
            raise Refusal(429, "too many wrong tokens: wait a minute", {"Retry-After": "60"})
        raise Refusal(401, "this is not the token that the service was started with")
    answer = Response(status_code=204)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, access.session(), httponly=True, samesite="strict", secure=secure, path="/")
    return answer


@router.get("/healthz", tags=["service"], responses=_status({"status": "ok"}))
async def healthz(backend: Service) -> JSONResponse:
    """Whether the process is alive: 200, or 503 where only a restart helps."""
    alive = backend.worker.alive or backend.stopping.is_set()
    return JSONResponse({"status": "ok" if alive else "the models' thread has ended"}, 200 if alive else 503)


@router.get("/readyz", tags=["service"], responses=_status({"status": "ok", "time": 1796000000}))
async def readyz(backend: Service) -> JSONResponse:
    """Whether searches are answered: the models are loaded, Qdrant answers, and the service does not stop. Answers
    within READY_WITHIN seconds."""
    try:
        with anyio.fail_after(READY_WITHIN):
            reason = await anyio.to_thread.run_sync(_not_ready, backend, abandon_on_cancel=True)
    except TimeoutError:
        reason = f"Qdrant has not answered within {READY_WITHIN:g} s"
    if reason and reason != backend.not_ready:  # probes come every few seconds: once is enough
        log.warning("not ready: %s", reason)
    backend.not_ready = reason
    return JSONResponse({"status": reason or "ok", "time": round(time.time())}, 503 if reason else 200)


def _not_ready(backend: Backend) -> str | None:
    if backend.stopping.is_set():
        return "stopping"
    if backend.failure is not None:
        return f"the models cannot be loaded: {backend.failure}"
    if not backend.ready.is_set():
        return "the models are being loaded"
    try:
        backend.collections.names()
    except SoirError as error:
        return str(error)
    return None


@router.get(
    "/metrics",
    tags=["service"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS}}}},
)
async def metrics(backend: Service) -> Response:
    """Counts and times, for Prometheus."""
    return Response(backend.metrics.text(), media_type="text/plain; version=0.0.4")
