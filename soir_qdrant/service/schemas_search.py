"""What is searched with: images, words, words that change an image, and the options of a search."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    model_validator,
)

from soir_qdrant.service.schemas import EXAMPLE_ID, Id, Strict

MAX_WORDS = 1000  # characters
BoxField = Annotated[
    list[FiniteFloat],
    Field(min_length=4, max_length=4, description="x0, y0, x1, y1 in pixels of the upright image"),
]


def _has_place(prompt: str) -> str:
    if "{}" not in prompt:
        raise ValueError(f"{prompt[:80]!r} has no {{}}, where the words go")
    return prompt


Prompt = Annotated[str, Field(min_length=2, max_length=MAX_WORDS), AfterValidator(_has_place)]


class ImageQuery(Strict):
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


class Change(BaseModel):
    """Words that change the thing in an image, where the profile reads words: this mug, but blue."""

    but: str | None = Field(
        None, min_length=1, max_length=MAX_WORDS, description="what is wanted: a blue mug"
    )
    instead_of: str | None = Field(
        None, min_length=1, max_length=MAX_WORDS, description="with but: what the image shows, a mug"
    )
    weight: FiniteFloat = Field(0.5, ge=0, le=1, description="of the words")

    @model_validator(mode="after")
    def _changes_to_something(self) -> Change:
        if self.instead_of is not None and self.but is None:
            raise ValueError("instead_of says what the image shows: but says what is wanted in its place")
        return self


class ChangedQuery(ImageQuery, Change):
    """One thing in one image, and words that change it."""


class TextQuery(Strict):
    """Words, where the profile reads them."""

    text: str = Field(min_length=1, max_length=MAX_WORDS)
    prompts: list[Prompt] = Field(
        [], max_length=32, description="what the words are put into, at {}; the mean of all is searched for"
    )


class SearchFields(Strict):
    """What a search can be told beside its query."""

    examples: list[ImageQuery] = Field([], max_length=16, description="more images of the same thing")
    negatives: list[ImageQuery] = Field([], max_length=16, description="images of what is not meant")
    filter: dict[str, Any] | None = Field(None, description="a filter of Qdrant, as JSON")
    text_in_image: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_WORDS,
        description="words that were read in the image",
    )
    rerank: str | None = Field(
        "stored",
        max_length=60,
        description="the order: stored (codes and patches), codes, objects, or null for Qdrant's own; others where "
        "the service was started with them",
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
                {"query": {"text": "a red mug", "prompts": ["a photo of {}", "{} on a shelf"]}},
                {
                    "query": {
                        "id": EXAMPLE_ID,
                        "object": 2,
                        "but": "a blue mug",
                        "instead_of": "a mug",
                        "weight": 0.5,
                    }
                },
            ]
        }
    )
    query: Annotated[
        Annotated[ChangedQuery, Tag("image")] | Annotated[TextQuery, Tag("text")], Discriminator(_kind)
    ]


class UploadRequest(SearchFields, Change):
    """The field `request` of a multipart search: what goes with the image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"box": [410, 220, 470, 300], "limit": 20},
                {"box": [410, 220, 470, 300], "but": "a blue mug", "instead_of": "a mug"},
            ]
        }
    )
    box: BoxField | None = None
