"""The images of a collection: lists, metadata, and what is drawn of them.

One image is at .../collections/{collection}/images/{id}, and at /v1/images/{id} where the service has one collection.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from soir_qdrant.images import load
from soir_qdrant.search import localization
from soir_qdrant.service.backend import Backend
from soir_qdrant.service.collections import point_id
from soir_qdrant.service.deps import CollectionName, ImageId, Service, answered
from soir_qdrant.service.errors import Forgotten
from soir_qdrant.service.filters import FilterText, filter_of_text
from soir_qdrant.service.listing import sorted_page
from soir_qdrant.service.pictures import heat_png, mask_png, small_jpeg
from soir_qdrant.service.problems import Refusal, responses
from soir_qdrant.service.queries import image_query, object_box
from soir_qdrant.service.schemas import Facets, ImagePage, StoredImage
from soir_qdrant.service.worker import Priority
from soir_qdrant.types import Box, Hit

router = APIRouter(tags=["images"])
one_image = APIRouter()
Side = Annotated[int, Query(ge=16, le=2048, description="pixels of the longer side, at most")]
BoxText = Annotated[str | None, Query(max_length=100, description="x0,y0,x1,y1 in pixels")]
ObjectNumber = Annotated[int | None, Query(ge=0, description="number of a stored object")]
Search = Annotated[str, Query(max_length=60, description="`search` of the answer that found it")]
MAX_HEAT_OBJECTS = 8
ERRORS = responses(404, 410, 422, 429, 503)


def _content(kind: str) -> dict[int | str, dict[str, object]]:
    return {200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}}}}, **ERRORS}


JPEG, PNG = _content("image/jpeg"), _content("image/png")


@router.get("/v1/collections/{collection}/facets", responses=ERRORS)
async def facets(collection: CollectionName, backend: Service) -> Facets:
    """What the images can be filtered by: labels and payload keys of a sample."""
    return await run_in_threadpool(backend.collections.facets, collection)


@router.get("/v1/collections/{collection}/images", responses=ERRORS)
async def images(
    collection: CollectionName,
    backend: Service,
    limit: Annotated[int, Query(ge=1, le=200, description="images of a page")] = 24,
    after: Annotated[str | None, Query(max_length=60, description="`next` of the page before")] = None,
    filter: FilterText = None,
    sort: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=200,
            description="name, objects, pixels, largest, or a key of the payload",
        ),
    ] = None,
    descending: Annotated[bool, Query(description="the largest first, where sorted")] = False,
) -> ImagePage:
    """Some images: in order of their ids, or of what `sort` says, those without it last."""
    condition = filter_of_text(filter)
    if sort is None:
        return await run_in_threadpool(backend.collections.page, collection, limit, after, condition)
    return await run_in_threadpool(
        partial(sorted_page, descending=descending),
        backend.collections,
        collection,
        limit,
        after,
        condition,
        sort,
    )


def in_path(request: Request, collection: CollectionName) -> None:
    """The collection that the address names."""
    request.state.collection = collection


def in_query(
    request: Request,
    backend: Service,
    collection: Annotated[
        str | None, Query(max_length=255, description="needed where the service has several")
    ] = None,
) -> None:
    """The only collection of the service, or the one that is named."""
    request.state.collection = backend.collections.named(collection)


def _collection(request: Request) -> str:
    name: str = request.state.collection
    return name


Collection = Annotated[str, Depends(_collection)]


@one_image.get("", responses=ERRORS)
async def image(collection: Collection, id: ImageId, backend: Service) -> StoredImage:
    """What is known of one image."""
    payload = await run_in_threadpool(backend.collections.payload, collection, id)
    return backend.collections.image(point_id(id), payload)


@one_image.get("/thumbnail", response_class=Response, responses=JPEG)
async def thumbnail(
    collection: Collection, id: ImageId, request: Request, backend: Service, side: Side = 320
) -> Response:
    """The image, upright and small, without metadata."""
    return await run_in_threadpool(_jpeg, backend, collection, id, side, None, request)


@one_image.get("/crop", response_class=Response, responses=JPEG)
async def crop(
    collection: Collection,
    id: ImageId,
    request: Request,
    backend: Service,
    object: ObjectNumber = None,
    box: BoxText = None,
    side: Side = 320,
) -> Response:
    """One object of the image, or what a box shows."""
    place = (object, box)
    return await run_in_threadpool(_jpeg, backend, collection, id, side, place, request)


def _jpeg(
    backend: Backend,
    collection: str,
    id_: str,
    side: int,
    place: tuple[int | None, str | None] | None,
    request: Request,
) -> Response:
    payload = backend.collections.payload(collection, id_)
    box = None if place is None else _box(payload, *place)
    sha256 = str((payload.get("soir") or {}).get("sha256"))
    tag = hashlib.sha256(f"{sha256} {side} {box}".encode()).hexdigest()[:32]
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=600"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = backend.thumbnails.get(tag)
    if data is None:
        full, _ = backend.image_bytes(collection, id_)
        data = small_jpeg(full, side, backend.settings.max_pixels, box)
        backend.thumbnails.put(tag, data)
    return Response(data, media_type="image/jpeg", headers=headers)


def _box(payload: dict[str, object], number: int | None, text: str | None) -> Box:
    if (number is None) == (text is None):
        raise Refusal(422, "give object=NUMBER or box=x0,y0,x1,y1: one of the two")
    if number is not None:
        return object_box(payload, number)
    try:
        x0, y0, x1, y1 = (float(part) for part in (text or "").split(","))
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            raise ValueError
    except ValueError:
        raise Refusal(422, f"box {text!r}: give four numbers, x0,y0,x1,y1") from None
    return x0, y0, x1, y1


@one_image.get("/heat", response_class=Response, responses=PNG)
async def heat(
    collection: Collection,
    id: ImageId,
    request: Request,
    backend: Service,
    search: Search,
    object: ObjectNumber = None,
    side: Side = 640,
) -> Response:
    """Where in the image the thing seems to be: a transparent PNG to lay over it. Takes seconds.

    It looks into the object that matched, where `object` names it, and into the few that the detector was
    surest of.
    """
    past = backend.searches.get(search)
    if past is None or past.collection != collection:
        raise Forgotten("this search is no longer known: search again for its heat maps")
    if past.image is None:
        raise Refusal(422, "heat maps are made with an image: this search was by words")
    key = f"heat {search} {id} {object} {side}"
    data = backend.thumbnails.get(key)
    if data is None:
        query = await run_in_threadpool(image_query, backend, collection, past.image)
        payload = await run_in_threadpool(backend.checked_payload, collection, id)
        hit = Hit(
            id=id, score=0.0, uri=str(payload["soir"]["uri"]), box=None, payload=_fewer(payload, object)
        )

        def make() -> bytes:
            return heat_png(backend.searcher(collection).heat(query, hit), side)

        data = await answered(backend.worker.submit(Priority.OVERLAY, make), backend, request)
        backend.thumbnails.put(key, data)
    return Response(data, media_type="image/png")


@one_image.get("/mask", response_class=Response, responses=PNG)
async def mask(
    collection: Collection,
    id: ImageId,
    request: Request,
    backend: Service,
    object: ObjectNumber = None,
    box: BoxText = None,
    side: Side = 640,
) -> Response:
    """Which pixels of a box are the object: a transparent PNG to lay over the image. Takes a second."""
    data, payload = await run_in_threadpool(backend.image_bytes, collection, id)
    place = _box(payload, object, box)

    def make() -> bytes:
        image = load(data, name=f"image {id}", max_pixels=backend.settings.max_pixels, reduce=True)
        return mask_png(localization.mask(backend.pipeline, image, place), side)

    overlay = await answered(backend.worker.submit(Priority.OVERLAY, make), backend, request)
    return Response(overlay, media_type="image/png", headers={"Cache-Control": "private, max-age=600"})


def _fewer(payload: dict[str, Any], matched: int | None) -> dict[str, Any]:
    """The payload with MAX_HEAT_OBJECTS objects: each takes a part of a second."""
    objects = list(enumerate(payload["soir"].get("objects") or []))
    objects.sort(key=lambda item: (item[0] != matched, -float(item[1].get("score") or 0)))
    return {
        **payload,
        "soir": {**payload["soir"], "objects": [item for _, item in objects[:MAX_HEAT_OBJECTS]]},
    }


router.include_router(
    one_image, prefix="/v1/collections/{collection}/images/{id}", dependencies=[Depends(in_path)]
)
router.include_router(one_image, prefix="/v1/images/{id}", dependencies=[Depends(in_query)])
