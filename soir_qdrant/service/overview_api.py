"""A collection as a whole: /map, /duplicates, /ingest."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from soir_qdrant.service import overview
from soir_qdrant.service.deps import CollectionName, Service
from soir_qdrant.service.filters import FilterText, filter_of_text
from soir_qdrant.service.listing import last_ingest
from soir_qdrant.service.problems import responses
from soir_qdrant.service.schemas_overview import Duplicates, LastIngest, Method, ObjectMap

router = APIRouter(prefix="/v1/collections/{collection}", tags=["overview"])
_ERRORS = responses(404, 422, 429, 503)


@router.get("/map", responses=_ERRORS)
async def object_map(
    collection: CollectionName,
    backend: Service,
    method: Annotated[Method, Query(description="t-SNE takes seconds")] = "pca",
    limit: Annotated[int, Query(ge=1, le=5000, description="objects; of more, a random part")] = 1500,
    filter: FilterText = None,
) -> ObjectMap:
    """Objects in two dimensions: those that look alike lie together. Of a large collection, a random sample."""
    condition = filter_of_text(filter)
    return await run_in_threadpool(
        overview.object_map, backend.collections, collection, method, limit, condition
    )


@router.get("/duplicates", responses=_ERRORS)
async def duplicates(
    collection: CollectionName,
    backend: Service,
    threshold: Annotated[
        float, Query(ge=0.5, le=1, description="cosine of two images' vectors")
    ] = overview.SIMILAR,
) -> Duplicates:
    """Groups of images that are nearly the same. Of a large collection, among a random sample."""
    vector = backend.settings.vector_name
    return await run_in_threadpool(overview.duplicates, backend.collections, collection, threshold, vector)


@router.get("/ingest", responses=_ERRORS)
async def ingest(collection: CollectionName, backend: Service) -> LastIngest | None:
    """What became of the last `soir ingest`, `soir sync` or job, with the images that failed; null where
    nothing remembers it."""
    return await run_in_threadpool(last_ingest, backend.collections, collection)
