"""What is answered of a collection as a whole: its last ingest, a map of its objects, near-duplicates."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from soir_qdrant.service.schemas import EXAMPLE_ID, EXAMPLE_IMAGE, FailedImage, Id, StoredImage, example

Method = Literal["pca", "tsne"]


class LastIngest(BaseModel):
    """What became of the last `soir ingest`, `soir sync` or job."""

    model_config = example(
        {
            "time": "2026-05-04T09:30:00+00:00",
            "counts": {"added": 118, "skipped": 4},
            "failures": 1,
            "failed": [{"name": "broken.jpg", "reason": "no image of a known kind"}],
            "left_out": ["manual.pdf"],
        }
    )

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

    model_config = example(
        {
            "method": "pca",
            "methods": ["pca", "tsne"],
            "points": [{"id": EXAMPLE_ID, "object": 0, "x": 0.31, "y": 0.77}],
            "images": 1000,
            "total": 1204,
        }
    )

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

    model_config = example(
        {
            "threshold": 0.8,
            "groups": [
                {"similarity": 0.93, "images": [EXAMPLE_IMAGE, {**EXAMPLE_IMAGE, "name": "copy.jpg"}]}
            ],
            "images": 1000,
            "total": 1204,
        }
    )

    threshold: float
    groups: list[DuplicateGroup]
    images: int = Field(description="that were compared")
    total: int = Field(description="images of the collection")
