"""What is answered of a collection as a whole: its last ingest, a map of its objects, near-duplicates."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from soir_qdrant.service.schemas import FailedImage, Id, StoredImage

Method = Literal["pca", "tsne"]


class LastIngest(BaseModel):
    """What became of the last `soir ingest`, `soir sync` or job."""

    time: str = Field(description="its end, ISO 8601, UTC")
    counts: dict[str, int] = Field(description="images by outcome: added, updated, skipped ...")
    failures: int
    failed: list[FailedImage] = Field(description="the first of the failures, with reasons")
    left_out: list[str] = Field(description="linked folders, and images of formats that are not read")


class ObjectPoint(BaseModel):
    """An object on the map."""

    id: Id
    object: int = Field(description="its number in the image")
    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)


class ObjectMap(BaseModel):
    """Objects in two dimensions: those that look alike lie together."""

    method: Method
    methods: list[Method] = Field(description="that can be had here")
    points: list[ObjectPoint]
    images: int = Field(description="whose objects are on the map")
    total: int = Field(description="images of the collection that pass the filter")


class DuplicateGroup(BaseModel):
    """Images that are nearly the same."""

    similarity: float = Field(description="the lowest cosine of a pair that holds the group together")
    images: list[StoredImage]


class Duplicates(BaseModel):
    """Groups of near-duplicates among a sample, the most alike first."""

    threshold: float
    groups: list[DuplicateGroup]
    images: int = Field(description="that were compared")
    total: int = Field(description="images of the collection")
