"""Boxes and masks that a user hands in, checked against the image they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from soir_qdrant.errors import ObjectsError
from soir_qdrant.types import Box, Mask, SceneObject


def check_box(box: Iterable[float]) -> Box:
    """x0, y0, x1, y1 in pixels, x1 and y1 exclusive. Raises ObjectsError for a box that is not four finite numbers,
    is empty or inverted, or lies within one pixel, as shares of width and height do."""
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (OverflowError, TypeError, ValueError) as error:
        raise ObjectsError(f"box {str(box)[:80]}: give four numbers, x0, y0, x1, y1 in pixels") from error
    shown = _shown((x0, y0, x1, y1))
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ObjectsError(f"{shown} holds NaN or infinite numbers: give x0, y0, x1, y1 in pixels")
    if max(x1, y1) <= 1 and min(x0, y0) >= 0:
        raise ObjectsError(f"{shown} lies within one pixel: give pixels, not shares of width and height")
    if x1 <= x0 or y1 <= y0:
        raise ObjectsError(f"{shown} is empty or inverted: give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def clip_box(box: Iterable[float], width: int, height: int) -> Box:
    """The part of a box that lies inside an image of width x height pixels.

    box: see `check_box`. Raises ObjectsError as that does, and for a box that lies outside the image.
    """
    x0, y0, x1, y1 = check_box(box)
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise ObjectsError(
            f"{_shown((x0, y0, x1, y1))} lies outside the {width}x{height} image: give pixels of the image after "
            "EXIF rotation"
        )
    return inside


def _shown(box: Box) -> str:
    return "box ({:g}, {:g}, {:g}, {:g})".format(*box)


def fit_objects(objects: Iterable[SceneObject], width: int, height: int) -> list[SceneObject]:
    """The same objects, clipped to an image of width x height pixels.

    A mask is bool (or whole numbers, of which all but 0 count), [H, W] of the image or [h, w] of its box
    rounded outwards to whole pixels, also where the box reaches out of the image. Raises ObjectsError,
    naming the object by its place in the list, for whatever does not fit.
    """
    fitted = []
    for number, item in enumerate(objects):
        if not isinstance(item, SceneObject):
            raise ObjectsError(f"object {number} is a {type(item).__name__}: give SceneObject(box, ...)")
        try:
            fitted.append(_fit(item, width, height))
        except ObjectsError as error:
            raise ObjectsError(f"object {number}: {error}") from error
    return fitted


def _fit(item: SceneObject, width: int, height: int) -> SceneObject:
    try:
        score = float(item.score)
    except (OverflowError, TypeError, ValueError) as error:
        raise ObjectsError(f"score {str(item.score)[:80]}: give a number between 0 and 1") from error
    if not 0 <= score <= 1:
        raise ObjectsError(f"score {score} is not between 0 and 1")
    if item.label is not None and not isinstance(item.label, str):
        raise ObjectsError(f"label {item.label!r} is no text: give a str or None")
    box = clip_box(item.box, width, height)
    mask = None if item.mask is None else _fit_mask(_as_mask(item.mask), item.box, width, height)
    return replace(item, box=box, mask=mask, score=score)


def _as_mask(mask: object) -> Mask:
    try:
        return np.asarray(mask)
    except ValueError as error:  # rows of different lengths
        raise ObjectsError(
            f"mask: give an array, [H, W] of the image or [h, w] of the box ({error})"
        ) from error


def _fit_mask(mask: Mask, box: Box, width: int, height: int) -> Mask:
    """bool, [H, W] or [h, w] of the clipped box rounded outwards; see fit_objects."""
    if mask.dtype != np.bool_ and not np.issubdtype(mask.dtype, np.integer):
        raise ObjectsError(f"mask of {mask.dtype}: give bool, [H, W] of the image or [h, w] of the box")
    x0, y0 = math.floor(box[0]), math.floor(box[1])
    x1, y1 = math.ceil(box[2]), math.ceil(box[3])
    mask = mask.astype(np.bool_, copy=False)
    if mask.shape == (height, width):
        return mask
    if mask.shape == (y1 - y0, x1 - x0):
        return mask[max(-y0, 0) : min(y1, height) - y0, max(-x0, 0) : min(x1, width) - x0]
    raise ObjectsError(
        f"mask of shape {mask.shape}: give that of the image, ({height}, {width}), "
        f"or of the box, ({y1 - y0}, {x1 - x0})"
    )
