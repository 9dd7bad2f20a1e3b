"""Square crops of objects, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import CropSettings
from soir_qdrant.errors import ObjectsError
from soir_qdrant.geometry.resize import Halves, resized
from soir_qdrant.types import RGB, Box, Mask, SceneObject

Background = Literal["keep", "blur", "grey", "drop"]
GREY = np.uint8(124)  # about the mean pixel that the encoders subtract
MIN_SCALE = 0.5  # of its size, that a faint object is shown at
SURROUNDINGS = 0.05  # of each side of a box, that its surface is cut with


class Crops(NamedTuple):
    """K objects, cut out of their images.

    pixels: uint8 [K, S, S, 3], squares around them. masks: float32 [K, S, S], 0..1, the share of each pixel inside
    the object. surfaces: uint8 [K, T, T, 3], their boxes with all that is in them, stretched to squares, and
    surface_masks: float32 [K, T, T], as masks; None where nothing reads them.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.float32]
    surfaces: NDArray[np.uint8] | None = None
    surface_masks: NDArray[np.float32] | None = None


def whole_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The box rounded outwards to whole pixels inside the image."""
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), width), min(int(np.ceil(box[3])), height)
    if x1 <= x0 or y1 <= y0:
        raise ObjectsError(
            f"box {tuple(round(float(v), 1) for v in box)} holds no pixel of the {width}x{height} image"
        )
    return x0, y0, x1, y1


def is_whole(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a box is that of a whole image. shape: its H, W, ... . Raises ObjectsError as `whole_box` does."""
    return whole_box(box, shape[1], shape[0]) == (0, 0, shape[1], shape[0])


def full_mask(item: SceneObject, width: int, height: int) -> Mask:
    """The object's mask in the frame of the image, bool [H, W]. Raises ObjectsError for another shape."""
    x0, y0, x1, y1 = whole_box(item.box, width, height)
    full = np.zeros((height, width), np.bool_)
    part = full[y0:y1, x0:x1]
    if item.mask is None:
        part[:] = True
    elif item.mask.shape == full.shape:
        part[:] = item.mask[y0:y1, x0:x1]
    elif item.mask.shape == part.shape:
        part[:] = item.mask
    else:
        raise ObjectsError(
            f"mask of shape {item.mask.shape}: expected the image's {full.shape} or the box's {part.shape}"
        )
    if not part.any():
        part[:] = True
    return full


def object_pixels(item: SceneObject, width: int, height: int) -> float:
    """How many pixels of an image of width x height are the object's: those of its mask, else of its box."""
    x0, y0, x1, y1 = item.box
    if item.mask is None or not item.mask.any():
        return (x1 - x0) * (y1 - y0)
    mask = item.mask
    if mask.shape == (height, width):
        mask = mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
    return float(mask.sum())


def cut_mask(mask: Mask, box: NDArray[np.floating]) -> Mask:
    """The part of a whole image's mask, bool [H, W], in the frame of a box; the whole box where that is
    empty."""
    corners = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    x0, y0, x1, y1 = whole_box(corners, mask.shape[1], mask.shape[0])
    part = mask[y0:y1, x0:x1]
    return part.copy() if part.any() else np.ones_like(part)


def square(box: Box, width: int, height: int, *, margin: float, min_side: int = 0) -> tuple[int, int, int]:
    """x, y and side of the square around a box.

    margin: added on each side, as a fraction of the longer box side. min_side: the smallest side in pixels;
    the paper's crop is margin 0 and min_side = the encoder's input side. The square is moved into the image
    where it fits, and is otherwise centred on the image, reaching out of it.
    """
    longer = max(box[2] - box[0], box[3] - box[1], 1.0)
    side = round(max(longer * (1 + 2 * margin), min_side, 2))

    def start(low: float, high: float, length: int) -> int:
        first = round((low + high - side) / 2)
        return min(max(first, 0), length - side) if side <= length else (length - side) // 2

    return start(box[0], box[2], width), start(box[1], box[3], height), side


def square_pixels(
    plane: NDArray[np.uint8], x: int, y: int, side: int, outside: np.uint8 = GREY
) -> NDArray[np.uint8]:
    """The square of an image or mask [H, W, ...] at x, y: uint8 [side, side, ...], not to be written to. `outside`
    stands where it reaches out of the image."""
    height, width = plane.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    if (x1 - x0, y1 - y0) == (side, side):
        return plane[y0:y1, x0:x1]
    pixels = np.full((side, side, *plane.shape[2:]), outside)
    pixels[y0 - y : y1 - y, x0 - x : x1 - x] = plane[y0:y1, x0:x1]
    return pixels


def bordered(
    plane: NDArray[np.uint8], left: int, top: int, right: int, bottom: int, border: int
) -> NDArray[np.uint8]:
    """A rectangle of an image or mask [H, W, ...] that may reach out of it, uint8 [bottom - top, right - left, ...].
    border: OpenCV's kind of what stands beyond; a constant one is zero."""
    height, width = plane.shape[:2]
    part = plane[max(top, 0) : max(bottom, 1), max(left, 0) : max(right, 1)]
    beyond = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    return np.asarray(cv2.copyMakeBorder(part, *beyond, border, value=(0,)), np.uint8)


def share(mask: Mask | NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """How much of each pixel of a smaller or larger square is a mask's, float32 [size, size], 0..1.

    mask: bool or uint8 of 0 and 1, [H, W].
    """
    inside = mask.view(np.uint8) * np.uint8(255)
    return resized(inside, size, size).astype(np.float32) / np.float32(255)


def surface(image: RGB | Halves, mask: Mask, box: Box, size: int) -> tuple[RGB, NDArray[np.float32]]:
    """A box of an image [H, W, 3] and a little around it, stretched to a square, uint8 [size, size, 3]; and of the
    object's mask, bool [H, W], float32 [size, size], 0..1."""
    image = Halves.of(image)
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * SURROUNDINGS, (y1 - y0) * SURROUNDINGS
    x0, y0, x1, y1 = whole_box((x0 - dx, y0 - dy, x1 + dx, y1 + dy), image.shape[1], image.shape[0])
    plane, scale = image.showing(min(y1 - y0, x1 - x0), size)
    top, bottom, left, right = (round(value * scale) for value in (y0, y1, x0, x1))
    return resized(plane[top:bottom, left:right], size, size), share(mask[y0:y1, x0:x1], size)


def crop(
    image: RGB | Halves,
    mask: Mask,
    box: Box,
    size: int,
    *,
    margin: float,
    min_side: int = 0,
    background: Background = "keep",
) -> tuple[RGB, NDArray[np.float32]]:
    """Cut out the square around a box.

    image: uint8 [H, W, 3]; mask: bool [H, W]. Returns the crop, uint8 [size, size, 3], and the share of
    each of its pixels inside the mask, float32 [size, size], 0..1. What lies outside the image is grey.
    background: what becomes of the pixels outside the mask.
    """
    height, width = mask.shape
    x, y, side = square(box, width, height, margin=margin, min_side=min_side)
    plane, scale = Halves.of(image).showing(side, size)
    pixels = square_pixels(plane, round(x * scale), round(y * scale), round(side * scale))
    inside = share(square_pixels(mask.view(np.uint8), x, y, side, np.uint8(0)), size)
    small = resized(pixels, size, size, cv2.INTER_CUBIC)
    if background != "keep":
        other = (
            np.full_like(small, GREY)
            if background in ("grey", "drop")
            else cv2.GaussianBlur(small, (0, 0), size / 16)
        )
        small = np.asarray(cv2.blendLinear(small, other, inside, 1 - inside))
    return small, inside


def min_side(settings: CropSettings, size: int, height: int, width: int) -> int:
    """The smallest side of a square, in pixels of an image: see `CropSettings.native`. size: of the encoder's crops."""
    return min(size, height, width) if settings.native else 0


def margin_of(settings: CropSettings, score: float) -> float:
    """`CropSettings.margin` around an object of this score, 0..1: so wide that a faint one is shown smaller."""
    scale = max(score / settings.full_score, MIN_SCALE) if score < settings.full_score else 1
    return ((1 + 2 * settings.margin) / scale - 1) / 2


def cut(
    image: RGB | Halves, item: SceneObject, settings: CropSettings, size: int, surface_size: int = 0
) -> tuple[NDArray[Any], ...]:
    """An object's part of each array of `Crops`; without its surface where that has no size."""
    image = Halves.of(image)
    height, width = image.shape[:2]
    mask, shortest = full_mask(item, width, height), min_side(settings, size, height, width)
    around = crop(
        image,
        mask,
        item.box,
        size,
        margin=margin_of(settings, item.score),
        min_side=shortest,
        background=settings.background,
    )
    if not surface_size:
        return around
    if item.score < settings.texture_score:
        return (*around, *_no_surface(surface_size))
    return (*around, *surface(image, mask, item.box, surface_size))


def _no_surface(size: int) -> tuple[RGB, NDArray[np.float32]]:
    return np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.float32)


def together(parts: Sequence[tuple[NDArray[Any], ...]], size: int, surface_size: int = 0) -> Crops:
    """What `cut` returned for K objects, K may be 0, by the same sizes."""
    if parts:
        return Crops(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def empty(side: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.zeros((0, side, side, 3), np.uint8), np.zeros((0, side, side), np.float32)

    return Crops(*empty(size), *(empty(surface_size) if surface_size else ()))
