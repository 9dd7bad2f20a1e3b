"""What is sent and answered, with the examples that OpenAPI shows; searches: schemas_search.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from soir_qdrant.types import OnExists

MAX_SAFE_INTEGER = 2**53 - 1  # JavaScript and other readers of JSON round larger ones


def _exact(id_: int | str) -> int | str:
    return str(id_) if isinstance(id_, int) and id_ > MAX_SAFE_INTEGER else id_


Id = Annotated[
    int | str,
    Field(
        description="a point's id: a whole number, as text where it has more than 53 bits, or a UUID",
        union_mode="left_to_right",
    ),
    PlainSerializer(_exact, when_used="json"),
]
EXAMPLE_ID = "5f0f3d4e-7c6b-5a2e-9d0a-3b1c2d3e4f50"
EXAMPLE_UPLOAD = "kq1ZtU9m3vXbQd0Y"
_BOX = [412.0, 221.5, 470.0, 300.0]
_OBJECT = {"box": _BOX, "score": 0.83, "area": 0.011, "label": "mug"}
EXAMPLE_IMAGE = {
    "id": EXAMPLE_ID,
    "name": "kitchen/room.jpg",
    "width": 1280,
    "height": 960,
    "objects": [_OBJECT],
    "labels": ["mug"],
    "payload": {"shop": "north"},
}
_HIT = {**EXAMPLE_IMAGE, "rank": 1, "score": 0.742, "box": _BOX, "object": 0}
_COLLECTION = {"name": "shelves", "count": 1204}
EXAMPLE_JOB = {
    "id": "b1946ac92492d234",
    "collection": "shelves",
    "state": "running",
    "total": 120,
    "done": 31,
    "added": 30,
    "updated": 0,
    "skipped": 0,
    "stale": 0,
    "failed": [{"name": "broken.jpg", "reason": "no image of a known kind"}],
}


def example(value: dict[str, Any]) -> ConfigDict:
    """A model's configuration, with what OpenAPI shows of it."""
    return ConfigDict(json_schema_extra={"examples": [value]})


class Strict(BaseModel):
    """A request: fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid")


class StoredObject(BaseModel):
    """An object of a stored image."""

    box: list[float]
    score: float | None = None
    area: float | None = Field(None, description="share of the image")
    label: str | None = None
    text: str | None = Field(None, description="what is written on it, where that was read")


class StoredImage(BaseModel):
    """A stored image: what is known of it, and nothing of where its file lies outside the given folders."""

    model_config = example(EXAMPLE_IMAGE)

    id: Id
    name: str = Field(description="of the file, below the folders of the service where they are given")
    width: int | None = None
    height: int | None = None
    objects: list[StoredObject] = []
    labels: list[str] = []
    payload: dict[str, Any] = Field({}, description="the user's own keys")


class HitModel(StoredImage):
    """A stored image that was found."""

    model_config = example(_HIT)

    rank: int
    score: float
    box: list[float] | None = Field(None, description="of the object that matched")
    object: int | None = Field(None, description="its number in `objects`")


class GroupModel(BaseModel):
    """The best images that share a payload value."""

    model_config = example({"key": "north", "hits": [_HIT]})

    key: int | str
    hits: list[HitModel]


class SearchAnswer(BaseModel):
    """What was found, best first."""

    model_config = example(
        {
            "collection": "shelves",
            "search": "w3Zr8mQy0aLkTn5C",
            "upload": EXAMPLE_UPLOAD,
            "hits": [_HIT],
            "offset": 0,
            "next_offset": 20,
            "seconds": {"wait": 0.002, "search": 0.61},
        }
    )

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

    model_config = example({"images": [EXAMPLE_IMAGE], "next": EXAMPLE_ID})

    images: list[StoredImage]
    next: Id | None = Field(None, description="`after` of the next page")


class CollectionModel(BaseModel):
    """A collection that may be searched."""

    model_config = example(_COLLECTION)

    name: str
    count: int = Field(description="images")


class ServiceModel(BaseModel):
    """What this service can do."""

    model_config = example(
        {
            "version": "0.2.0",
            "collections": [_COLLECTION],
            "ready": True,
            "reads_text": False,
            "writable": False,
            "uploads": False,
            "max_bytes": 20_000_000,
        }
    )

    version: str
    collections: list[CollectionModel]
    ready: bool = Field(description="whether the models are loaded")
    reads_text: bool = Field(
        description="whether words can be searched with; false until the models are loaded"
    )
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

    model_config = example(
        {
            "labels": ["bottle", "mug"],
            "keys": [{"key": "shop", "kind": "text", "values": ["north", "south"]}],
            "max_count": 64,
            "sampled": 400,
        }
    )

    labels: list[str]
    keys: list[Facet]
    max_count: int = Field(description="the most objects of one image")
    sampled: int


class AddRequest(Strict):
    """Files or folders to add, below a folder given by --root."""

    model_config = example({"paths": ["shelves/2026-05"], "payload": {"shop": "north"}})
    paths: list[str] = Field(min_length=1, max_length=1000)
    payload: dict[str, Any] = {}
    on_exists: OnExists = Field("skip", description="what to do with stored images")


class DeleteRequest(Strict):
    """Images to take out of the collection; their files stay."""

    model_config = example({"ids": [EXAMPLE_ID]})
    ids: list[Id] = Field(min_length=1, max_length=1000)


class Deleted(BaseModel):
    """How many of the images were there and are gone."""

    model_config = example({"deleted": 1})

    deleted: int


class FailedImage(BaseModel):
    """An image that could not be added, and why."""

    name: str
    reason: str


class JobModel(BaseModel):
    """A run of adding images."""

    model_config = example(EXAMPLE_JOB)

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

    model_config = example({"upload": EXAMPLE_UPLOAD, "width": 1280, "height": 960, "objects": [_OBJECT]})

    upload: str
    width: int
    height: int
    objects: list[StoredObject]


class Login(Strict):
    """The token, once, for the page."""

    model_config = example({"token": "the one of soir serve --token"})

    token: str = Field(max_length=1000)


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = example(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "there is no collection 'shelves': ingest images into it first",
            "request_id": "3f9a1c2b7d8e4f60",
        }
    )
    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = None
