"""Searching: POST /v1/collections/{collection}/search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from soir_qdrant.errors import CollectionError, ConfigError
from soir_qdrant.query import Query
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.search.text_in_image import with_text
from soir_qdrant.service.backend import Backend, PastSearch
from soir_qdrant.service.deps import CollectionName, Service, answered
from soir_qdrant.service.filters import filter_of
from soir_qdrant.service.forms import file_bytes, form_of, is_form
from soir_qdrant.service.problems import parsed, responses
from soir_qdrant.service.queries import image_query, read_upload
from soir_qdrant.service.schemas import GroupModel, HitModel, SearchAnswer
from soir_qdrant.service.schemas_search import (
    Change,
    ChangedQuery,
    SearchFields,
    SearchRequest,
    TextQuery,
    UploadRequest,
)
from soir_qdrant.service.worker import Priority
from soir_qdrant.timing import stages
from soir_qdrant.types import Composed, Hit, HitGroup, Text

router = APIRouter(tags=["search"])
PER_GROUP = 4
T = TypeVar("T")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "the query image"},
                        "mask": {
                            "type": "string",
                            "format": "binary",
                            "description": "an image of the same size: where it is light, the thing is",
                        },
                        "request": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": "#/components/schemas/UploadRequest"},
                            "description": "an UploadRequest as JSON: box, but, filter, limit ...",
                            "examples": [
                                '{"box": [410, 220, 470, 300], "limit": 20}',
                                '{"box": [410, 220, 470, 300], "but": "a blue mug", "instead_of": "a mug"}',
                            ],
                        },
                    },
                }
            },
        },
    }
}


@router.post(
    "/v1/collections/{collection}/search",
    response_model=SearchAnswer,
    responses=responses(404, 409, 410, 422, 429, 503),
    openapi_extra=_BODY,
)
async def search(collection: CollectionName, request: Request, backend: Service) -> SearchAnswer:
    """The images that hold the thing, best first, each with the box of the object that matched.

    Send JSON to search with an object of a stored image, an earlier upload, or words; or a multipart form with
    an image. Words, alone or to change the thing in an image, need a profile that reads them; others answer 422
    and name those that do.
    """
    await run_in_threadpool(backend.collections.check, collection)
    if is_form(request):
        fields, query, upload = await _form(request, backend)
    else:
        body = parsed(SearchRequest, await request.body())
        fields, query, upload = body, body.query, None
    return await run_search(collection, fields, query, upload, request, backend)


async def _form(request: Request, backend: Backend) -> tuple[SearchFields, ChangedQuery, str]:
    async with form_of(request, max_files=2) as form:
        data = await file_bytes(form.get("image"), "image")
        mask = await file_bytes(form["mask"], "mask") if "mask" in form else None
        body = parsed(UploadRequest, str(form.get("request") or "{}").encode())
    upload = await run_in_threadpool(read_upload, data, mask, backend.settings.max_pixels)
    key = backend.uploads.add(upload)
    change = body.model_dump(include=set(Change.model_fields))
    return body, ChangedQuery(upload=key, box=body.box, **change), key


async def run_search(
    collection: str,
    fields: SearchFields,
    query: ChangedQuery | TextQuery,
    upload: str | None,
    request: Request,
    backend: Backend,
) -> SearchAnswer:
    """Open the images in a thread, queue the search, and shape its answer."""
    options = _options(fields, backend.settings.rerankers)
    images = [query] if isinstance(query, ChangedQuery) else []
    opened = await run_in_threadpool(
        lambda: [
            image_query(backend, collection, one) for one in [*images, *fields.examples, *fields.negatives]
        ]
    )
    first = _changed(opened[0], query) if isinstance(query, ChangedQuery) else _words(query)
    examples = opened[len(images) : len(images) + len(fields.examples)]
    negatives = opened[len(images) + len(fields.examples) :]
    began = time.perf_counter()
    run = _Run(backend, collection, options, fields.group_by)
    if examples or negatives or fields.group_by:
        future = backend.worker.submit(Priority.SEARCH, lambda: run.one(first, examples, negatives))
    else:
        key = (
            collection,
            json.dumps(fields.model_dump(include=set(SearchFields.model_fields)), sort_keys=True),
        )
        future = backend.worker.submit_batched(key, first, run.many)
    hits_or_groups, seconds = await answered(future, backend, request)
    total = time.perf_counter() - began
    past = PastSearch(collection, query if isinstance(query, ChangedQuery) else None)
    answer = SearchAnswer(
        collection=collection,
        search=backend.searches.add(past),
        upload=upload,
        hits=[],
        offset=fields.offset,
        seconds={"wait": round(max(0.0, total - seconds), 4), "search": round(seconds, 4)},
    )
    return shaped(answer, hits_or_groups, fields, backend)


def _changed(image: Query, query: ChangedQuery) -> Query:
    if query.but is None:
        return image
    return Composed(image, query.but, query.instead_of, query.weight)


def _words(query: TextQuery) -> Text:
    return Text(query.text, tuple(query.prompts))


def shaped(
    answer: SearchAnswer, hits_or_groups: list[Hit] | list[HitGroup], fields: SearchFields, backend: Backend
) -> SearchAnswer:
    """The answer with its hits or groups."""
    if fields.group_by:
        answer.groups = [
            GroupModel(
                key=group.key, hits=[_hit(hit, rank, backend) for rank, hit in enumerate(group.hits, 1)]
            )
            for group in hits_or_groups
            if isinstance(group, HitGroup)
        ]
        return answer
    hits = [hit for hit in hits_or_groups if isinstance(hit, Hit)]
    answer.hits = [_hit(hit, rank, backend) for rank, hit in enumerate(hits, fields.offset + 1)]
    answer.next_offset = fields.offset + len(hits) if len(hits) == fields.limit else None
    return answer


def _hit(hit: Hit, rank: int, backend: Backend) -> HitModel:
    fields = backend.collections.fields(hit.payload)
    box = list(hit.box) if hit.box else None
    return HitModel(id=hit.id, rank=rank, score=hit.score, box=box, object=hit.object, **fields)


def _options(fields: SearchFields, rerankers: Sequence[str]) -> dict[str, Any]:
    if fields.group_by and fields.offset:
        raise ConfigError("group_by has no pages: leave offset out, or ask for more groups with limit")
    rerank = fields.rerank or "none"
    if rerank not in rerankers:
        raise ConfigError(
            f"rerank {rerank!r}: this service does not order by it; choose {', '.join(rerankers)}"
        )
    return {
        "limit": fields.limit,
        "filter": (
            with_text(fields.text_in_image, filter_of(fields.filter))
            if fields.text_in_image
            else filter_of(fields.filter)
        ),
        "rerank": rerank,
        "score_threshold": fields.score_threshold,
        **({} if fields.group_by else {"offset": fields.offset}),
    }


class _Run:
    """A search as the worker runs it. Each method also says how long it took."""

    def __init__(
        self, backend: Backend, collection: str, options: dict[str, Any], group_by: str | None
    ) -> None:
        self.backend, self.collection, self.options, self.group_by = backend, collection, options, group_by

    def one(
        self, query: Query, examples: Sequence[Query], negatives: Sequence[Query]
    ) -> tuple[list[Any], float]:
        """With examples, or in groups."""

        def search(searcher: SoirSearcher) -> list[Any]:
            options = {**self.options, "examples": examples, "negatives": negatives}
            if not self.group_by:
                return searcher.search(query, **options)
            return searcher.search_groups(query, self.group_by, group_size=PER_GROUP, **options)

        return self._timed(search)

    def many(self, queries: list[Query]) -> list[tuple[list[Hit], float]]:
        """Several with the same options."""
        listed, seconds = self._timed(lambda searcher: searcher.search_many(queries, **self.options))
        return [(hits, seconds) for hits in listed]

    def _timed(self, search: Callable[[SoirSearcher], T]) -> tuple[T, float]:
        began = time.perf_counter()
        try:
            with stages() as seconds:
                hits = search(self.backend.searcher(self.collection))
        except CollectionError:
            self.backend.forget(self.collection)
            raise
        self.backend.metrics.observe_stages(seconds)
        return hits, time.perf_counter() - began
