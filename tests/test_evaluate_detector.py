"""Detection is measured as COCO does, by size too."""

import json

import numpy as np
import pytest
from conftest import painted
from PIL import Image
from typer.testing import CliRunner

from soir_qdrant.cli import main as cli
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.lab.evaluate.detection import (
    UNMATCHED,
    evaluate_detector,
    labelled_images,
    matches,
    precision_over_recall,
)
from soir_qdrant.lab.evaluate.metrics import box_shares, recall_by_size
from soir_qdrant.models.detectors.owlv2 import Owlv2Detector
from soir_qdrant.types import Detections


def rows(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_each_box_takes_one_object_and_each_object_one_box():
    true = rows((0, 0, 10, 10), (2, 0, 12, 10))
    boxes = rows((0, 0, 10, 10), (0, 0, 10, 9), (40, 40, 50, 50))
    assert matches(true, boxes, 0.5).tolist() == [0, 1]  # the second box's best is taken: it gets the other
    assert matches(true, boxes, 0.7).tolist() == [0, UNMATCHED]
    assert matches(true, boxes[:0], 0.5).tolist() == [UNMATCHED] * 2
    assert matches(true[:0], boxes, 0.5).tolist() == []


def test_average_precision_by_hand():
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert precision_over_recall(np.array([True, True, True]), scores, 3) == pytest.approx(1)
    assert precision_over_recall(np.array([False, True, False]), scores, 1) == pytest.approx(0.5)
    assert precision_over_recall(np.array([True, False, False]), scores, 2) == pytest.approx(51 / 101)
    assert precision_over_recall(np.zeros(0, bool), scores[:0], 2) == 0


def test_recall_by_size_counts_each_object_in_its_own_size():
    boxes = rows((0, 0, 5, 5), (0, 0, 10, 5), (0, 0, 10, 10), (0, 0, 20, 20), (0, 0, 50, 50), (0, 0, 5, 5))
    shares = box_shares(boxes, (100, 100))
    assert shares == pytest.approx([0.0025, 0.005, 0.01, 0.04, 0.25, 0.0025])
    hit = np.array([True, True, False, False, True, False])
    found = recall_by_size(hit, shares)
    assert found == {"<0.5%": 0.5, "0.5-1%": 1.0, "1-3%": 0.0, "3-10%": 0.0, ">10%": 1.0}
    assert recall_by_size(hit[:1], shares[:1])[">10%"] is None


@pytest.fixture
def coco(tmp_path):
    """Six images, 100 x 100, one thing of 20 x 20 and one of 5 x 5 each; the first two are exhaustive."""
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(6):
        Image.fromarray(painted(((i, 0, 20, 20), (200, i, 0)), size=(100, 100))).save(
            folder / f"images/{i}.png"
        )
        named = {"id": i, "file_name": f"{i}.png", "width": 100, "height": 100}
        images.append(named | ({"exhaustive": True} if i < 2 else {}))
        annotations += [{"image_id": i, "bbox": [0, 0, 20, 20]}, {"image_id": i, "bbox": [50, 50, 5, 5]}]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "licences.json").write_text("[]")
    return folder


@pytest.fixture
def detector(monkeypatch):
    """Boxes the large thing, something that is none and, at a threshold below 0.1, the small thing."""
    seen = []

    def detect(self, images):
        seen.extend(images)
        boxes, scores = rows((0, 0, 20, 20), (70, 70, 90, 90), (50, 50, 55, 55)), np.array([0.9, 0.5, 0.05])
        rows_ = scores >= self.threshold
        return [Detections(boxes[rows_], scores[rows_].astype(np.float32))] * len(images)

    monkeypatch.setattr(Owlv2Detector, "detect", detect)
    return seen


def test_a_detector_is_measured_on_a_coco_folder(coco, detector, tiny_settings, tmp_path):
    settings = tiny_settings.but(detector={"threshold": 0.2, "max_objects": 25})
    results = evaluate_detector(labelled_images(coco), settings, cache=tmp_path / "cache")
    assert (results["images"], results["objects"], results["exhaustive"]) == (6, 12, 2)
    assert results["recall@0.5"] == 0.5
    assert results["boxes"] == 2
    assert results["by_size"]["<0.5%"] == 0
    assert results["by_size"]["3-10%"] == 1
    assert results["by_size@100"]["<0.5%"] == 1
    assert results["AR@100"] == results["recall@10"] == 1
    # one of two objects at precision 1, the other at 2 of 3
    assert results["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-4)

    count = len(detector)
    assert evaluate_detector(labelled_images(coco), settings, cache=tmp_path / "cache") == results
    assert len(detector) == count  # nothing was detected again
    evaluate_detector(labelled_images(coco), settings.but(detector={"iou": 0.3}), cache=tmp_path / "cache")
    assert len(detector) == 2 * count


def test_where_nothing_is_labelled_whole_there_is_no_precision(coco, detector, tiny_settings):
    assert evaluate_detector(labelled_images(coco)[2:], tiny_settings)["AP"] is None
    with pytest.raises(DatasetError, match="no images"):
        evaluate_detector([], tiny_settings)
    with pytest.raises(ConfigError, match="detects nothing"):
        evaluate_detector(labelled_images(coco), tiny_settings.but(detector={"kind": "none"}))


def test_some_images_are_the_same_ones_each_time_and_stay_when_others_come(coco):
    def names():
        return [image.file.name for image in labelled_images(coco, max_images=3)]

    first = names()
    assert len(first) == 3
    labels = json.loads((coco / "coco.json").read_text())
    labels["images"].insert(0, {"id": 99, "file_name": "new.png", "width": 100, "height": 100})
    Image.fromarray(painted(size=(100, 100))).save(coco / "images/new.png")
    (coco / "coco.json").write_text(json.dumps(labels))
    assert len(set(first) & set(names())) >= 2


def test_the_command_measures_several_folders(coco, detector, tiny_settings, tmp_path):
    profile, file = tmp_path / "tiny.json", tmp_path / "result.json"
    profile.write_text(tiny_settings.model_dump_json())
    options = ["evaluate-detector", coco, coco / "coco.json", "--profile", profile, "--json", file]
    done = CliRunner().invoke(cli.app, [*map(str, options), "--max-images", "2"])
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text())
    assert [row["images"] for row in results.values()] == [2, 2]
    assert "recall by size" in done.output
