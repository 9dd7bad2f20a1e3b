"""A blur looks like much: an object of far fewer pixels than the query counts for less."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.qdrant.codes import encode
from soir_qdrant.qdrant.detail import ENOUGH, LOSS, missing_detail
from soir_qdrant.qdrant.payload import KEY, pack_patches
from soir_qdrant.rerank import CodeReranker, StoredReranker
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.types import Hit

THING, OTHER = np.eye(2, dtype=np.float32)
PATCH = np.repeat(np.float32([[1, -1]]), 4, axis=1)


def image(name, *objects):
    """A hit of 1000 x 1000 pixels. objects: of each, how like the thing it is, and the side of its square in pixels."""
    stored = []
    for likeness, side in objects:
        code = encode(likeness * THING + (1 - likeness**2) ** 0.5 * OTHER, 2)
        stored.append({"box": [0, 0, side, side], "area": side**2 / 10**6, "code": code})
    soir = {"width": 1000, "height": 1000, "objects": stored, "patches": [pack_patches(PATCH)] * len(stored)}
    return Hit(name, 0.0, None, None, {KEY: {**soir, "sha256": "0" * 64}})


def order(reranker, query, *hits):
    return [hit.id for hit in reranker.rerank(query, hits)]


@pytest.mark.parametrize("reranker", [CodeReranker(), StoredReranker()])
def test_a_sharp_query_is_rather_something_large_than_a_blur(reranker):
    blur, sharp = image("blur", (0.95, 10)), image("sharp", (0.9, 200))
    query = SearchQuery(THING, patches=PATCH / 8**0.5)
    assert order(reranker, query, sharp, blur) == ["blur", "sharp"]  # it is not known how sharp the query is
    small = SearchQuery(THING, patches=PATCH / 8**0.5, pixels=30**2)
    assert order(reranker, small, sharp, blur) == ["blur", "sharp"]
    large = SearchQuery(THING, patches=PATCH / 8**0.5, pixels=400**2)
    assert order(reranker, large, sharp, blur) == ["sharp", "blur"]


def test_the_box_is_not_that_of_a_blur_either():
    both = image("both", (0.95, 10), (0.9, 200))
    (hit,) = StoredReranker().rerank(SearchQuery(THING, patches=PATCH / 8**0.5, pixels=400**2), [both])
    assert hit.object == 1


def test_a_halved_side_costs_as_much_each_time_and_no_query_asks_for_more_than_enough():
    soir = image("sides", (1, 112), (1, 56), (1, 28), (1, 500)).payload[KEY]
    for query in (560, 4000):  # 25 times the pixels of 112 x 112, and far more
        np.testing.assert_allclose(missing_detail(soir, query**2), [0, LOSS, 2 * LOSS, 0], atol=1e-4)
    np.testing.assert_allclose(missing_detail(soir, 280**2), [0, 0, LOSS, 0], atol=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1e8), st.integers(0, 10_000))
def test_it_is_never_below_zero_and_grows_with_the_query(areas, pixels, side):
    soir = {"width": side, "height": side, "objects": [{"area": area} for area in areas]}
    loss = missing_detail(soir, pixels)
    assert loss.dtype == np.float32
    assert loss.shape == (len(areas),)
    assert (loss >= 0).all()
    assert (loss <= LOSS * np.log2(ENOUGH) / 2 + 1e-6).all()
    assert (missing_detail(soir, 2 * pixels) >= loss).all()


def test_what_does_not_say_how_large_it_is_loses_nothing():
    assert missing_detail({"objects": [{}, {"area": 0.1}]}, 10_000).tolist() == [0, 0]
    assert missing_detail({"width": 9, "height": 9, "objects": [{"stand_in": True}]}, 400).tolist() == [0]


def test_an_object_of_no_pixels_lacks_more_than_one_of_a_few():
    """As an area is that was rounded."""
    soir = {"width": 9000, "height": 9000, "objects": [{"area": 0.0}, {"area": 1e-6}]}
    none, few = missing_detail(soir, 4000**2)
    assert none > few > 0
