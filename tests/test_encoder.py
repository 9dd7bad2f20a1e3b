"""The encoder on the real embedded weights, and every family on tiny random ones."""

import numpy as np
import pytest
import torch
import transformers
from models import FAMILIES, tiny_encoder

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.pipeline import Pipeline

pytestmark = pytest.mark.slow

CROPS = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)

DESCRIPTOR = [-0.251773, 2.264856, -0.577416, -0.315027]
LAYERS = [-0.796618, -1.061408, -0.606747, 1.583991]


@pytest.fixture
def encoder(shipped_encoder):
    return shipped_encoder


def tiny(kind, folder):
    return ViTEncoder(str(tiny_encoder(folder, kind)), input_size=48, dtype="float32")


def test_shapes_of_the_embedded_encoder(encoder):
    found = encoder.encode(CROPS, with_tokens=True)
    assert isinstance(encoder, Encoder)
    assert found.descriptor.shape == (5, 384)
    assert found.layers.shape == (5, 4, 384)
    assert tuple(found.tokens.shape) == (5, 257, 384)


def test_the_descriptor_is_that_of_transformers(encoder):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy((CROPS / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = encoder.backbone.model(pixels).pooler_output.numpy()
    assert np.allclose(encoder.encode(CROPS).descriptor, expected, atol=1e-3)


def test_one_at_a_time_is_the_same_as_many(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "batch", 2)
    alone = np.concatenate([encoder.encode(crop[None]).layers for crop in CROPS])
    assert np.allclose(encoder.encode(CROPS).layers, alone, atol=1e-3)


def test_a_layer_row_is_the_mean_of_the_patches_under_the_mask(encoder):
    masks = np.zeros((1, 224, 224), np.float32)
    masks[0, :14, 14:42] = 1  # patches 1 and 2 of the first row
    found = encoder.encode(CROPS[:1], masks, with_tokens=True)
    entering = encoder.last_block.norm(found.tokens)[0, [2, 3]].mean(0)
    assert np.allclose(found.layers[0, -2], entering.cpu(), atol=1e-4)


PREFIX = {"dinov2": 1, "dinov2-registers": 5, "dinov3": 5, "radio": 10}
PREFIX |= {"clip": 1, "metaclip2": 1, "siglip": 0, "siglip2": 0, "tipsv2": 2}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_loads_from_a_folder(kind, tmp_path):
    encoder = tiny(kind, tmp_path)
    masks = np.zeros((2, 48, 48), np.float32)
    masks[:, :8, 8:24] = 1  # patches 1 and 2 of the first row
    found = encoder.encode(CROPS[:2, :48, :48], masks, with_tokens=True, with_patches=True)
    assert encoder.prefix_tokens == PREFIX[kind]
    assert found.descriptor.shape == (2, encoder.dim)
    assert found.layers.shape == (2, 4, 24)
    assert found.tokens.shape == (2, PREFIX[kind] + 36, 24)
    assert np.isfinite(found.descriptor).all()
    grid = encoder.features(CROPS[:2, :48, :48], [-4, -2])
    assert grid.shape == (2, 6, 6, 48)
    np.testing.assert_allclose(found.patches, grid[..., :24], atol=2e-3, rtol=2e-3)
    entering = found.tokens[:, PREFIX[kind] :].unflatten(1, (6, 6))
    np.testing.assert_allclose(entering, grid[..., 24:], atol=1e-5)
    norm = encoder.last_block.norm if encoder.last_blocks else encoder.backbone.norm
    np.testing.assert_allclose(found.layers[:, -2], norm(entering[:, 0, 1:3]).mean(1), atol=1e-4)
    assert encoder.features(CROPS[:1, :32, :56], [-1]).shape == (1, 4, 7, 24)


def test_c_radio_says_what_its_model_says_and_has_no_last_block(tmp_path):
    encoder = tiny("radio", tmp_path)
    pixels = torch.from_numpy(CROPS[:2, :48, :48]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        whole = encoder.backbone.model(pixels)
    np.testing.assert_allclose(encoder.encode(CROPS[:2, :48, :48]).descriptor, whole.summary, atol=1e-5)
    grid = encoder.features(CROPS[:2, :48, :48], [-1])
    np.testing.assert_allclose(grid.reshape(2, 36, 24), whole.features, atol=1e-5)
    with pytest.raises(ConfigError, match="is not taken apart"):
        _ = encoder.last_block


def test_dinov3s_positions_follow_the_shape_of_the_image(tmp_path):
    encoder = tiny("dinov3", tmp_path)
    pixels = CROPS[:1, :48, :80]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normal = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = encoder.backbone.model(normal).last_hidden_state[:, 5:]
        grid = torch.from_numpy(encoder.features(pixels, [-1])).flatten(1, 2)
        np.testing.assert_allclose(encoder.last_block.norm(grid), expected, atol=1e-4)


def test_dinov3s_positions_keep_their_precision(tmp_path):
    folder = str(tiny_encoder(tmp_path, "dinov3"))
    half, full = (ViTEncoder(folder, input_size=48, dtype=dtype) for dtype in ("bfloat16", "float32"))
    turns = [encoder.backbone.model.rope_embeddings.inv_freq for encoder in (half, full)]
    assert torch.equal(*turns)


def test_the_shipped_encoder_is_what_it_was(encoder):
    """Fingerprint and encoding of a fixed crop, as collections hold them."""
    assert encoder.fingerprint == "DINOv2 ViT-S/14, first 11 blocks@198644e37de3~7d35a8fb+9ffd13c9.2/224px"
    old = Pipeline(
        Settings.for_profile("embedded-0.1")
    ).encoder  # without textures: version 0.1's collections go on
    assert old.fingerprint == "DINOv2 ViT-S/14, first 11 blocks@198644e37de3+9ffd13c9.2/224px"
    y, x = np.mgrid[:224, :224]
    crop = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)[None]
    mask = np.zeros((1, 224, 224), np.float32)
    mask[:, 50:150, 60:200] = 1
    found = encoder.encode(crop, mask)
    np.testing.assert_allclose(found.descriptor[0, :4], DESCRIPTOR, atol=1e-5)
    np.testing.assert_allclose(found.layers[0, :, 0], LAYERS, atol=1e-5)


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
