import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.config import CropSettings
from soir_qdrant.errors import ObjectsError
from soir_qdrant.geometry.crops import cut
from soir_qdrant.geometry.user_objects import clip_box, fit_objects
from soir_qdrant.types import SceneObject


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((100, 0, 120, 10), "outside the 40x30 image"),
        ((-20, -20, 0, 0), "outside"),
        ((float("nan"), 0, 5, 5), "NaN"),
        ((0, 0, float("inf"), 5), "infinite"),
        ((10, 10, 5, 20), "inverted"),
        ((10, 10, 10, 20), "empty"),
        ((1, 2, 3), "four numbers"),
        (None, "four numbers"),
        ("abcd", "four numbers"),
    ],
)
def test_bad_boxes(box, message):
    with pytest.raises(ObjectsError, match=message):
        clip_box(box, 40, 30)
    with pytest.raises(ObjectsError, match=f"object 1: .*{message}"):
        fit_objects([SceneObject((0, 0, 5, 5)), SceneObject(box)], 40, 30)


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4))
def test_clipped_boxes_lie_inside(box):
    try:
        x0, y0, x1, y1 = clip_box(box, 40, 30)
    except ObjectsError:
        return
    assert 0 <= x0 < x1 <= 40
    assert 0 <= y0 < y1 <= 30


def test_masks_follow_their_boxes():
    own = np.zeros((11, 10), bool)  # the box (-4.5, 20.5, 4.5, 30.5), rounded outwards
    own[3, 7] = True  # at x = 2, y = 23 of the image
    (item,) = fit_objects([SceneObject((-4.5, 20.5, 4.5, 30.5), own)], 40, 30)
    assert item.box == (0, 20.5, 4.5, 30)
    assert item.mask.shape == (10, 5)
    assert item.mask[3, 2]
    assert item.mask.sum() == 1
    whole = np.zeros((30, 40), np.uint8)
    whole[5, 5] = 255
    (item,) = fit_objects([SceneObject((2, 2, 8, 8), whole)], 40, 30)
    assert item.mask.dtype == bool
    assert item.mask.shape == (30, 40)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (SceneObject((0, 0, 5, 5), np.zeros((4, 5), bool)), r"mask of shape \(4, 5\).*\(30, 40\).*\(5, 5\)"),
        (SceneObject((0, 0, 5, 5), np.zeros((5, 5))), "mask of float64"),
        (SceneObject((0, 0, 5, 5), score=float("nan")), "score nan"),
        (SceneObject((0, 0, 5, 5), score=1.5), "score 1.5"),
        (SceneObject((0, 0, 5, 5), label=3), "label 3"),
        ((0, 0, 5, 5), "is a tuple: give SceneObject"),
    ],
)
def test_bad_objects(item, message):
    with pytest.raises(ObjectsError, match=message):
        fit_objects([item], 40, 30)


@pytest.mark.parametrize(("score", "scale"), [(0.0, 0.5), (0.2, 0.5), (0.3, 0.75), (0.4, 1), (1.0, 1)])
def test_what_may_be_an_object_is_shown_smaller_where_the_settings_say_so(score, scale):
    image, box = np.zeros((400, 400, 3), np.uint8), (160, 170, 240, 230)
    image[170:230, 160:240] = 255
    (pixels, inside), (_, whole) = (
        cut(image, SceneObject(box, score=score), CropSettings(full_score=full), 224) for full in (0.4, 0)
    )
    assert inside.mean() == pytest.approx(whole.mean() * scale**2, rel=0.05)
    assert (pixels[inside == 1] == 255).all()
    y, x = np.nonzero(inside)
    assert np.abs(np.array([y.mean(), x.mean()]) - 111.5).max() < 2  # in the middle of its crop
