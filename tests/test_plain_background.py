"""Queries on a background of one colour: what is cut out, and what is left as it is."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from soir_qdrant.config import Settings
from soir_qdrant.geometry.plain_background import plain_foreground
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import RGB, Mask

WHITE, GREY, BLACK = (255, 255, 255), (128, 130, 127), (0, 0, 0)
RED, YELLOW, BEIGE = (190, 40, 30), (230, 200, 40), (250, 247, 242)


def shape(width: int, height: int, kind: str) -> Mask:
    drawn = np.zeros((height, width), np.uint8)
    centre, axes = (width // 2, height // 2), (width // 3, height // 4)
    if kind == "ellipse":
        cv2.ellipse(drawn, centre, axes, 20, 0, 360, 1, -1)
    elif kind == "bar":
        cv2.line(
            drawn, (width // 8, height // 6), (width * 7 // 8, height * 4 // 5), 1, min(width, height) // 7
        )
    else:
        cv2.circle(drawn, centre, min(axes), 1, -1)
        cv2.rectangle(drawn, (centre[0], centre[1] - 5), (width - 3, centre[1] + 5), 1, -1)
    return drawn.astype(bool)


def product(mask: Mask, colour: tuple[int, ...], background: tuple[int, ...]) -> RGB:
    """With soft edges, as a camera makes them."""
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None]
    return np.round(share * np.array(colour) + (1 - share) * np.array(background)).astype(np.uint8)


def jpeg(image: RGB, quality: int) -> RGB:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def overlap(one: Mask | None, other: Mask) -> float:
    assert one is not None
    return float((one & other).sum() / (one | other).sum())


@settings(
    max_examples=25, deadline=None, derandomize=True
)  # of 120 pixels, strong JPEG eats a tenth: left out
@given(
    st.integers(240, 900),
    st.integers(240, 700),
    st.sampled_from(["ellipse", "bar", "handle"]),
    st.sampled_from([RED, YELLOW]),
    st.sampled_from([WHITE, GREY, BLACK]),
    st.sampled_from([None, 75, 92]),
)
@pytest.mark.slow
def test_a_coloured_thing_is_cut_out(width, height, kind, colour, background, quality):
    mask = shape(width, height, kind)
    image = product(mask, colour, background)
    image = image if quality is None else jpeg(image, quality)
    assert overlap(plain_foreground(image), mask) > 0.9


def test_a_soft_shadow_does_not_hinder():
    mask = shape(300, 240, "ellipse")
    shadow = cv2.GaussianBlur(np.roll(mask, (12, 6), (0, 1)).astype(np.float32), (0, 0), 12)[..., None]
    image = product(mask, RED, WHITE) * np.where(mask[..., None], 1, 1 - 0.25 * shadow)
    found = plain_foreground(image.astype(np.uint8))
    assert found is not None
    assert found[mask].mean() > 0.99
    assert found.mean() < 2 * mask.mean()


def test_a_thing_may_touch_the_border_and_have_a_label():
    mask = np.zeros((200, 150), bool)
    mask[4:, 40:110] = True
    image = product(mask, RED, WHITE)
    image[80:120, 55:95] = 255  # a white label is part of it
    assert overlap(plain_foreground(image), mask) > 0.9


@pytest.mark.parametrize("colour", [BEIGE, (253, 253, 253), (240, 240, 240)])
@pytest.mark.parametrize("printed", [False, True])
def test_pale_things_on_white_are_left_whole(colour, printed):
    """Also with a print in a strong colour, which alone would be cut out."""
    mask = shape(300, 240, "ellipse")
    image = product(mask, colour, WHITE)
    if printed:
        image[110:130, 135:165] = RED
    assert plain_foreground(image) is None
    assert plain_foreground(jpeg(image, 90)) is None


@pytest.mark.parametrize("seed", range(5))
def test_crops_of_photographs_are_left_whole(seed):
    rng = np.random.default_rng(seed)
    rough = rng.integers(40, 220, (9, 12, 3)).astype(np.uint8)
    image = cv2.resize(rough, (240, 180), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    image[60:120, 80:160] = RED
    assert plain_foreground(image) is None
    assert plain_foreground(image, (80, 60, 160, 120)) is None


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (8, 8), (40, 30)])
def test_pictures_of_nothing_are_left_whole(size):
    assert plain_foreground(np.full((*size, 3), 200, np.uint8)) is None


def test_in_a_box_only_what_is_around_it_counts():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    mask = np.zeros((300, 400), bool)
    mask[50:250, 100:300] = shape(200, 200, "ellipse")
    image[30:270, 80:320] = product(mask, RED, WHITE)[30:270, 80:320]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert overlap(plain_foreground(image, box), mask) > 0.9
    assert plain_foreground(image) is None


def test_a_query_on_white_is_cut_as_its_cut_out_is(shipped_encoder):
    settings = Settings().but(detector={"kind": "none"}, segmenter={"kind": "box"})
    pipeline = Pipeline(settings, encoder=shipped_encoder)
    mask = shape(300, 240, "handle")
    image = product(mask, RED, WHITE)
    crop, wanted = pipeline.query_crop(image), pipeline.query_crop(image, mask=mask)
    assert np.abs(crop.masks - wanted.masks).mean() < 0.03
    assert np.abs(crop.pixels.astype(float) - wanted.pixels).mean() < 6
    whole = pipeline.query_crop(image, mask=np.ones_like(mask))  # the user's mask counts
    assert whole.masks.mean() > 1.5 * crop.masks.mean()
