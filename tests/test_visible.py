"""Leaving out patches that show nothing of the object: what is looked at, and that nothing else changes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.patches import batches, patch_weights, visible
from soir_qdrant.models.encoders.backbone import only
from soir_qdrant.models.encoders.vit import ViTEncoder

SIDE, PATCH = 8, 8  # patches along a side; pixels of each


def encoder_of(folder, kind="dinov2", **options):
    from models import tiny_encoder

    options = {"input_size": SIDE * PATCH, "dtype": "float32", "adapter": None} | options
    return ViTEncoder(str(tiny_encoder(folder / kind, kind)), **options)


@given(arrays(np.float32, SIDE**2, elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_all_of_the_object_is_looked_at_and_what_is_added_lies_nearest(weights):
    weights = np.where(weights.any(), weights, 1).astype(np.float32)
    patches = visible(weights)
    assert set(np.flatnonzero(weights)) <= set(patches)
    assert len(patches) % (SIDE**2 // 8) == 0
    assert len(patches) - (weights > 0).sum() < SIDE**2 // 8
    assert (np.diff(patches) > 0).all()

    def away(which):  # distance to the nearest patch of the object
        y, x = np.divmod(which[:, None], SIDE)
        v, u = np.divmod(np.flatnonzero(weights)[None], SIDE)
        return np.hypot(y - v, x - u).min(1)

    added, left = np.setdiff1d(patches, np.flatnonzero(weights)), np.setdiff1d(np.arange(SIDE**2), patches)
    if len(added) and len(left):
        assert away(added).max() <= away(left).min() + 1e-4


def test_crops_of_a_batch_have_equally_many_patches_and_each_crop_comes_once():
    rng = np.random.default_rng(0)
    cells = rng.random((23, SIDE, SIDE)) * (rng.random((23, SIDE, SIDE)) > rng.random((23, 1, 1)))
    weights = patch_weights(cells.astype(np.float32), SIDE)
    parts = list(batches(weights, 4, object_only=True))
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(23))
    assert all(len(part.rows) <= 4 for part in parts)
    for part in parts:
        np.testing.assert_allclose(part.weights.sum(1), 1, rtol=1e-5)
    whole = list(batches(weights, 4, object_only=False))
    assert [row for part in whole for row in part.rows.tolist()] == list(range(23))
    assert all(part.patches.shape == (len(part.rows), SIDE**2) for part in whole)


def scene():
    """Five crops, and masks of a small, a large, a whole, an empty and a small thing."""
    rng = np.random.default_rng(0)
    side = SIDE * PATCH
    crops, masks = rng.integers(0, 256, (5, side, side, 3), np.uint8), np.zeros((5, side, side), np.float32)
    masks[0, 8:24, 16:32] = masks[1, 4:60, 4:40] = masks[2] = masks[4, 40:52, 40:52] = 1
    return crops, masks


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
@pytest.mark.slow
def test_a_crop_is_described_by_its_object_alone(tmp_path, kind):
    """The same whatever lies outside the patches that are looked at, and whatever else is in the batch."""
    encoder = encoder_of(tmp_path, kind, object_only=True, batch=2)
    crops, masks = scene()
    encoding = encoder.encode(crops, masks)
    changed = crops.copy()
    changed[0, 48:] = 255 - changed[0, 48:]  # far from the object
    again = encoder.encode(changed[:1], masks[:1])
    np.testing.assert_allclose(again.descriptor[0], encoding.descriptor[0], atol=1e-5)
    np.testing.assert_allclose(again.layers[0], encoding.layers[0], atol=1e-5)
    everything = encoder_of(tmp_path, kind).encode(crops, masks)
    assert np.abs(everything.layers[0] - encoding.layers[0]).max() > 1e-3
    np.testing.assert_allclose(everything.layers[2:4], encoding.layers[2:4], atol=1e-5)  # whole, empty: all


@pytest.mark.parametrize("kind", ["dinov2", "dinov2-registers", "clip"])
@pytest.mark.slow
def test_some_patches_enter_as_they_do_among_all(tmp_path, kind):
    """Also where the grid is not the one that positions were learnt on, nor a square."""
    encoder = encoder_of(tmp_path, kind)
    rng = np.random.default_rng(0)
    for height, width in ((SIDE, SIDE), (3, 5)) if kind != "clip" else ((SIDE, SIDE),):
        shape = (3, height * encoder.patch, width * encoder.patch, 3)
        images = rng.integers(0, 256, shape, np.uint8)
        some = np.sort(np.stack([rng.permutation(height * width)[:7] for _ in images]), 1)
        blocks = encoder.depth - 1
        few = encoder.trunk(images, patches=some)
        everywhere = torch.from_numpy(images).permute(0, 3, 1, 2)
        x, context = encoder.backbone.embed(everywhere * encoder._scale + encoder._shift)
        x = only(x, torch.from_numpy(some), encoder.prefix_tokens)
        for i in range(blocks):
            x = encoder.backbone.block(i, x, context)
            torch.testing.assert_close(few[i], x)


@pytest.mark.slow
def test_patches_stand_at_their_places_and_tokens_are_of_all(tmp_path):
    encoder = encoder_of(tmp_path, object_only=True)
    crops, masks = scene()
    patches = encoder.encode(crops, masks, with_patches=True).patches
    inside = masks.reshape(5, SIDE, PATCH, SIDE, PATCH).mean((2, 4)) > 0
    assert patches.shape[:3] == (5, SIDE, SIDE)
    assert (np.abs(patches).max(-1)[inside] > 0).all()
    assert (np.abs(patches[0]).max(-1) == 0).any()
    tokens = encoder.encode(crops, masks, with_tokens=True).tokens
    assert tokens.shape[1] == SIDE**2 + encoder.prefix_tokens
    everything = encoder_of(tmp_path).encode(crops, masks, with_tokens=True)
    torch.testing.assert_close(tokens, everything.tokens)


@pytest.mark.slow
def test_an_encoder_with_rotary_positions_says_what_to_set(tmp_path):
    with pytest.raises(ConfigError, match='set it to "grey"'):
        encoder_of(tmp_path, "dinov3", object_only=True)
