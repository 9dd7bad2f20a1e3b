"""What routes are handed: the backend, and the answers of its thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Annotated, TypeVar

from fastapi import Depends, Path, Request
from starlette.exceptions import HTTPException

from soir_qdrant.service.backend import Backend
from soir_qdrant.service.schemas import EXAMPLE_ID

T = TypeVar("T")


def backend_of(request: Request) -> Backend:
    """The app's backend."""
    backend: Backend = request.app.state.backend
    return backend


Service = Annotated[Backend, Depends(backend_of)]
CollectionName = Annotated[str, Path(description="name of a collection", examples=["shelves"])]
ImageId = Annotated[str, Path(description="a point's id: a whole number or a UUID", examples=[EXAMPLE_ID])]
JobId = Annotated[
    str, Path(description="`id` of the answer that began the job", examples=["b1946ac92492d234"])
]


async def answered(future: Future[T], backend: Backend, request: Request) -> T:
    """The result of a task. A request whose client goes, or that takes too long, takes its task out of the queue."""
    result, gone = asyncio.wrap_future(future), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait(
            (result, gone), timeout=backend.settings.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if result.done():
            return result.result()
        if gone.done():
            raise HTTPException(408, "the client went before the answer")
        raise HTTPException(
            503,
            f"no answer within {backend.settings.timeout:.0f} s: the service is busy, try again",
            {"Retry-After": "10"},
        )
    finally:
        result.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection. The request was read to its end before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
