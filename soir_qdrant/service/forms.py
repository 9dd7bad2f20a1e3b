"""Forms, read into memory alone: what a client searches with never touches the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from soir_qdrant.service.problems import Refusal


class _InMemory(MultiPartParser):
    """Starlette's parser, which else writes files of a megabyte and more to the disk. The size of all that is
    sent is bounded elsewhere. (The limit had another name before starlette 0.44.)"""

    spool_max_size = max_file_size = 2**40


@asynccontextmanager
async def form_of(request: Request, max_files: int, max_fields: int = 4) -> AsyncIterator[FormData]:
    """The fields and files of a multipart request.

    Args:
        request: its body is bounded by the Guard.
        max_files: of the form.
        max_fields: other than files.

    Raises:
        Refusal: for what is no such form, or has more parts.
    """
    if not is_form(request):
        raise Refusal(415, "send a form (multipart/form-data)")
    parser = _InMemory(request.headers, request.stream(), max_files=max_files, max_fields=max_fields)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(422, f"the form cannot be read: {error.message}") from error
    try:
        yield form
    finally:
        await form.close()


def is_form(request: Request) -> bool:
    """Whether a request is a multipart form."""
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def file_bytes(field: Any, name: str) -> bytes:
    """A file of a form. Raises Refusal where the field is missing, or is a text."""
    if not isinstance(field, UploadFile):
        raise Refusal(422, f"{name}: send the image as a file of the form")
    return await field.read()
