"""Errors as JSON problem details (RFC 9457), each with a sentence that says what to do."""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from soir_qdrant.errors import (
    CollectionError,
    ConfigError,
    ImageError,
    ObjectsError,
    ServerError,
    SoirError,
    WeightsError,
)
from soir_qdrant.qdrant.faults import Refused
from soir_qdrant.service.errors import Busy, Forgotten, NoCollection, NoImage, NotAllowed, NotServed
from soir_qdrant.service.schemas import Problem

log = logging.getLogger(__name__)

MEDIA = "application/problem+json"
# No token, from another site, too slow, too large, a name that is not the service's.
ANY = (401, 403, 408, 413, 421)
_STATUS: tuple[tuple[type[Exception], int], ...] = (  # the first that fits
    (Busy, 503),
    (NoCollection, 404),
    (NoImage, 404),
    (NotServed, 404),
    (Forgotten, 410),
    (NotAllowed, 403),
    (ImageError, 422),
    (ObjectsError, 422),
    (ConfigError, 422),
    (Refused, 422),
    (CollectionError, 409),
    (ServerError, 503),
    (WeightsError, 503),
    (SoirError, 500),
)


class Refusal(HTTPException):
    """A request that goes no further."""


def problem(
    status: int, detail: str, request_id: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error's answer."""
    title = http.HTTPStatus(status).phrase
    body = Problem(title=title, status=status, detail=detail, request_id=request_id)
    return JSONResponse(body.model_dump(), status, headers, MEDIA)


def parsed(kind: Any, data: bytes) -> Any:
    """A JSON body as a model. Raises Refusal, which names the first field that is wrong."""
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError | RequestValidationError, prefix: str = "") -> Refusal:
    """What is wrong with the first field that is."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the request"
    return Refusal(422, f"{prefix}{place[:200]}: {first['msg'].removeprefix('Value error, ')}")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: what OpenAPI says of its errors, with those that any request may get."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": {MEDIA: {"schema": schema}}}
        for status in sorted({*ANY, *statuses})
    }


def install(app: FastAPI) -> None:
    """Answer all errors of an app as problems."""
    app.add_exception_handler(SoirError, _soir)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _id(request: Request) -> str | None:
    return request.scope.get("soir_request_id")


async def _soir(request: Request, error: Exception) -> JSONResponse:
    status = next(code for kind, code in _STATUS if isinstance(error, kind))
    if isinstance(error, Refused) and error.status == 404:  # the collection was deleted meanwhile
        status = 404
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(error.retry_after if isinstance(error, Busy) else 5)
        log.warning("%s %s", _id(request), error)
    return problem(status, str(error), _id(request), headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem(422, invalid(error).detail, _id(request))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return problem(error.status_code, str(error.detail), _id(request), headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", _id(request), request.url.path, exc_info=error)
    return problem(500, "an unexpected error: the service's log has it, by the request id", _id(request))
