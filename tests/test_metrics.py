"""Metrics against naive oracles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.lab.evaluate.metrics import (
    average_precision,
    chance_precision,
    chance_recall,
    ranking,
    recall_at,
)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_average_precision_is_the_mean_precision_at_each_right_rank(right):
    precisions = [sum(right[: i + 1]) / (i + 1) for i in range(len(right)) if right[i]]
    expected = 100 * sum(precisions) / len(precisions) if precisions else 0
    assert np.isclose(average_precision(np.array(right)), expected)


def test_what_was_not_retrieved_counts_as_nothing():
    assert average_precision(np.array([True, False]), relevant=2) == 50


def test_recall_at_k_asks_for_one_right_picture():
    ranked = np.array([False, True, True])
    assert [recall_at(ranked, k) for k in (1, 2)] == [0, 100]


def test_chance_is_what_random_orders_give():
    rng = np.random.default_rng(0)
    right = np.arange(20) < 3
    orders = [rng.permutation(right) for _ in range(20_000)]
    assert abs(np.mean([average_precision(o) for o in orders]) - chance_precision(3, 20)) < 0.5
    assert abs(np.mean([recall_at(o, 5) for o in orders]) - chance_recall(3, 20, 5)) < 1.5


def test_equal_scores_keep_the_order_of_the_gallery():
    assert ranking(np.array([0.5, 0.9, 0.5])).tolist() == [1, 0, 2]


def test_iou_of_boxes():
    a, b = np.array([[0, 0, 2, 2]], float), np.array([[1, 0, 3, 2], [5, 5, 6, 6]], float)
    assert np.allclose(intersection_over_union(a, b), [[1 / 3, 0]])


def test_precision_at_k_is_over_what_k_ranks_can_hold():
    """AP@k of ILIAS: a fourth right answer beyond the third rank can cost nothing at k = 3."""
    ranked = np.array([True, False, True, True, True])
    assert average_precision(ranked, 4, 3) == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert average_precision(ranked, 4, 1000) == average_precision(ranked, 4)
