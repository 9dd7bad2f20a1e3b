"""Ready-made conditions on what is stored of an image, for `models.Filter(must=[...])`.

On a server all use indexes of the payload, but for regions, which have none: put a label or another condition beside
them. Those that ask two things of the same object are nested: what the index of one of them finds is looked through.
A label may be a list of them, of which the object has one. Each
raises ConfigError for an argument of another type, or out of range.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable
from itertools import chain
from typing import TypeAlias

from qdrant_client import models

from soir_qdrant.errors import ConfigError, ObjectsError
from soir_qdrant.geometry.user_objects import check_box
from soir_qdrant.qdrant.arguments import check_minimum
from soir_qdrant.types import Box

Labels: TypeAlias = str | Iterable[str]


def has_label(*labels: Labels) -> models.FieldCondition:
    """Images with an object of one of these labels: `has_label("mug", "cup")`, or `has_label(["mug", "cup"])`."""
    return _labelled("soir.labels", labels)


def has_text(words: str) -> models.Filter:
    """Images in which all these words were read, on one object or several; case and order do not matter.

    Raises ConfigError where there are none."""
    return models.Filter(must=[models.Filter(should=list(read_anywhere(word))) for word in _listed(words)])


def read_anywhere(word: str) -> tuple[models.FieldCondition, ...]:
    """A word that was read on an object, and one that was read on none."""
    match = models.MatchText(text=word)
    return tuple(models.FieldCondition(key=key, match=match) for key in ("soir.objects[].text", "soir.text"))


def has_text_on_object(words: str) -> models.NestedCondition:
    """Images with an object that has all these words, as in `has_text`."""
    return _nested(
        [models.FieldCondition(key="text", match=models.MatchText(text=word)) for word in _listed(words)],
        None,
    )


def _listed(words: str) -> list[str]:
    if not isinstance(words, str):
        raise ConfigError(f"text {words!r} is a {type(words).__name__}: give the words as one text")
    listed = text_words(words)
    if not listed:
        raise ConfigError(f"text {words!r}: say which words are to be in the image")
    return listed


def text_words(text: str) -> list[str]:
    """The words of a text, in lower case, as a full-text index of Qdrant cuts them."""
    return re.findall(r"\w+", text.lower())


def min_count(count: int) -> models.FieldCondition:
    """Images with at least so many objects."""
    check_minimum("count", count, 0)
    return models.FieldCondition(key="soir.count", range=models.Range(gte=count))


def object_larger_than(
    area: float, label: Labels | None = None
) -> models.FieldCondition | models.NestedCondition:
    """Images with an object (of this label, if given) that covers more than this share of the image, 0..1."""
    return _object_of(models.Range(gt=_share(area)), label)


def object_smaller_than(
    area: float, label: Labels | None = None
) -> models.FieldCondition | models.NestedCondition:
    """Images with an object (of this label, if given) that covers less than this share of the image, 0..1."""
    return _object_of(models.Range(lt=_share(area)), label)


def object_in_region(
    region: Box, label: Labels | None = None, *, partly: bool = False
) -> models.NestedCondition:
    """Images with an object inside a region (or, with `partly`, touching it); of this label, if given.

    region: x0, y0, x1, y1 in pixels of the image.
    """
    try:
        x0, y0, x1, y1 = check_box(region)
    except ObjectsError as error:
        raise ConfigError(f"region: {error}") from error
    if partly:
        bounds = [models.Range(lt=x1), models.Range(lt=y1), models.Range(gt=x0), models.Range(gt=y0)]
    else:
        bounds = [models.Range(gte=x0), models.Range(gte=y0), models.Range(lte=x1), models.Range(lte=y1)]
    sides = [models.FieldCondition(key=f"box[{i}]", range=bound) for i, bound in enumerate(bounds)]
    return _nested(sides, label)


def _object_of(area: models.Range, label: Labels | None) -> models.FieldCondition | models.NestedCondition:
    if label is None:
        return models.FieldCondition(key="soir.objects[].area", range=area)
    return _nested([models.FieldCondition(key="area", range=area)], label)


def _share(area: float) -> float:
    if not isinstance(area, numbers.Real) or not 0 <= area <= 1:
        raise ConfigError(f"area {area!r}: give a share of the image, 0 to 1")
    return float(area)


def _labelled(key: str, labels: Iterable[Labels]) -> models.FieldCondition:
    several = [[some] if isinstance(some, str) else some for some in labels]
    try:
        listed = list(chain.from_iterable(several))
    except TypeError:
        listed = []
    if not listed or not all(isinstance(label, str) for label in listed):
        raise ConfigError(f"label {labels!r}: give a text, or a list of some")
    return models.FieldCondition(key=key, match=models.MatchAny(any=listed))


def _nested(conditions: list[models.FieldCondition], label: Labels | None) -> models.NestedCondition:
    if label is not None:
        conditions = [_labelled("label", [label]), *conditions]
    stand_in = models.FieldCondition(key="stand_in", match=models.MatchValue(value=True))
    inside = models.Filter(must=list(conditions), must_not=[stand_in])
    return models.NestedCondition(nested=models.Nested(key="soir.objects", filter=inside))
