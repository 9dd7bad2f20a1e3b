"""Pixels at another size: the same picture, however large it was."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.geometry.crops import share
from soir_qdrant.geometry.resize import MUCH, resized

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
    assert 0 <= part.min()
    assert part.max() <= 1 + 1e-6
    assert abs(part.mean() - mask.mean()) <= 1 / 16
