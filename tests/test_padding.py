"""Squares for OWLv2: as if the whole square had been laid out, without the memory of it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from soir_qdrant.models.padding import padded

SHAPES = [(96, 160), (160, 97), (64, 64), (40, 30), (3, 200), (500, 9), (33, 200)]


def image_of(shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_as_padding_first_as_pillow_resizes(shape):
    image, side = image_of(shape), max(shape)
    square = np.full((side, side, 3), 128, np.uint8)
    square[: shape[0], : shape[1]] = image
    expected = np.asarray(Image.fromarray(square).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(padded(image, 64, 128).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_as_padding_first_as_torch_resizes(shape):
    plane, side = image_of(shape)[:, :, 0].astype(np.float32), max(shape)
    square = F.pad(torch.from_numpy(plane), (0, side - shape[1], 0, side - shape[0]), value=127.5)[None, None]
    expected = F.interpolate(square, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    np.testing.assert_allclose(padded(plane, 64, 127.5), expected[0, 0], atol=0.01)


def test_a_panorama_takes_little_more_than_its_pixels():
    image = image_of((60, 4000))
    tracemalloc.start()
    try:
        padded(image, 64, 128)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * image.nbytes
