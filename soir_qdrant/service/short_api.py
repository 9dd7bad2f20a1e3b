"""The images of a service with one collection, without its name in the address: /v1/images/{id}/..."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from soir_qdrant.service import images_api
from soir_qdrant.service.deps import Service
from soir_qdrant.service.images_api import BoxText, ObjectNumber, Search, Side
from soir_qdrant.service.schemas import StoredImage

router = APIRouter(prefix="/v1/images/{id}", tags=["images"])


def _collection(
    backend: Service,
    collection: Annotated[
        str | None, Query(max_length=255, description="needed where the service has several")
    ] = None,
) -> str:
    return backend.collections.named(collection)


Collection = Annotated[str, Depends(_collection)]


@router.get("", responses=images_api.ERRORS)
async def image(collection: Collection, id: str, backend: Service) -> StoredImage:
    """What is known of one image."""
    return await images_api.image(collection, id, backend)


@router.get("/thumbnail", response_class=Response, responses=images_api.JPEG)
async def thumbnail(
    collection: Collection, id: str, request: Request, backend: Service, side: Side = 320
) -> Response:
    """The image, upright and small, without metadata."""
    return await images_api.thumbnail(collection, id, request, backend, side)


@router.get("/crop", response_class=Response, responses=images_api.JPEG)
async def crop(
    collection: Collection,
    id: str,
    request: Request,
    backend: Service,
    object: ObjectNumber = None,
    box: BoxText = None,
    side: Side = 320,
) -> Response:
    """One object of the image, or what a box shows."""
    return await images_api.crop(collection, id, request, backend, object, box, side)


@router.get("/heat", response_class=Response, responses=images_api.PNG)
async def heat(
    collection: Collection,
    id: str,
    backend: Service,
    search: Search,
    object: ObjectNumber = None,
    side: Side = 640,
) -> Response:
    """Where in the image the thing seems to be: a transparent PNG to lay over it. Takes seconds."""
    return await images_api.heat(collection, id, backend, search, object, side)


@router.get("/mask", response_class=Response, responses=images_api.PNG)
async def mask(
    collection: Collection,
    id: str,
    backend: Service,
    object: ObjectNumber = None,
    box: BoxText = None,
    side: Side = 640,
) -> Response:
    """Which pixels of a box are the object: a transparent PNG to lay over the image. Takes a second."""
    return await images_api.mask(collection, id, backend, object, box, side)
