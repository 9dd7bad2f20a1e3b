"""Pixels at another size: the same picture, however large it was."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.geometry.crops import share, square_pixels
from soir_qdrant.geometry.resize import MUCH, Halves, resized
from soir_qdrant.models.segmenters.windows import around, in_box, likely, window_image

SIDES = st.integers(1, 300)
SMALL = st.integers(8, 40)


@given(height=SIDES, width=SIDES, to=st.tuples(SMALL, SMALL))
def test_a_smaller_image_holds_the_means_of_its_areas(height: int, width: int, to: tuple[int, int]) -> None:
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    image = np.repeat(ramp[..., None], 3, 2).round().astype(np.uint8)
    small = resized(image, *to)
    assert small.shape == (to[1], to[0], 3)
    assert small.dtype == np.uint8
    if height > to[1] and width > to[0]:
        exact = cv2.resize(image.astype(np.float64), to, interpolation=cv2.INTER_AREA)
        shift = 240 / (MUCH * min(to))  # halving an odd side leaves a row out
        assert np.abs(small - exact).max() <= 2 + shift


def test_a_large_photograph_is_made_small_as_well_as_in_one_step() -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (2000, 1500))
    exact = cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(resized(image, 96, 96) - exact).mean() < 1


@given(side=st.integers(1, 900), filled=st.floats(0, 1))
def test_a_mask_keeps_its_share_at_any_size(side: int, filled: float) -> None:
    mask = np.zeros((side, side), np.bool_)
    mask[: round(filled * side)] = True
    part = share(mask, 16)
    assert part.dtype == np.float32
    assert part.min() >= 0
    assert part.max() <= 1 + 1e-6
    assert abs(part.mean() - mask.mean()) <= 1 / 16


def test_a_photograph_ten_times_as_wide_has_the_same_masks() -> None:
    rows, columns = np.mgrid[:96, :96]
    chances = (((rows - 48) / 20) ** 2 + ((columns - 40) / 30) ** 2 < 1).astype(np.float32)
    box, boxes = (30, 80, 230, 220), []
    for times in (1, 10):
        at, shape = (0, 0, 300 * times), (300 * times, 300 * times)
        x0, y0, x1, y1 = (times * value for value in box)
        pieces = likely(chances, at[2])
        boxes.append(np.array(around(pieces, (x0, y0, x1, y1), at, shape)) / times)
        mask = in_box(pieces, (x0, y0, x1, y1), at, shape)
        assert mask.shape == (y1 - y0, x1 - x0)
        assert abs(mask.mean() - np.pi * 20 * 30 * (300 / 96) ** 2 / (200 * 140)) < 0.03
    assert np.abs(boxes[0] - boxes[1]).max() < 1


def test_objects_share_the_halves_of_their_image() -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (2000, 1500))
    halves = Halves(image)
    assert halves.showing(300, 96)[0] is image
    for at in ((100, 200, 300), (700, 301, 801), (-50, -70, 1600)):
        alone = cv2.resize(square_pixels(image, *at), (96, 96), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(window_image(halves, at, 96) - alone).mean() < 2
    plane, scale = halves.showing(1500, 96)
    assert (plane.shape[:2], scale) == ((375, 500), 0.25)
    assert halves.showing(1500, 96)[0] is plane
