"""Segmenters: the contract that all of them keep, GrabCut's masks, SAM on a tiny model."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Segmenter
from soir_qdrant.errors import ConfigError, ObjectsError, WeightsError
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.geometry.crops import whole_box
from soir_qdrant.geometry.masks import ellipse
from soir_qdrant.kinds import Parts, make_segmenter
from soir_qdrant.models.segmenters.box import BoxSegmenter
from soir_qdrant.models.segmenters.grabcut import GrabCutSegmenter


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    from models import tiny_sam

    return tiny_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory):
    from models import tiny_sam2

    return tiny_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(
    scope="module",
    params=[
        "grabcut",
        "box",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("embedded", "sam", "sam2")),
    ],
)
def segmenter(request):
    kind = request.param
    weights = {"weights": str(request.getfixturevalue(f"{kind}_folder"))} if "sam" in kind else {}
    return made(
        request.getfixturevalue("shipped_encoder") if kind == "embedded" else None, kind=kind, **weights
    )


def made(encoder=None, **settings):
    """The segmenter of these settings, on the features of an encoder."""
    chosen = Settings().but(segmenter=settings)
    return make_segmenter(chosen.segmenter, Parts(chosen, lambda: encoder))


CASES = {
    "plain": ((120, 160), [(20, 30, 60, 70), (100.4, 20.6, 150.2, 90.9)]),
    "whole image": ((40, 60), [(0, 0, 60, 40)]),
    "at the edges": ((50, 50), [(-8, -3, 20.5, 18), (30, 30, 70, 55)]),
    "slivers": ((90, 90), [(10, 10, 11, 80), (10, 10.2, 80, 10.9), (5.1, 5.1, 5.2, 5.2)]),
    "tiny image": ((8, 8), [(0, 0, 8, 8), (2, 2, 5, 6)]),
    "one pixel": ((1, 1), [(0, 0, 1, 1)]),
    "strip": ((600, 4), [(0, 100, 4, 300)]),
    "large": ((1500, 2000), [(300, 200, 1500, 1200)]),
    "none": ((30, 30), []),
}


class TestContract:
    @pytest.mark.parametrize("ground", ["noise", "constant"])
    @pytest.mark.parametrize("case", CASES)
    def test_masks_have_the_frame_of_their_box(self, segmenter, case, ground):
        (height, width), boxes = CASES[case]
        image = np.full((height, width, 3), 99, np.uint8)
        if ground == "noise":
            image = np.random.default_rng(0).integers(0, 255, image.shape, np.uint8)
        image.setflags(write=False)
        masks = segmenter.segment(image, np.array(boxes, np.float32).reshape(-1, 4))
        assert len(masks) == len(boxes)
        for mask, (x0, y0, x1, y1) in zip(masks, np.array(boxes, np.float32), strict=True):
            rows = min(int(np.ceil(y1)), height) - max(int(np.floor(y0)), 0)
            columns = min(int(np.ceil(x1)), width) - max(int(np.floor(x0)), 0)
            assert mask.dtype == np.bool_
            assert mask.shape == (rows, columns)
            assert mask.any()

    def test_same_input_same_masks_whatever_the_other_boxes(self, segmenter):
        image = np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8)
        boxes = np.array([[10, 10, 50, 60], [40, 30, 110, 80], [5, 50, 30, 85]], np.float32)
        together = segmenter.segment(image, boxes)
        for i in (2, 0, 1):
            np.testing.assert_array_equal(together[i], segmenter.segment(image, boxes[i : i + 1])[0])

    def test_is_a_named_segmenter(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert segmenter.name in ("learned", "grabcut", "box", "sam", "sam2")

    def test_box_outside_is_refused(self, segmenter):
        with pytest.raises(ObjectsError, match="no pixel"):
            segmenter.segment(np.zeros((20, 20, 3), np.uint8), np.array([[30, 30, 40, 40]], np.float32))


def star(factor):
    """A shape that neither the box nor its ellipse resembles, on a textured ground: image, true mask, box."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(60, 140, (160, 200, 3), np.uint8), (0, 0), 1)
    turn = np.linspace(0, 2 * np.pi, 11)[:-1]
    radius = np.where(np.arange(10) % 2, 18, 45)
    corners = np.stack([100 + radius * np.cos(turn), 80 + radius * np.sin(turn)], 1).astype(np.int32)
    cv2.fillPoly(image, [corners], (240, 200, 30))
    true = cv2.fillPoly(np.zeros((160, 200), np.uint8), [corners], 1)
    size = (200 * factor, 160 * factor)
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    true = cv2.resize(true, size, interpolation=cv2.INTER_NEAREST).astype(bool)
    rows, columns = np.flatnonzero(true.any(1)), np.flatnonzero(true.any(0))
    box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
    return image, true, box


class TestCutting:
    @pytest.mark.parametrize("kind", ["embedded", "grabcut"])
    @pytest.mark.parametrize("factor", [1, 6])
    def test_cuts_out_a_star(self, shipped_encoder, kind, factor):
        image, true, box = star(factor)
        x0, y0, x1, y1 = box[0].astype(int)
        true = true[y0:y1, x0:x1]
        segmenter = made(shipped_encoder, kind=kind)
        mask = segmenter.segment(image, box)[0]
        assert (mask & true).sum() / (mask | true).sum() > 0.8 > true.mean() + 0.2

    @pytest.mark.parametrize("moved", [(-9, -7, 6, 8), (8, 9, 9, 7), (6, -9, -8, 9)])
    def test_moves_a_box_to_the_star_in_it(self, shipped_encoder, moved):
        image, _, tight = star(1)
        loose = tight + np.array([moved], np.float32)
        segmenter = made(shipped_encoder)
        ((box, mask),) = segmenter.refine_boxes(image, loose)
        fitted = intersection_over_union(np.array([box], np.float32), tight)[0, 0]
        assert fitted > max(0.85, intersection_over_union(loose, tight)[0, 0])
        np.testing.assert_array_equal(mask.shape, (box[3] - box[1], box[2] - box[0]))

    @pytest.mark.parametrize("case", CASES)
    def test_moved_boxes_stay_in_the_image(self, shipped_encoder, case):
        (height, width), boxes = CASES[case]
        image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        segmenter = made(shipped_encoder)
        found = segmenter.refine_boxes(image, np.array(boxes, np.float32).reshape(-1, 4))
        assert len(found) == len(boxes)
        for box, mask in found:
            assert mask.any()
            x0, y0, x1, y1 = whole_box(box, width, height)
            assert mask.shape == (y1 - y0, x1 - x0)

    def test_nothing_to_cut_is_the_ellipse(self):
        image = np.full((80, 80, 3), 50, np.uint8)
        mask = GrabCutSegmenter().segment(image, np.array([[20, 20, 60, 60]], np.float32))[0]
        np.testing.assert_array_equal(mask, ellipse((40, 40)))


def test_box_is_every_pixel():
    assert BoxSegmenter().segment(np.zeros((9, 9, 3), np.uint8), np.array([[1, 2, 4, 8]]))[0].all()


@pytest.mark.slow
class TestSam:
    @pytest.mark.parametrize("shape", [(60, 100), (100, 60), (64, 64), (200, 130)])
    def test_matches_the_processor(self, sam_folder, shape):
        """Preprocessing, prompts and the way back, against the slow processor of `transformers`."""
        processors = pytest.importorskip("transformers.models.sam.image_processing_pil_sam")
        from soir_qdrant.models.segmenters.sam import fitted, in_frame, preprocess

        image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8), (0, 0), 2)
        sides = {"height": 64, "width": 64}
        processor = processors.SamImageProcessorPil(size={"longest_edge": 64}, pad_size=sides)
        theirs = processor(images=image, return_tensors="pt")
        assert theirs["reshaped_input_sizes"][0].tolist() == list(fitted(*shape, 64))
        assert (preprocess(image, 64) - theirs["pixel_values"]).abs().mean() < 0.02
        logits = torch.randn(1, 1, 16, 16)
        expected = processor.post_process_masks([logits], [shape], [list(fitted(*shape, 64))], pad_size=sides)
        mask = in_frame(logits[0, 0], np.array([0, 0, shape[1], shape[0]]), shape, fitted(*shape, 64), 64)
        np.testing.assert_array_equal(mask, expected[0][0, 0].numpy())

    def test_takes_the_mask_of_best_predicted_quality(self, sam_folder):
        from soir_qdrant.models.segmenters.sam import SamSegmenter, fitted, in_frame, preprocess

        image = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
        box = np.array([[10, 5, 80, 50]], np.float32)
        segmenter = SamSegmenter(str(sam_folder))
        with torch.inference_mode():
            found = segmenter.model(
                pixel_values=preprocess(image, 64),
                input_boxes=torch.tensor([[[6.4, 5 * 38 / 60, 51.2, 50 * 38 / 60]]]),
            )
        best = found.pred_masks[0, 0, found.iou_scores[0, 0].argmax()]
        expected = in_frame(best, box[0], (60, 100), fitted(60, 100, 64), 64)
        np.testing.assert_array_equal(segmenter.segment(image, box)[0], expected)

    def test_missing_weights_say_what_to_do(self, tmp_path):
        with pytest.raises(WeightsError, match=r"config\.json"):
            made(kind="sam", weights=str(tmp_path))


@pytest.mark.slow
class TestSam2:
    def test_takes_the_mask_of_best_predicted_quality(self, sam2_folder):
        from soir_qdrant.models.segmenters.sam2 import Sam2Segmenter
        from soir_qdrant.models.squares import squeezed

        image = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
        box = np.array([[10, 5, 80, 50]], np.float32)
        segmenter = Sam2Segmenter(str(sam2_folder))
        with torch.inference_mode():
            found = segmenter.model(
                pixel_values=squeezed(image, 64),
                input_boxes=torch.tensor([[[6.4, 5 * 64 / 60, 51.2, 50 * 64 / 60]]]),
            )
        best = found.pred_masks[0, 0, found.iou_scores[0, 0].argmax()]
        whole = torch.nn.functional.interpolate(best[None, None], (60, 100), mode="bilinear")[0, 0] > 0
        np.testing.assert_array_equal(segmenter.segment(image, box)[0], whole[5:50, 10:80])

    def test_weights_of_another_model_are_refused(self, sam_folder):
        with pytest.raises(WeightsError, match="a sam model where a sam2 or sam2_video one belongs"):
            made(kind="sam2", weights=str(sam_folder))


class TestSegmentAnything:
    def test_says_what_it_needs(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "segment_anything", None)
        with pytest.raises(ConfigError, match="torchvision"):
            made(kind="segment-anything", weights="sam_vit_b_01ec64.pth")

    def test_file_name_says_the_architecture(self, monkeypatch):
        from soir_qdrant.models.segmenters import segment_anything

        monkeypatch.setattr(segment_anything, "_segment_anything", lambda: ({}, None))
        with pytest.raises(WeightsError, match="vit_h, vit_l, vit_b"):
            segment_anything.SegmentAnythingSegmenter("model.pth")
