"""Adding and deleting images, where the service may: jobs with their progress as server-sent events."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from soir_qdrant.errors import ImageError
from soir_qdrant.images import SUFFIXES
from soir_qdrant.qdrant.identity import PointId
from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.service.backend import Backend
from soir_qdrant.service.collections import point_id
from soir_qdrant.service.deps import CollectionName, JobId, Service, answered
from soir_qdrant.service.errors import NotAllowed
from soir_qdrant.service.forms import form_of, is_form
from soir_qdrant.service.jobs import Job
from soir_qdrant.service.pictures import opened
from soir_qdrant.service.problems import Refusal, parsed, responses
from soir_qdrant.service.schemas import EXAMPLE_JOB, AddRequest, Deleted, DeleteRequest, JobModel
from soir_qdrant.service.worker import Priority

router = APIRouter(tags=["changes"])
MAX_FILES = 1000  # of one form
_EVENTS_EVERY = 0.3  # seconds
_EVENT = f"event: progress\ndata: {json.dumps(EXAMPLE_JOB)}\n\n"
_EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "PPM": ".ppm", "TIFF": ".tif", "JPEG2000": ".jp2"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": AddRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "new files",
                        },
                        "payload": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "description": "keys for all of them",
                            "examples": ['{"shop": "north"}'],
                        },
                    },
                }
            },
        },
    }
}


@router.post(
    "/v1/collections/{collection}/images",
    status_code=202,
    response_model=JobModel,
    responses=responses(422, 503),
    openapi_extra=_BODY,
)
async def add(collection: CollectionName, request: Request, backend: Service) -> JobModel:
    """Add images: files below the folders of the service by JSON, or new files by a form.

    The answer is a job; its progress is at /v1/jobs/{id}/events. A collection that does not exist is made.
    """
    _may_write(backend)
    if backend.settings.collections is not None and collection not in backend.settings.collections:
        raise NotAllowed(
            f"collection {collection[:80]!r} is not one of those that this service was started for"
        )
    if is_form(request):
        files, payload = await _uploaded(request, backend)
        job = backend.jobs.add(collection, files, payload)
    else:
        body = parsed(AddRequest, await request.body())
        files = await run_in_threadpool(listed, body.paths, backend.settings.folders or ())
        job = backend.jobs.add(collection, files, body.payload, body.on_exists)
    return job.model()


def _may_write(backend: Backend) -> None:
    if not backend.settings.writable:
        raise NotAllowed("this service only searches: start it with --writable to add and delete images")


async def _uploaded(request: Request, backend: Backend) -> tuple[list[tuple[str, Path]], dict[str, Any]]:
    """Files of a form, written into the folder for uploads."""
    folder = backend.settings.uploads
    if folder is None:
        raise NotAllowed("this service keeps no new files: start it with --uploads FOLDER, or give paths")
    backend.jobs.check_room()
    async with form_of(request, MAX_FILES) as form:
        payload = parsed(dict[str, Any], str(form.get("payload") or "{}").encode())
        images = [item for item in form.getlist("images") if isinstance(item, UploadFile)]
        sent = [(str(item.filename or "image")[:200], await item.read()) for item in images]
    if not sent:
        raise Refusal(422, "images: send at least one file of this name")
    return await run_in_threadpool(_stored, sent, folder, backend.settings.max_pixels), payload


def _stored(sent: list[tuple[str, bytes]], folder: Path, max_pixels: int) -> list[tuple[str, Path]]:
    """Where files were written. Raises ImageError where one is no image: then none is."""
    kinds = [opened(data, max_pixels, name).format or "PNG" for name, data in sent]
    return [(name, _store(data, name, folder, kind)) for (name, data), kind in zip(sent, kinds, strict=True)]


def _store(data: bytes, name: str, folder: Path, kind: str) -> Path:
    """Where a file was written: in the folder, under a name made of its own and of its content."""
    suffix = _EXTENSIONS.get(kind, f".{kind.lower()}")
    stem = re.sub(r"[^\w-]+", "-", name.rpartition(".")[0] or name)[-40:].strip("-")
    path = folder.resolve() / f"{stem or 'image'}-{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
    if not path.exists():
        part = path.with_name(f"{secrets.token_hex(8)}.part")  # another request may write the same file
        part.write_bytes(data)
        part.replace(path)
    return path


def listed(paths: list[str], folders: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """The image files that some paths name, each below one of the folders: files, or folders and all below.

    Raises NotAllowed for a path that leads elsewhere (or where there are no folders), ImageError where there
    is no such file, or no image.
    """
    if not folders:
        raise NotAllowed(
            "this service opens no new files: start it with --root FOLDER to add what lies below it"
        )
    files: list[tuple[str, Path]] = []
    for text in paths:
        path = _below(text, folders)
        files += [(name, file) for name, file in _walk(path, text) if _regular(file)]
    if not files:
        raise ImageError(f"no image in {', '.join(paths)[:200]}; these are read: {' '.join(SUFFIXES)}")
    return files


def _below(text: str, folders: tuple[Path, ...]) -> Path:
    if "\0" in text:
        raise NotAllowed("a path has no zero bytes")
    for folder in folders:
        path = Path(os.path.realpath(folder / text))
        if path.is_relative_to(folder) and path.exists():
            return path
    raise NotAllowed(f"{text[:200]!r} is not below the folders of this service (--root)")


def _walk(path: Path, text: str) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield text, path
        return
    for here, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                file = Path(here, name)
                yield file.relative_to(path).as_posix(), file


def _regular(path: Path) -> bool:
    """Not a pipe, a device, or a link: those may lead out of the folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


@router.delete("/v1/collections/{collection}/images", responses=responses(404, 409, 422, 503))
async def delete(
    collection: CollectionName, body: DeleteRequest, request: Request, backend: Service
) -> Deleted:
    """Take images out of the collection. Their files stay where they are."""
    _may_write(backend)
    await run_in_threadpool(backend.collections.check, collection)
    ids = [point_id(id_) for id_ in body.ids]

    def remove() -> int:
        stored = backend.collections.stored(collection, ids)
        by_namespace: defaultdict[str | None, list[PointId]] = defaultdict(list)
        for id_, payload in stored.items():
            by_namespace[(payload.get(KEY) or {}).get("namespace")].append(id_)
        for namespace, own in by_namespace.items():
            backend.ingestor(collection, namespace).remove(ids=own)
        return len(stored)

    future = backend.worker.submit(Priority.SEARCH, remove)
    return Deleted(deleted=await answered(future, backend, request))


@router.get("/v1/jobs", responses=responses())
async def jobs(backend: Service) -> list[JobModel]:
    """The latest jobs first, with the images that failed."""
    return [job.model() for job in backend.jobs.all()]


@router.get("/v1/jobs/{id}", responses=responses(404, 422))
async def job(id: JobId, backend: Service) -> JobModel:
    """How far a job is."""
    return _job(id, backend).model()


@router.delete("/v1/jobs/{id}", responses=responses(404, 422))
async def cancel(id: JobId, backend: Service) -> JobModel:
    """End a job after its current image. What was added stays."""
    _may_write(backend)
    job_ = _job(id, backend)
    job_.cancelled.set()
    return job_.model()


def _job(id_: str, backend: Backend) -> Job:
    job_ = backend.jobs.get(id_)
    if job_ is None:
        raise Refusal(404, "there is no such job: the service was started anew, or it is long over")
    return job_


@router.get(
    "/v1/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"example": _EVENT}}}, **responses(404, 422)},
)
async def events(id: JobId, request: Request, backend: Service) -> StreamingResponse:
    """The progress of a job: events `progress`, with the job as JSON, and at last `end`."""
    job_ = _job(id, backend)

    async def stream() -> AsyncIterator[str]:
        last, quiet = "", 0.0
        while not (backend.stopping.is_set() or await request.is_disconnected()):
            over, now = job_.over, job_.model().model_dump_json()
            if now != last:
                yield f"event: {'end' if over else 'progress'}\ndata: {now}\n\n"
                last, quiet = now, 0.0
            elif quiet > 15:  # so that proxies do not close the connection
                yield ": still there\n\n"
                quiet = 0.0
            if over:
                return
            await asyncio.sleep(_EVENTS_EVERY)
            quiet += _EVENTS_EVERY

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
