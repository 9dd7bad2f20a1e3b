"""Pooling in closed form: what each object keeps of its similarity, and what a whitening does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.components import Components
from soir_qdrant.config import Settings, VectorSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.pooling.features import side_by_side
from soir_qdrant.pooling.pool import generalized_max_pool, mean_pool, normalize, pool_scenes
from soir_qdrant.pooling.whitening import Whitening, adapt, fit_discriminative, fit_whitening
from soir_qdrant.types import Encoding


def rows(seed, k=8, dim=32, common=0.0):
    rng = np.random.default_rng(seed)
    return normalize(rng.normal(size=(k, dim)) + common * np.ones(dim))


@given(st.integers(0, 99), st.integers(1, 12))
def test_generalized_max_pooling_makes_every_object_equally_similar(seed, k):
    v = rows(seed, k, common=1.0)
    similarity = v @ generalized_max_pool(v, ridge=1e-6)
    assert np.ptp(similarity) < 1e-3 * similarity.mean()


def test_it_solves_the_equation_of_its_docstring():
    v = rows(0).astype(float)
    expected = v.T @ np.linalg.inv(v @ v.T + 0.5 * np.eye(8)) @ np.ones(8)
    assert np.allclose(generalized_max_pool(v, 0.5), expected / np.linalg.norm(expected), atol=1e-5)


def test_a_frequent_object_drowns_a_rare_one_in_the_mean_but_not_here():
    common, rare = np.eye(2)
    v = np.stack([common] * 9 + [rare])
    assert rare @ mean_pool(v) < 0.12
    assert rare @ generalized_max_pool(v, 0.1) > 0.6


@given(st.integers(0, 99))
def test_a_huge_ridge_is_the_mean(seed):
    assert np.allclose(generalized_max_pool(rows(seed), 1e9), mean_pool(rows(seed)), atol=1e-5)


@given(st.integers(0, 99))
def test_a_row_is_as_similar_as_its_weight_says(seed):
    v, weights = rows(seed, 5), np.array([1.0, 0.5, 0.25, 0.8, 0.1])
    similarity = v @ generalized_max_pool(v, 1e-6, weights)
    assert np.allclose(similarity / similarity[0], weights, atol=1e-3)
    mean = mean_pool(3 * v, weights)  # of unit rows
    assert np.allclose(mean, weights @ v / np.linalg.norm(weights @ v), atol=1e-5)


def test_objects_weigh_by_their_scores_each_image_by_itself():
    v, image, scores = rows(0, 5), np.array([0, 0, 0, 1, 1]), np.array([0.9, 0.5, 0.1, 0.4, 1.0], np.float32)
    for pooling, one in {
        "gmp": lambda x, s: generalized_max_pool(x, 0.5, s**2),
        "mean": lambda x, s: mean_pool(x, s**2),
        "mao": lambda x, s: mean_pool(x),
    }.items():
        settings = VectorSettings(pooling=pooling, ridge=0.5, by_score=2)
        expected = [one(v[:3], scores[:3]), one(v[3:], scores[3:])]
        assert np.allclose(pool_scenes(v, image, scores, settings), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["gmp", "mean"])
def test_objects_that_all_score_0_weigh_the_same(pooling):
    """As where a user's own boxes come with no score to speak of; beside others they weigh nothing."""
    v, image, settings = rows(0, 5), np.array([0, 0, 0, 1, 1]), VectorSettings(pooling=pooling)
    scores = np.array([0, 0, 0, 0, 1], np.float32)
    expected = pool_scenes(v, image, np.array([1, 1, 1, 0, 1], np.float32), settings)
    assert np.allclose(pool_scenes(v, image, scores, settings), expected)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_a_length_of_vectors_wants_a_whitening():
    """Which alone makes shorter ones."""

    class Encoder:
        dim, width = 512, 768

    def components(dim):
        return Components(Settings.for_profile("clip").but(vector={"dim": dim}), encoder=Encoder())

    with pytest.raises(ConfigError, match=r"vector\.dim 128: without a whitening vectors have 512 numbers"):
        components(128).dim  # noqa: B018
    assert components(512).dim == components(None).dim == 512


def test_nothing_has_no_direction():
    assert (normalize(np.zeros((2, 3))) == 0).all()


def test_whitened_rows_have_no_common_direction_left():
    x = rows(1, 500, 16, common=2.0) @ np.diag(np.linspace(1, 3, 16))
    white = (x - (w := fit_whitening(x, shrink=1e-6)).mean) @ w.matrix
    assert np.allclose(np.cov(white, rowvar=False), np.eye(16), atol=0.05)


def test_the_first_components_are_a_whitening_of_their_own():
    x = rows(2, 300, 16)
    assert np.allclose(fit_whitening(x).truncated(4).matrix, fit_whitening(x, dim=4).matrix)


def test_a_whitening_takes_the_mean_away_and_names_its_variance():
    x = rows(4, 400, 16, common=2.0) @ np.diag(np.linspace(1, 3, 16))
    fitted = fit_whitening(x, dim=6, shrink=0.5)
    assert np.linalg.norm(fitted(x).mean(0)) < 0.05  # of unit rows
    assert np.linalg.norm(fitted(x - fitted.mean).mean(0)) > 0.5
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))[::-1]
    assert np.allclose(fitted.variance, (values / (values + 0.5 * values.mean()))[:6], atol=1e-3)
    with pytest.raises(ConfigError, match="the whitening has 6 components"):
        fitted.truncated(7)
    assert fitted.truncated(None).dim == fitted.truncated(6).dim == 6


def test_a_whitening_comes_back_from_its_file(tmp_path):
    made = fit_whitening(rows(3, 100), fitted_for="this encoder")
    made.save(tmp_path / "w.safetensors")
    held = Whitening.load(tmp_path / "w.safetensors")
    assert held.digest == made.digest
    assert held.fitted_for == "this encoder"


def test_what_cannot_be_whitened_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="all rows are equal"):
        fit_whitening(np.ones((10, 4)))
    with pytest.raises(ConfigError, match="finite"):
        fit_whitening(np.full((10, 4), np.nan))
    with pytest.raises(ConfigError, match="soir calibrate"):
        Whitening.load(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="ridge"):
        generalized_max_pool(rows(0), 0)


def test_a_refit_starts_at_the_prior_and_ends_at_ones_own_rows():
    rng = np.random.default_rng(0)
    first = fit_whitening(rng.normal(size=(4000, 6)) * np.arange(6, 0, -1))
    mine = rng.normal(size=(4000, 6)) * np.arange(1, 7)
    mean, covariance = mine.mean(0), np.cov(mine, rowvar=False)
    same, bent = (adapt(first, mean, covariance, count) for count in (0, 10**9))
    x = rng.normal(size=(20, 6))
    assert np.allclose(first(x) @ first(x).T, same(x) @ same(x).T, atol=0.01)  # turned at most
    before, after = (np.sort(np.linalg.eigvalsh(w.matrix.T @ covariance @ w.matrix)) for w in (first, bent))
    assert before[-1] / before[0] > 20
    assert after[-1] / after[0] < 5
    assert np.allclose(bent.mean, mean, atol=1e-3)
    halfway = adapt(first, mean, covariance, 5000, weight=5000)
    assert np.allclose(halfway.mean, (mean + first.mean) / 2, atol=1e-3)


def test_a_refit_leaves_the_columns_of_each_part_in_their_places(tmp_path):
    """Codes are a vector's first numbers: which features these read was chosen."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((5, 4), np.float32)
    matrix[:3, [0, 2]] = rng.normal(size=(3, 2))
    matrix[3:, [1, 3]] = rng.normal(size=(2, 2))
    lengths = np.array([1, 0.5, 1, 0.5], np.float32)
    prior = Whitening(
        np.zeros(5, np.float32), matrix, np.array([0.9, 0.2, 0.1, 0.7], np.float32), "", lengths
    )
    mine = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5))
    refit = adapt(prior, mine.mean(0), np.cov(mine, rowvar=False), 10**6)
    assert ((refit.matrix != 0) == (matrix != 0)).all()
    refit.save(tmp_path / "refit.safetensors")
    vectors = Whitening.load(tmp_path / "refit.safetensors")(mine)
    of_both = np.linalg.norm(vectors[:, [0, 2]], axis=1), np.linalg.norm(vectors[:, [1, 3]], axis=1)
    assert np.allclose(of_both[0], 2 * of_both[1], rtol=1e-4)  # of every row, however far it is from the mean
    assert refit.truncated(2).lengths.tolist() == [1, 0.5]
    own = refit.matrix.T @ np.cov(mine, rowvar=False) @ refit.matrix
    assert np.allclose(own[np.ix_([0, 2], [0, 2])], np.diag(refit.variance[[0, 2]]), atol=0.05)
    assert np.allclose(own[np.ix_([1, 3], [1, 3])], np.diag(refit.variance[[1, 3]]), atol=0.05)


def test_the_discriminative_projection_drops_what_differs_between_views_of_one_thing():
    """Things differ along the first axis, and views of a thing, far more, along the second."""
    rng = np.random.default_rng(1)
    things = rng.normal(size=(50, 1)) * (1, 0, 0)
    views = things[:, None] + rng.normal(size=(50, 8, 3)) * (0.1, 5, 0.1)
    within = np.cov((views - views.mean(1, keepdims=True)).reshape(-1, 3), rowvar=False)
    flat = views.reshape(-1, 3)
    made = fit_discriminative(within, np.cov(flat, rowvar=False), flat.mean(0), noise=1e-3, shrink=1.0)
    assert np.abs(made.matrix[0]).max() > 10 * np.abs(made.matrix[1]).max()
    assert made.variance[0] > made.variance[1]
    left = made.matrix.T @ np.cov(flat, rowvar=False) @ made.matrix
    assert np.allclose(left, np.diag(made.variance), atol=0.02)


def test_the_discriminative_projection_adds_shares_of_the_mean_eigenvalues():
    rng = np.random.default_rng(2)
    within, covariance = (
        np.cov(rng.normal(size=(40, 4)) * rng.uniform(0.5, 2, 4), rowvar=False) for _ in range(2)
    )
    whitening = fit_discriminative(within, covariance, np.zeros(4), noise=0.3, shrink=0.5)
    noisy = within + 0.3 * np.trace(within) / 4 * np.eye(4)
    scale = whitening.matrix.T @ noisy @ whitening.matrix  # 1 / (e + s), of eigenvalues e
    left = whitening.matrix.T @ covariance @ whitening.matrix  # e / (e + s)
    assert np.allclose(scale, np.diag(np.diag(scale)), atol=2e-3)
    assert np.allclose(left, np.diag(whitening.variance), atol=2e-3)
    values = whitening.variance / np.diag(scale)
    assert np.allclose(1 - whitening.variance, np.diag(scale) * 0.5 * values.mean(), atol=2e-3)


def test_a_projection_is_named_by_mean_and_matrix():
    rows = np.random.default_rng(3).normal(size=(30, 4))
    first = fit_whitening(rows)
    moved = Whitening(first.mean + 1, first.matrix, first.variance, "")
    scaled = Whitening(first.mean, 2 * first.matrix, first.variance, "")
    assert len({first.digest, moved.digest, scaled.digest}) == 3
    assert len(first.digest) == 12
    assert first.digest == fit_whitening(rows).digest


def test_features_stand_side_by_side_each_of_the_same_length():
    rng = np.random.default_rng(0)
    encoding = Encoding(
        rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(2, 4, 3)).astype(np.float32)
    )
    rows = side_by_side(encoding, ("cls", "patches", "patches-3"))
    parts = (
        encoding.descriptor,
        encoding.layers[:, 3],
        encoding.layers[:, 0],
    )  # the last block's, three before it
    expected = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], 1)
    np.testing.assert_allclose(rows, expected / 3**0.5, atol=1e-6)
