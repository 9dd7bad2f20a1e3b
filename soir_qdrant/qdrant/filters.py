"""Ready-made conditions on what is stored of an image, for `models.Filter(must=[...])`.

The flat ones (`has_label`, `has_text`, `min_count`) use an index of the payload. The others look into the list of
objects; those that ask two things of the same object are nested, which Qdrant evaluates more slowly:
put a flat condition beside them where there is one.
"""

from __future__ import annotations

import re

from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.types import Box


def has_label(*labels: str) -> models.FieldCondition:
    """Images with an object of one of these labels."""
    return models.FieldCondition(key="soir.labels", match=models.MatchAny(any=list(labels)))


def has_text(words: str) -> models.Filter:
    """Images in which all these words were read, on one object or several (`soir ingest --ocr`); case and order
    do not matter. Raises ConfigError where there are none."""
    return models.Filter(
        must=[
            models.Filter(
                should=[
                    models.FieldCondition(key=key, match=models.MatchText(text=word))
                    for key in ("soir.objects[].text", "soir.text")
                ]
            )
            for word in _listed(words)
        ]
    )


def has_text_on_object(words: str) -> models.NestedCondition:
    """Images with an object that has all these words, as in `has_text`."""
    return _nested(
        [models.FieldCondition(key="text", match=models.MatchText(text=word)) for word in _listed(words)],
        None,
    )


def _listed(words: str) -> list[str]:
    listed = text_words(words)
    if not listed:
        raise ConfigError(f"text {words!r}: say which words are to be in the image")
    return listed


def text_words(text: str) -> list[str]:
    """The words of a text, in lower case, as a full-text index of Qdrant cuts them."""
    return re.findall(r"\w+", text.lower())


def min_count(count: int) -> models.FieldCondition:
    """Images with at least so many objects."""
    return models.FieldCondition(key="soir.count", range=models.Range(gte=count))


def object_larger_than(
    area: float, label: str | None = None
) -> models.FieldCondition | models.NestedCondition:
    """Images with an object (of this label, if given) that covers more than this share of the image, 0..1."""
    return _object_of(models.Range(gt=area), label)


def object_smaller_than(
    area: float, label: str | None = None
) -> models.FieldCondition | models.NestedCondition:
    """Images with an object (of this label, if given) that covers less than this share of the image, 0..1."""
    return _object_of(models.Range(lt=area), label)


def object_in_region(
    region: Box, label: str | None = None, *, partly: bool = False
) -> models.NestedCondition:
    """Images with an object inside a region (or, with `partly`, touching it); of this label, if given.

    region: x0, y0, x1, y1 in pixels of the image.
    """
    x0, y0, x1, y1 = region
    if partly:
        bounds = [models.Range(lt=x1), models.Range(lt=y1), models.Range(gt=x0), models.Range(gt=y0)]
    else:
        bounds = [models.Range(gte=x0), models.Range(gte=y0), models.Range(lte=x1), models.Range(lte=y1)]
    sides = [models.FieldCondition(key=f"box[{i}]", range=bound) for i, bound in enumerate(bounds)]
    return _nested(sides, label)


def _object_of(area: models.Range, label: str | None) -> models.FieldCondition | models.NestedCondition:
    if label is None:
        return models.FieldCondition(key="soir.objects[].area", range=area)
    return _nested([models.FieldCondition(key="area", range=area)], label)


def _nested(conditions: list[models.FieldCondition], label: str | None) -> models.NestedCondition:
    if label is not None:
        conditions = [
            models.FieldCondition(key="label", match=models.MatchValue(value=label)),
            *conditions,
        ]
    stand_in = models.FieldCondition(key="stand_in", match=models.MatchValue(value=True))
    inside = models.Filter(must=list(conditions), must_not=[stand_in])
    return models.NestedCondition(nested=models.Nested(key="soir.objects", filter=inside))
