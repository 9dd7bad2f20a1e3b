"""The tight box of a mask."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from soir_qdrant.geometry.masks import extent


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.booleans()))
def test_it_holds_every_pixel_and_touches_one_at_each_side(mask):
    around = extent(mask)
    if not mask.any():
        assert around is None
        return
    x0, y0, x1, y1 = around
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
