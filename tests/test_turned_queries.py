"""A query is looked at askew as well, since things lie on desks, boards and in bins as they happen to; and lit from
either side, since a shop shows them evenly bright."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.crops import full_mask
from soir_qdrant.geometry.lit import lit
from soir_qdrant.geometry.query_views import query_views
from soir_qdrant.geometry.turned import turned
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import LoadedImage, SceneObject

BOX = (60.0, 40.0, 140.0, 80.0)


@pytest.fixture(scope="module")
def image():
    """An arrow in two colours on a noisy background, and its mask."""
    rgb = np.random.default_rng(0).integers(90, 150, (160, 200, 3), np.uint8)
    mask = np.zeros((160, 200), np.uint8)
    cv2.fillPoly(
        mask, [np.array([[60, 50], [110, 50], [110, 40], [139, 60], [110, 79], [110, 70], [60, 70]])], 1
    )
    rgb[mask > 0] = (220, 40, 30)
    rgb[:, :100][mask[:, :100] > 0] = (20, 200, 240)
    return rgb, mask > 0


def test_a_thing_turned_by_a_quarter_is_as_numpy_turns_it(image):
    rgb, mask = image
    ((view, item),) = turned(rgb, SceneObject(BOX, mask), [90], 224)
    x0, y0, x1, y1 = (round(v) for v in item.box)
    assert (x1 - x0, y1 - y0) == pytest.approx((40, 80), abs=1)
    expected = np.rot90(rgb[40:80, 60:140])
    inside = np.rot90(mask[40:80, 60:140])
    inside = cv2.erode(inside.astype(np.uint8), np.ones((3, 3))) > 0
    shown = cv2.resize(view[y0:y1, x0:x1], (40, 80))
    off = np.abs(shown.astype(int) - expected)[inside]
    assert off.mean() < 8  # levels, of 255


@given(
    degrees=st.floats(-180, 180),
    box=st.tuples(st.floats(0, 190), st.floats(0, 150), st.floats(2, 300), st.floats(2, 300)),
)
def test_what_is_turned_keeps_its_area_wherever_it_lies(image, degrees, box):
    """Beyond the image's edge as well, and however large."""
    rgb, _ = image
    x, y, w, h = box
    item = SceneObject((x, y, min(x + w, 200.0), min(y + h, 160.0)))
    if min(item.box[2] - x, item.box[3] - y) < 4:
        return
    area = full_mask(item, 200, 160).sum()
    ((view, there),) = turned(rgb, item, [degrees], 224)
    assert view.shape[2] == 3
    assert view.dtype == np.uint8
    mask = full_mask(there, view.shape[1], view.shape[0])
    assert mask.sum() == pytest.approx(area, rel=0.15, abs=12)


def test_a_large_thing_is_turned_at_the_pixels_that_a_crop_needs():
    rgb = np.zeros((2000, 2000, 3), np.uint8)
    ((view, item),) = turned(rgb, SceneObject((100, 100, 1900, 1900)), [30], 224)
    assert view.shape == (672, 672, 3)
    assert item.box[2] - item.box[0] < 672


def test_a_thing_of_which_nothing_is_left_stays_as_it_is():
    """One pixel, shown at a fortieth of its size."""
    rgb, mask = np.zeros((1280, 1600, 3), np.uint8), np.zeros((1280, 1600), bool)
    mask[400, 560] = True
    item = SceneObject((0.0, 0.0, 1600.0, 1280.0), mask)
    ((view, there),) = turned(rgb, item, [45], 14)
    assert view is rgb
    assert there is item


def test_a_query_is_the_mean_of_what_it_looks_like_to_both_sides(shipped_encoder, image):
    rgb, mask = image
    settings = Settings.for_profile("embedded").but(crop={"query_turns": (20, 70), "query_lights": False})
    pipeline = Pipeline(settings, encoder=shipped_encoder)
    look = pipeline.query_look(rgb, box=BOX, mask=mask, patches=True)
    each = _read(pipeline, mask, rgb)
    assert len(each) == 5
    assert np.allclose(look.row, np.mean(each, axis=0), atol=2e-3)
    assert np.allclose(look.looks, each, atol=2e-3)
    plain = Pipeline(settings.but(crop={"query_turns": ()}), encoder=shipped_encoder)
    upright = plain.query_look(rgb, box=BOX, mask=mask, patches=True)
    assert np.allclose(upright.row, each[0], atol=2e-3)
    assert not np.allclose(look.row, each[0], atol=2e-3)
    assert look.patches is not None
    assert upright.patches is not None
    assert np.allclose(look.patches, upright.patches, atol=2e-2)  # of the object as it stands


def test_as_it_stands_a_query_is_the_mean_under_both_lights(shipped_encoder, image):
    rgb, mask = image
    settings = Settings.for_profile("embedded").but(crop={"query_turns": (20,), "query_lights": True})
    pipeline = Pipeline(settings, encoder=shipped_encoder)
    look = pipeline.query_look(rgb, box=BOX, mask=mask, patches=True)
    left, right, *others = _read(pipeline, mask, rgb)
    assert len(others) == 2
    assert look.looks is not None
    assert np.allclose(look.looks, [(left + right) / 2, *others], atol=2e-3)
    assert np.allclose(look.row, look.looks.mean(0))
    rows = [
        pipeline.patches(pipeline.crops([one], [[SceneObject(BOX, mask)]]))[0]
        for one in lit(rgb, SceneObject(BOX, mask))
    ]
    mean = np.mean(rows, axis=0)
    assert look.patches is not None
    assert np.allclose(look.patches, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=2e-2)


def _read(pipeline, mask, rgb):
    """The features of each view, one by one."""
    size = pipeline.encoder.input_size
    views = query_views(rgb, SceneObject(BOX, mask), pipeline.settings, size)
    return [
        pipeline.features(pipeline.encode(pipeline.crops([one], [items])))[0]
        for one, items in zip(views.images, views.objects, strict=True)
    ]


def test_a_lamp_stands_left_of_it_then_right_of_it(image):
    rgb, mask = image
    left, right = lit(rgb, SceneObject(BOX, mask))
    column = {x: rgb[50:70, x].mean() for x in (60, 99, 139)}
    assert left[50:70, 60].mean() > column[60] * 1.1 > right[50:70, 60].mean()
    assert right[50:70, 139].mean() > column[139] * 1.1 > left[50:70, 139].mean()
    middle = (1.15 + 0.5) / 2
    assert left[50:70, 99].mean() == pytest.approx(column[99] * middle, rel=0.02)
    assert right[50:70, 99].mean() == pytest.approx(column[99] * middle, rel=0.02)


@given(
    box=st.tuples(st.floats(0, 190), st.floats(0, 150), st.floats(0.5, 300), st.floats(0.5, 300)),
    level=st.integers(0, 255),
)
def test_light_stays_within_what_a_byte_holds_wherever_the_thing_lies(box, level):
    rgb = np.full((160, 200, 3), level, np.uint8)
    x, y, w, h = box
    before = rgb.copy()
    for view in lit(rgb, SceneObject((x, y, min(x + w, 200.0), min(y + h, 160.0)))):
        assert view.shape == rgb.shape
        assert view.dtype == np.uint8
        assert view.max() <= min(math.ceil(level * 1.15), 255)
        assert view.min() >= math.floor(level * 0.5)
    assert (rgb == before).all()


def test_a_thing_half_in_the_shade_is_more_like_a_query_that_was_lit(shipped_encoder, image):
    """Than like one that is evenly bright, as a shop shows it."""
    rgb, mask = image
    shaded = (rgb * np.linspace(1.0, 0.35, 200)[None, :, None]).astype(np.uint8)
    similar = {}
    for lights in (True, False):
        settings = Settings.for_profile("embedded").but(crop={"query_turns": (), "query_lights": lights})
        pipeline = Pipeline(settings, encoder=shipped_encoder)
        similar[lights] = _likeness(pipeline, shaded, SceneObject(BOX, mask), rgb, mask)
    assert similar[True] > similar[False] + 0.05


def _likeness(pipeline, view, item, rgb, mask):
    """Of an object as it was stored and the query, by their vectors."""
    (scene,) = pipeline.scenes([LoadedImage(view, "view", None, "0" * 64)], [[item]])
    return float(scene.object_vectors[0] @ pipeline.query(rgb, box=BOX, mask=mask))


def test_a_thing_that_lies_askew_is_more_like_its_query(shipped_encoder, image):
    """Than it would be to a query that is looked at upright alone."""
    rgb, mask = image
    settings = Settings.for_profile("embedded")
    ((askew, item),) = turned(rgb, SceneObject(BOX, mask), [75], 224)
    similar = {}
    for turns in (settings.crop.query_turns, ()):
        pipeline = Pipeline(settings.but(crop={"query_turns": turns}), encoder=shipped_encoder)
        similar[turns] = _likeness(pipeline, askew, item, rgb, mask)
    assert similar[settings.crop.query_turns] > similar[()] + 0.03


@pytest.mark.parametrize("turns", [(0,), (-30,), (181,), (float("nan"),), tuple(range(1, 10))])
def test_turns_that_are_none_are_refused(turns):
    with pytest.raises(ConfigError, match="query_turns"):
        Settings().but(crop={"query_turns": turns})
