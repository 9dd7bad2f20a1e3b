"""Late interaction by hand, and patches packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ColourPipeline, painted
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.patches import (
    READ,
    PatchProjection,
    Projected,
    _part,
    described,
    late_interaction,
    projection_digest,
    row_dim,
    under_mask,
)
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.qdrant.payload import pack_patches, unpack_patches
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Vector

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
A, B = (4.0, 4.0, 28.0, 28.0), (44.0, 30.0, 76.0, 56.0)
SCENES = [[(A, RED)], [(A, GREEN), (B, RED)], [(B, BLUE)], [(A, BLUE), (B, GREEN)]]
DIM = 16


def rows(rng: np.random.Generator, count: int, dim: int = DIM) -> Vector:
    made = rng.normal(size=(count, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


# -- the score ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.lists(st.integers(1, 5), max_size=4))
def test_late_interaction_by_hand(seed: int, count: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    query, objects = rows(rng, count), [rows(rng, size) for size in sizes]
    expected = []
    for other in objects:
        forth = [max(float(q @ o) for o in other) for q in query]
        back = [max(float(q @ o) for q in query) for o in other]
        expected.append((sum(forth) / len(forth) + sum(back) / len(back)) / 2)
    found = late_interaction(query, objects)
    assert found.shape == (len(sizes),)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_object_is_most_like_itself() -> None:
    rng = np.random.default_rng(0)
    query = rows(rng, 9)
    scores = late_interaction(query, [rows(rng, 9), query[::-1], query[:4]])
    assert scores[1] == pytest.approx(1, abs=1e-5)
    assert scores[0] < scores[2] < 1


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 12))
def test_packing_keeps_the_signs(seed: int, count: int, eights: int) -> None:
    made = rows(np.random.default_rng(seed), count, 8 * eights)
    packed = pack_patches(made)
    assert len(packed) == -(-count * eights // 3) * 4
    back = unpack_patches(packed, 8 * eights)
    np.testing.assert_allclose(back, np.where(made > 0, 1, -1) / (8 * eights) ** 0.5, atol=1e-6)


def test_signs_tell_the_cosine() -> None:
    """Of rows that are spread evenly the expected cosine with a query is sqrt(2 / pi) of the true one."""
    rng = np.random.default_rng(0)
    made, query = rows(rng, 500, 64), rows(rng, 500, 64)
    near = 0.8 * made + 0.6 * query
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    true = (near * made).sum(1)
    told = (near * unpack_patches(pack_patches(made), 64)).sum(1)
    assert np.abs(told - (2 / np.pi) ** 0.5 * true).mean() < 0.07


def test_patches_of_another_projection_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rows of 40"):
        unpack_patches(pack_patches(rows(np.random.default_rng(0), 3, 16)), 40)
    with pytest.raises(ConfigError, match="no rows of 8"):
        unpack_patches("", 8)


# -- tokens to rows ----------------------------------------------------------------------------------------


def test_only_what_lies_under_the_mask_counts() -> None:
    assert under_mask(np.array([0.2, 0.6, 0.5])).tolist() == [False, True, True]
    assert under_mask(np.array([0.2, 0.1, 0.0])).tolist() == [True, False, False]
    rng = np.random.default_rng(0)
    zeros = np.zeros(5, np.float32)
    projection = PatchProjection(zeros, rng.normal(size=(5, 8)).astype(np.float32), zeros + 1, zeros)
    patches, masks = rng.normal(size=(2, 4, 4, 5)), np.zeros((2, 32, 32), np.float32)
    masks[0, 8:24, 8:24] = 1  # the four patches in the middle
    masks[1, :, :16] = 1
    found = described(patches, masks, projection)
    again = patches.copy()
    again[1, :, 2:] = 99  # the right half
    again[0, 0, 0] = again[0, 3, 3] = 99
    for one, other in zip(found, described(again, masks, projection), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert [len(one) for one in found] == [4, 8]
    assert all(np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5) for one in found)


def test_a_patch_counts_by_its_share_under_the_mask_and_not_by_its_middle() -> None:
    mask = np.zeros((1, 32, 32), np.float32)
    mask[0, :8, :8] = 1
    mask[0, 18:22, 18:22] = 1  # the middle of a patch, a quarter of it
    patches = np.random.default_rng(0).normal(size=(1, 4, 4, 8))
    (patch,) = described(patches, mask, Projected(8))
    np.testing.assert_allclose(patch, Projected(8)(patches[0, :1, 0]), atol=1e-6)


def test_a_projection_is_a_layer_norm_and_then_the_whitening_of_the_unit_row() -> None:
    rng = np.random.default_rng(0)
    mean, weight, bias = rng.normal(size=(3, 5)).astype(np.float32)
    matrix, tokens = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(2, 3, 5))
    projection = PatchProjection(mean, matrix, weight, bias, eps=0.2, scale=0.5)
    normal = torch.nn.functional.layer_norm(
        torch.tensor(tokens), (5,), torch.tensor(weight).double(), torch.tensor(bias).double(), 0.2
    )
    expected = (torch.nn.functional.normalize(normal, dim=-1).numpy() / 2 - mean) @ matrix
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    assert projection.dim == 8
    np.testing.assert_allclose(projection(tokens), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(Projected(5)(tokens), axis=-1), 1, atol=1e-6)


def whitening(dim: int, seed: int = 0, features: int = 2) -> Whitening:
    rng = np.random.default_rng(seed)
    mean, variance = rng.normal(size=24 * features), np.ones(dim)
    return Whitening(
        *(x.astype(np.float32) for x in (mean, rng.normal(size=(24 * features, dim)), variance)), ""
    )


@pytest.mark.parametrize(("dim", "numbers"), [(20, 16), (64, 64), (100, 64)])
def test_patchof_patches_are_whole_bytes_of_signs(dim: int, numbers: int) -> None:
    assert row_dim(whitening(dim)) == numbers


def test_a_projection_is_named_by_what_is_in_it() -> None:
    class Wide:
        dim, width = 24, 24

    def digest(features: tuple[str, ...], **options: int) -> int:
        return projection_digest(whitening(20, features=len(features), **options), features, Wide())

    two = digest(("cls", READ))
    assert 0 < two < 2**48
    assert two == digest(("cls", READ))
    assert len({two, digest(("cls", READ), seed=1), digest((READ, "cls")), digest((READ,))}) == 4


def test_the_part_for_patches_lies_after_the_features_before_it() -> None:
    class Narrow:
        dim, width = 8, 24

    numbers = np.arange(32, dtype=np.float32)
    both = Whitening(numbers, numbers[:, None] * np.ones((1, 20), np.float32), np.ones(20, np.float32), "")
    mean, matrix = _part(both, ("cls", READ), Narrow())
    assert mean.tolist() == matrix[:, 0].tolist() == numbers[8:].tolist()
    assert _part(both, (READ, "cls"), Narrow())[0].tolist() == numbers[:24].tolist()


def test_one_token_is_whitened_as_the_mean_of_equal_ones_is(shipped_encoder: Encoder) -> None:
    """The whitening's row of an object whose patches are all alike, all other features left out."""
    pipeline = Pipeline(Settings().but(detector={"kind": "none"}), encoder=shipped_encoder)
    block, names = pipeline.encoder.last_block, pipeline.settings.vector.features
    projection = pipeline.patch_projection
    token = np.random.default_rng(0).normal(size=(1, block.dim)).astype(np.float32)
    mean = block.norm(torch.from_numpy(token)).numpy()
    place = names.index("patches-3")
    part = slice(block.dim * place, block.dim * (place + 1))
    whitening = pipeline.whitening
    row = mean / np.linalg.norm(mean) / len(names) ** 0.5 - whitening.mean[part]
    expected = row @ whitening.matrix[part, :64]
    np.testing.assert_allclose(projection(token), expected / np.linalg.norm(expected), atol=1e-4)
    assert projection.dim == 64


def test_groups_are_not_ordered_by_patches(client: QdrantClient) -> None:
    SoirIngestor(client, pipeline=ColourPipeline()).add([painted((A, RED))], ids=[0])
    with pytest.raises(ConfigError, match="groups can be reranked"):
        SoirSearcher(client, pipeline=ColourPipeline()).search_groups(
            painted((A, RED)), "n", rerank="patches"
        )
