"""What is sent and answered, with the examples that OpenAPI shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag, model_validator

from soir_qdrant.types import OnExists

Id = Annotated[
    int | str, Field(description="a point's id: a whole number or a UUID", union_mode="left_to_right")
]
BoxField = Annotated[
    list[FiniteFloat],
    Field(min_length=4, max_length=4, description="x0, y0, x1, y1 in pixels of the upright image"),
]
EXAMPLE_ID = "5f0f3d4e-7c6b-5a2e-9d0a-3b1c2d3e4f50"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageQuery(_Strict):
    """One thing in one image: an uploaded one or one of the collection."""

    id: Id | None = Field(None, description="of a stored image")
    upload: str | None = Field(None, description="of an image that was sent before: `upload` of that answer")
    object: int | None = Field(None, ge=0, description="number of a stored object of that image")
    box: BoxField | None = None

    @model_validator(mode="after")
    def _one_image(self) -> ImageQuery:
        if (self.id is None) == (self.upload is None):
            raise ValueError("give the id of a stored image, or upload: one of the two")
        if self.object is not None and (self.box is not None or self.id is None):
            raise ValueError("object is the number of an object of a stored image, instead of a box")
        return self


class TextQuery(_Strict):
    """Words, where the profile reads them (clip, siglip)."""

    text: str = Field(min_length=1, max_length=1000)


class BoxQuery(_Strict):
    """The image that is sent along, or a box in it."""

    box: BoxField | None = None


class SearchFields(_Strict):
    """What a search can be told beside its query."""

    examples: list[ImageQuery] = Field([], max_length=16, description="more images of the same thing")
    negatives: list[ImageQuery] = Field([], max_length=16, description="images of what is not meant")
    filter: dict[str, Any] | None = Field(None, description="a filter of Qdrant, as JSON")
    text_in_image: str | None = Field(
        None, min_length=1, max_length=1000, description="words that were read in the image (ingest --ocr)"
    )
    rerank: str | None = Field(
        "stored",
        max_length=60,
        description="the order: stored (codes and patches), codes, objects, patches, image, q-perturbation, or null "
        "for Qdrant's own",
    )
    limit: int = Field(20, ge=1, le=200)
    offset: int = Field(0, ge=0, le=10_000)
    group_by: str | None = Field(
        None, max_length=200, description="a payload key: the best images of each value"
    )
    score_threshold: FiniteFloat | None = None


def _kind(query: Any) -> str:
    words = "text" in query if isinstance(query, dict) else isinstance(query, TextQuery)
    return "text" if words else "image"


class SearchRequest(SearchFields):
    """A search by an object of a stored image, an earlier upload, or words."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": {"id": EXAMPLE_ID, "object": 2}, "limit": 20},
                {
                    "query": {"id": EXAMPLE_ID, "box": [410, 220, 470, 300]},
                    "filter": {"must": [{"key": "soir.count", "range": {"gte": 3}}]},
                },
            ]
        }
    )
    query: Annotated[
        Annotated[ImageQuery, Tag("image")] | Annotated[TextQuery, Tag("text")], Discriminator(_kind)
    ]


class UploadRequest(SearchFields):
    """The field `request` of a multipart search: what goes with the image."""

    box: BoxField | None = None


class StoredObject(BaseModel):
    """An object of a stored image."""

    box: list[float]
    score: float | None = None
    area: float | None = Field(None, description="share of the image")
    label: str | None = None
    text: str | None = Field(None, description="what is written on it, where that was read")


class StoredImage(BaseModel):
    """A stored image: what is known of it, and nothing of where its file lies outside the given folders."""

    id: Id
    name: str = Field(description="of the file, below the folders of the service where they are given")
    width: int | None = None
    height: int | None = None
    objects: list[StoredObject] = []
    labels: list[str] = []
    payload: dict[str, Any] = Field({}, description="the user's own keys")


class HitModel(StoredImage):
    """A stored image that was found."""

    rank: int
    score: float
    box: list[float] | None = Field(None, description="of the object that matched")
    object: int | None = Field(None, description="its number in `objects`")


class GroupModel(BaseModel):
    """The best images that share a payload value."""

    key: int | str
    hits: list[HitModel]


class SearchAnswer(BaseModel):
    """What was found, best first."""

    collection: str
    search: str = Field(description="names this search for /heat, for some minutes")
    upload: str | None = Field(None, description="names the image that was sent, for further searches")
    hits: list[HitModel]
    groups: list[GroupModel] | None = None
    offset: int
    next_offset: int | None = Field(None, description="of the next page, where there may be one")
    seconds: dict[str, float] = Field(description="wait: in the queue; search: models, Qdrant and order")


class ImagePage(BaseModel):
    """Some images of a collection, in order of their ids."""

    images: list[StoredImage]
    next: Id | None = Field(None, description="`after` of the next page")


class CollectionModel(BaseModel):
    """A collection that may be searched."""

    name: str
    count: int = Field(description="images")


class ServiceModel(BaseModel):
    """What this service can do."""

    version: str
    collections: list[CollectionModel]
    reads_text: bool
    writable: bool
    uploads: bool = Field(description="whether files may be added")
    max_bytes: int = Field(description="of an upload")


class Facet(BaseModel):
    """A payload key that the collection holds."""

    key: str
    kind: Literal["text", "number", "boolean"]
    values: list[str | bool] = Field([], description="the most frequent ones")
    min: float | None = None
    max: float | None = None


class Facets(BaseModel):
    """What images can be filtered by, from a sample of them."""

    labels: list[str]
    keys: list[Facet]
    max_count: int = Field(description="the most objects of one image")
    sampled: int


class AddRequest(_Strict):
    """Files or folders to add, below a folder given by --root."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"paths": ["shelves/2026-05"]}]})
    paths: list[str] = Field(min_length=1, max_length=1000)
    payload: dict[str, Any] = {}
    on_exists: OnExists = Field("skip", description="what to do with stored images")


class DeleteRequest(_Strict):
    """Images to take out of the collection; their files stay."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [EXAMPLE_ID]}]})
    ids: list[Id] = Field(min_length=1, max_length=1000)


class Deleted(BaseModel):
    """How many of the images were there and are gone."""

    deleted: int


class FailedImage(BaseModel):
    """An image that could not be added, and why."""

    name: str
    reason: str


class JobModel(BaseModel):
    """A run of adding images."""

    id: str
    collection: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    total: int
    done: int
    added: int
    updated: int = Field(description="were stored, and were made anew")
    skipped: int = Field(description="were stored, and were left as they are")
    stale: int = Field(
        description="of the skipped ones: stored by other settings; on_exists=update renews them"
    )
    failed: list[FailedImage]
    error: str | None = None


class DetectedObjects(BaseModel):
    """The objects of an uploaded image."""

    upload: str
    width: int
    height: int
    objects: list[StoredObject]


class Login(_Strict):
    """The token, once, for the page."""

    token: str = Field(max_length=1000)


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "there is no collection 'shelves': ingest images into it first",
                    "request_id": "3f9a1c2b7d8e4f60",
                }
            ]
        }
    )
    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = None
