"""COCO's segmentations, against masks drawn by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.coco_masks import Outline
from soir_qdrant.lab.evaluate.datasets import load


def drawn(*rows):
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def test_runs_go_down_the_columns_and_begin_with_what_is_off():
    runs = {"size": [3, 4], "counts": [1, 2, 3, 1, 5]}
    np.testing.assert_array_equal(Outline(runs, 3, 4).mask(), drawn("..#.", "#...", "#..."))
    np.testing.assert_array_equal(Outline({"size": [2, 1], "counts": [0, 2]}, 2, 1).mask(), drawn("#", "#"))


def test_polygons_are_filled_to_the_half_pixel():
    rectangle = [[2, 1, 6, 1, 6, 4, 2, 4]]
    expected = drawn("........", "..####..", "..####..", "..####..", "........", "........")
    np.testing.assert_array_equal(Outline(rectangle, 6, 8).mask(), expected)
    outside = [[2, 1, 60, 1, 60, 4, 2, 4]]
    np.testing.assert_array_equal(Outline(outside, 6, 8).mask()[1], [False] * 2 + [True] * 6)


def test_a_polygon_at_an_angle_has_its_area_and_middle():
    turn = np.linspace(0, 2 * np.pi, 50)[:-1]
    circle = np.stack([30.25 + 12 * np.cos(turn), 20.5 + 12 * np.sin(turn)], 1).ravel().tolist()
    mask = Outline([circle], 50, 60).mask()
    assert mask.sum() == pytest.approx(np.pi * 144, rel=0.02)
    rows, columns = np.nonzero(mask)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((30.25, 20.5), abs=0.1)


def test_parts_of_an_object_are_one_mask_and_overlap_without_a_hole():
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [1, 0, 3, 0, 3, 2, 1, 2], [5, 0, 6, 0, 6, 1, 5, 1]]
    np.testing.assert_array_equal(Outline(parts, 2, 6).mask(), drawn("###..#", "###..."))


@pytest.mark.parametrize("segmentation", [None, []])
def test_unknown_is_none(segmentation):
    assert Outline(segmentation, 2, 2).mask() is None


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [3, 4], "counts": [1, 2]},
        {"size": [3, 4], "counts": "PPYo0"},
        {"counts": [1]},
        [["a", "b"]],
        7,
    ],
)
def test_what_is_neither_is_refused(segmentation):
    with pytest.raises(DatasetError, match="neither polygons nor runs"):
        Outline(segmentation, 3, 4).mask()


def test_an_image_has_the_masks_of_its_objects_in_their_order(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    runs = {"size": [6, 8], "counts": [0, 6, 42]}
    annotations = [
        {"image_id": 1, "bbox": [2, 1, 4, 3], "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]]},
        {"image_id": 1, "bbox": [3, 3, 0, 2], "segmentation": [[3, 3, 4, 3, 4, 5]]},  # without area: left out
        {"image_id": 1, "bbox": [0, 0, 8, 6], "segmentation": runs, "iscrowd": 1},  # a crowd: left out
        {"image_id": 1, "bbox": [0, 0, 1, 6], "segmentation": runs},
        {"image_id": 1, "bbox": [5, 5, 1, 1]},
    ]
    data = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}], "annotations": annotations}
    (tmp_path / "coco.json").write_text(json.dumps(data))
    (entry,) = load(tmp_path, "coco").gallery
    first, second, third = entry.masks()
    assert (first.sum(), first[1:4, 2:6].all()) == (12, True)
    assert (second.sum(), second[:, 0].all()) == (6, True)
    assert third is None
    data["annotations"] = annotations[-1:]
    (tmp_path / "coco.json").write_text(json.dumps(data))
    assert load(tmp_path, "coco").gallery[0].masks() is None
