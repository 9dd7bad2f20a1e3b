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


async def answered(future: Future[T], backend: Backend) -> T:
    """The result of a task. A request that gives up, or takes too long, takes its task out of the queue."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), backend.settings.timeout)
    except TimeoutError:
        raise HTTPException(
            503,
            f"no answer within {backend.settings.timeout:.0f} s: the service is busy, try again",
            {"Retry-After": "10"},
        ) from None
