"""Q-Perturbation as mathematics: what the operator does to a query, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soir_qdrant.errors import ConfigError, ObjectsError, SoirError
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, alphas, perturb, regions
from soir_qdrant.rerank.q_perturbation.subspace import basis, coverage, gram

few = settings(max_examples=30, deadline=None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """queries [heads, n, d], bases [k, heads, d, r], alpha [k]; keys of few, so ranks are ragged."""
    k, heads, n, d = (draw(st.integers(1, top)) for top in (4, 3, 3, 8))
    seed = draw(st.integers(0, 2**16))
    weights = (noise(k, 6, seed=seed + 1) > 0.3).double()
    bases = basis(gram(noise(heads, 7, d, seed=seed), weights), contribution=draw(st.floats(0.05, 1)))
    return noise(heads, n, d, seed=seed + 2), bases, noise(k, seed=seed + 3)


def test_coverage_is_the_share_of_each_patch() -> None:
    found = coverage(boxes((5, 0, 20, 10)), (40, 20), (2, 4))  # patches of 10 x 10 pixels
    assert found.tolist() == [[0.5, 1, 0, 0, 0, 0, 0, 0]]


@few
@given(st.lists(st.floats(-50, 150), min_size=4, max_size=4))
def test_coverage_adds_up_to_the_part_of_the_box_in_the_picture(corners: list[float]) -> None:
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    inside = max(min(x1, 96) - max(x0, 0), 0) * max(min(y1, 60) - max(y0, 0), 0)
    assert float(coverage(boxes((x0, y0, x1, y1)), (96, 60), (5, 7)).sum()) == pytest.approx(
        inside / (96 * 60) * 35, abs=1e-9
    )


@few
@given(problems())
@pytest.mark.slow
def test_projection_is_idempotent_and_symmetric(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    _, phi, _ = problem
    projection = phi @ phi.transpose(-1, -2)
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection, projection.transpose(-1, -2))


@few
@given(problems())
def test_agrees_with_a_loop(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, phi, alpha = problem
    wanted = queries.clone()
    for o in range(len(phi)):
        for h in range(queries.shape[0]):
            for i in range(queries.shape[1]):
                for r in range(phi.shape[-1]):
                    axis = phi[o, h, :, r]
                    wanted[h, i] += alpha[o] * axis.dot(queries[h, i]) * axis
    torch.testing.assert_close(perturb(queries, phi, alpha), wanted)


@few
@given(problems())
def test_alpha_zero_is_the_identity(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, phi, alpha = problem
    for keep_norm in (False, True):
        assert torch.equal(perturb(queries, phi, 0 * alpha, keep_norm=keep_norm), queries)


@few
@given(problems())
def test_a_query_orthogonal_to_the_objects_is_unchanged(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, phi, alpha = problem
    orthogonal = queries - queries @ phi[0] @ phi[0].transpose(-1, -2)
    torch.testing.assert_close(perturb(orthogonal, phi[:1], alpha[:1]), orthogonal)


@few
@given(problems())
def test_norm_is_kept_on_request(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, phi, alpha = problem
    torch.testing.assert_close(
        perturb(queries, phi, alpha, keep_norm=True).norm(dim=-1), queries.norm(dim=-1)
    )


def test_only_the_part_inside_the_subspace_grows() -> None:
    phi = torch.eye(3, dtype=torch.float64)[:, :1][None]
    moved = perturb(torch.tensor([[2.0, 5.0, -1.0]]).double(), phi, torch.tensor([0.5]).double())
    assert moved.tolist() == [[3.0, 5.0, -1.0]]


def test_batched_equals_one_by_one() -> None:
    """Layers, heads and objects at once; the ranks differ, and the zero padding changes nothing."""
    keys, queries, chosen = noise(2, 3, 10, 5), noise(2, 3, 4, 5, seed=1), PerturbSettings(scale=2.0)
    held = boxes((0, 0, 10, 10), (0, 0, 30, 30), (12, 3, 29, 8))
    phi, alpha = regions(keys, held, (30, 30), (3, 3), chosen)
    together = perturb(queries, phi, alpha)
    for layer in range(2):
        for head in range(3):
            one = queries[layer, head]
            for box in held:
                alone = regions(keys[layer, head], box[None], (30, 30), (3, 3), chosen)
                one = one + perturb(queries[layer, head], *alone) - queries[layer, head]
            torch.testing.assert_close(together[layer, head], one)


def test_rank_and_contribution_choose_the_leading_directions() -> None:
    held = torch.diag(torch.tensor([1.0, 6.0, 3.0, 0.0], dtype=torch.float64))

    def axes(**chosen: float | None) -> list[int]:
        kept = basis(held, **{"contribution": None, **chosen})
        return [int(column.abs().argmax()) for column in kept.T]

    assert axes(contribution=0.5) == [1]
    assert axes(contribution=0.6) == [1]
    assert axes(contribution=0.7) == [1, 2]
    assert axes(contribution=0.7, crossing=False) == [1]  # the authors' rule
    assert axes(contribution=1.0) == axes(rank=4) == [1, 2, 0]  # never the direction without energy
    assert axes(rank=2) == [1, 2]


def test_an_object_that_covers_no_patch_changes_nothing() -> None:
    keys, queries = noise(2, 5, 3), noise(2, 1, 3, seed=1)
    for held in (boxes((90, 90, 99, 99)), boxes()):
        phi, alpha = regions(keys, held, (20, 20), (2, 2), PerturbSettings())
        assert torch.equal(perturb(queries, phi, alpha), queries)


def test_cls_is_not_part_of_an_object() -> None:
    keys, held = noise(5, 3), torch.ones(1, 4, dtype=torch.float64)
    torch.testing.assert_close(gram(keys, held)[0], keys[1:].T @ keys[1:])


def test_alpha_from_the_area() -> None:
    areas = torch.tensor([0.1, 0.6])

    def found(weighting: str, **more: bool) -> list[float]:
        return pytest.approx(alphas(areas, PerturbSettings(2.0, weighting, **more)).tolist())  # type: ignore

    assert found("constant") == [2, 2]
    assert found("constant", mean=True) == [1, 1]
    assert found("area") == [0.2, 1.2]
    assert found("1-area") == [1.8, 0.8]
    assert found("centred") == [-0.8, 0.2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_it_was(dtype: torch.dtype) -> None:
    keys, queries = noise(2, 5, 3).to(dtype), noise(2, 1, 3, seed=1).to(dtype)
    moved = perturb(queries, *regions(keys, boxes((0, 0, 9, 9)), (20, 20), (2, 2), PerturbSettings()))
    assert moved.dtype == dtype
    assert not torch.equal(moved, queries)


def test_nan_is_refused() -> None:
    bad = torch.full((1, 4), torch.nan)
    with pytest.raises(ObjectsError, match="boxes hold NaN"):
        coverage(bad, (10, 10), (2, 2))
    with pytest.raises(SoirError, match="keys hold NaN"):
        gram(bad, torch.ones(1, 1))
    with pytest.raises(SoirError, match="queries hold NaN"):
        perturb(bad, torch.zeros(1, 4, 1), torch.ones(1))
    with pytest.raises(SoirError, match="autocorrelation holds NaN"):
        basis(bad.expand(4, 4))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"scale": float("nan")}, "scale nan"),
        ({"weighting": "size"}, "weighting 'size'"),
        ({"rank": 3}, "contribution 0.9, rank 3"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PerturbSettings(**wrong)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch weights for 3 keys"):
        gram(noise(3, 2), noise(1, 4))
    with pytest.raises(ObjectsError, match=r"boxes of shape \(4,\)"):
        coverage(torch.ones(4), (10, 10), (2, 2))
    with pytest.raises(ConfigError, match="rank 0"):
        basis(torch.eye(2), contribution=None, rank=0)
    with pytest.raises(ConfigError, match="contribution 2"):
        basis(torch.eye(2), contribution=2)
    with pytest.raises(ConfigError, match="queries"):
        perturb(noise(1, 3), noise(2, 4, 1), noise(2))
