"""The small detector of everyday things: what it sees, and how it has its say beside the trained head."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from test_detector import ColourTokens, scene

from soir_qdrant import images as image_io
from soir_qdrant.config import Settings, TokenHeadSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.kinds import Parts
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.models.detectors import everyday, token_head
from soir_qdrant.models.detectors.token_head import LearnedDetector
from soir_qdrant.models.heads.boxes import Head, TrainedHead
from soir_qdrant.serving.check_images import DEMO


@pytest.fixture(scope="module")
def head():
    """One that has learnt nothing: every cell says 0.05."""
    torch.manual_seed(0)
    return TrainedHead(Head(9, (8, 8, 8)), "colours@1")


def test_it_boxes_what_stands_in_a_fridge():
    labelled = right = 0
    for photograph in load(DEMO).gallery:
        if photograph.file.name.startswith("fridge"):
            scores, boxes = everyday.say(image_io.load(photograph.file).rgb)
            overlap = intersection_over_union(photograph.boxes, boxes[scores >= 0.25]).max(1)
            labelled, right = labelled + len(overlap), right + int((overlap >= 0.5).sum())
    assert labelled == 45
    assert right >= 40


def test_what_it_says_counts_as_a_look_of_the_head(head):
    image = scene()[0]
    thing = np.array([[40.0, 50, 80, 90]], np.float32)
    alone = LearnedDetector(ColourTokens(), head, threshold=0.3).detect([image])[0]
    both = LearnedDetector(
        ColourTokens(), head, threshold=0.3, other=lambda _: (np.array([0.6], np.float32), thing)
    ).detect([image])[0]
    assert not len(alone.boxes)
    assert both.boxes.shape == thing.shape
    assert np.allclose(both.boxes, thing, atol=4)  # drawn a little to what the head says there


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (416, 416), (900, 5)])
def test_boxes_are_in_pixels_of_images_of_any_shape(shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    scores, boxes = everyday.say(image)
    assert boxes.shape == (len(scores), 4)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert boxes.max() <= 1.1 * max(shape)


def test_what_a_quarter_cuts_off_is_left_to_the_whole_image():
    image = np.zeros((1000, 1000, 3), np.uint8)
    shares = [[0.1, 0.1, 0.3, 0.3], [0.5, 0.1, 1.0, 0.3]]  # within its look, and up to the right edge of it
    answer = {"boxes": np.array([shares] * 5), "scores": np.full((5, 2), 0.5)}
    scores, boxes = everyday.named(answer, image)
    assert len(everyday.looks(image)) == 5
    expected = [[100, 100, 300, 300], [500, 100, 1000, 300]]  # of the whole
    expected += [[56, 56, 167, 167], [500, 56, 611, 167], [722, 56, 1000, 167]]  # of the upper quarters
    assert np.allclose(boxes[:5], expected, atol=1)
    assert len(boxes) == 8
    assert len(set(scores.tolist())) == 2  # what a quarter alone names counts for less


@pytest.mark.parametrize("profile", ["embedded", "fast"])
def test_the_default_asks_it_and_collections_of_0_1_do_not(profile):
    chosen = Settings.for_profile(profile).detector
    before = Settings.for_profile("embedded-0.1").detector
    assert isinstance(chosen, TokenHeadSettings)
    assert isinstance(before, TokenHeadSettings)
    assert chosen.everyday
    assert not before.everyday


def test_without_onnxruntime_it_is_said_what_to_do_before_the_first_image(monkeypatch, head):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(token_head, "fitting", lambda *_: head)
    everyday.session.cache_clear()
    chosen = Settings.for_profile("embedded")
    with pytest.raises(ConfigError, match=r"soir-qdrant\[embedded\].*\"everyday\": false"):
        token_head.make(chosen.detector, Parts(chosen, ColourTokens))
    without = chosen.but(detector={"everyday": False})
    assert token_head.make(without.detector, Parts(without, ColourTokens)).detect([scene()[0]])
