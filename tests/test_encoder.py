"""The encoder on the real embedded weights, and every family on tiny random ones."""

import numpy as np
import pytest
import torch
import transformers
from models import tiny_encoder

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.types import Encoder

CROPS = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)


@pytest.fixture(scope="module")
def encoder():
    return ViTEncoder(dtype="float32", batch=2)


def tiny(kind, folder):
    return ViTEncoder(str(tiny_encoder(folder, kind)), input_size=48, dtype="float32")


def test_shapes_of_the_embedded_encoder(encoder):
    found = encoder.encode(CROPS)
    assert isinstance(encoder, Encoder)
    assert found.descriptor.shape == (5, 384)
    assert found.layers.shape == (5, 4, 384)
    assert tuple(found.tokens.shape) == (5, 257, 384)


def test_the_descriptor_is_that_of_transformers(encoder):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy((CROPS / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = encoder.model(pixels).pooler_output.numpy()
    assert np.allclose(encoder.encode(CROPS).descriptor, expected, atol=1e-3)


def test_one_at_a_time_is_the_same_as_many(encoder):
    alone = np.concatenate([encoder.encode(crop[None]).layers for crop in CROPS])
    assert np.allclose(encoder.encode(CROPS).layers, alone, atol=1e-3)


def test_a_layer_row_is_the_mean_of_the_patches_under_the_mask(encoder):
    masks = np.zeros((1, 224, 224), np.float32)
    masks[0, :14, 14:42] = 1  # patches 1 and 2 of the first row
    found = encoder.encode(CROPS[:1], masks)
    entering = encoder.last_block.norm(found.tokens)[0, [2, 3]].mean(0)
    assert np.allclose(found.layers[0, -2], entering.cpu(), atol=1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
def test_every_family_loads_from_a_folder(kind, tmp_path):
    encoder = tiny(kind, tmp_path)
    found = encoder.encode(CROPS[:2, :48, :48])
    assert found.descriptor.shape == (2, encoder.dim)
    assert found.layers.shape == (2, 4, 24)
    assert np.isfinite(found.descriptor).all()


def test_bfloat16_stays_near_float32(encoder):
    half = ViTEncoder(dtype="bfloat16").encode(CROPS).descriptor
    full = encoder.encode(CROPS).descriptor
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.min() > 0.99


def test_what_does_not_fit_is_refused(encoder, tmp_path):
    with pytest.raises(ConfigError, match="multiple of the patch size"):
        ViTEncoder(input_size=100)
    with pytest.raises(ConfigError, match="expected"):
        encoder.encode(CROPS[:, :100])
    with pytest.raises(ConfigError, match="bfloat16"):
        ViTEncoder(dtype="float8")
    transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[8], depths=[1])).save_pretrained(
        tmp_path
    )
    with pytest.raises(WeightsError, match="known are"):
        ViTEncoder(str(tmp_path))
