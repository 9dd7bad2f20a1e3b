"""Detectors: the contract that all of them keep, the embedded one's parts, and OWLv2 on a tiny model."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Detector
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.geometry.boxes import finish, intersection_over_union, pick
from soir_qdrant.kinds import Parts, make_detector
from soir_qdrant.lab.train.proposals import Example, fit, logistic, measure
from soir_qdrant.models.detectors.choice import AGREEMENT, MAX_OF_LOOK, SAME, combined
from soir_qdrant.models.detectors.proposals import saliency
from soir_qdrant.models.detectors.proposals.detector import GRID_AREA, ProposalsDetector, token_grid
from soir_qdrant.models.detectors.proposals.regions import gradient, grow, superpixels
from soir_qdrant.models.detectors.token_head import LearnedDetector
from soir_qdrant.models.heads.boxes import Head, TrainedHead
from soir_qdrant.models.token_grid import AREA, LARGEST, SHARED, spans, tiled_grid


class ColourTokens:
    """A source whose features are the mean colours of the patches."""

    patch, fingerprint = 14, "colours@1/224px"

    def features(self, images, layers):
        height, width = images.shape[1] // 14, images.shape[2] // 14
        small = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]
        grid = np.stack(small).reshape(len(images), height, width, 3)
        return np.concatenate([grid, 255 - grid, np.full_like(grid, 128)], 3).astype(np.float32) / 255


def made(source=None, **settings):
    """The detector of these settings, on the features of a source."""
    chosen = Settings().but(detector=settings)
    return make_detector(chosen.detector, Parts(chosen, lambda: source or ColourTokens()))


@pytest.fixture(scope="module")
def owlv2_folder(tmp_path_factory):
    from models import tiny_owlv2

    return tiny_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture(scope="module")
def rf_detr_folder(tmp_path_factory):
    from models import tiny_rf_detr

    return tiny_rf_detr(tmp_path_factory.mktemp("rf_detr"))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Random, and far from saying nothing."""
    torch.manual_seed(0)
    made, file = Head(9, (16, 16, 16)), tmp_path_factory.mktemp("head") / "head.safetensors"
    with torch.no_grad():
        for out in made.out:
            out.weight.normal_()
    made.save(file, "colours")
    return TrainedHead.load(file)


@pytest.fixture(
    scope="module",
    params=[
        "learned",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("proposals", "owlv2", "rf-detr")),
    ],
)
def detector(request):
    if request.param == "learned":
        return LearnedDetector(ColourTokens(), request.getfixturevalue("head"))
    if request.param == "owlv2":
        return made(kind="owlv2", weights=str(request.getfixturevalue("owlv2_folder")), max_objects=25)
    if request.param == "rf-detr":
        folder = request.getfixturevalue("rf_detr_folder")
        return made(kind="rf-detr", weights=str(folder), size=64, max_objects=25)
    return made(kind="proposals", max_objects=25)


def test_at_a_second_area_an_image_is_looked_at_again(head):
    def boxes(*areas):
        detector = LearnedDetector(ColourTokens(), head, areas=areas, threshold=0, iou=1, max_objects=9999)
        return len(detector.detect([scene()[0]])[0].boxes)

    small, large = boxes(100 * 140), boxes(150 * 200)
    assert 50 < small < large
    assert boxes(100 * 140, 150 * 200) == min(small, MAX_OF_LOOK) + min(large, MAX_OF_LOOK)


LOOK = np.array([0.8, 0.6]), np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
OTHER = np.array([0.4]), np.array([[3.0, 0, 13, 10]])


def test_what_two_looks_name_lies_between_their_boxes_nearer_to_the_surer_one():
    assert intersection_over_union(LOOK[1][:1], OTHER[1]) < SAME  # as it is, it is another thing
    nearer = OTHER[0], OTHER[1] - (1.5, 0, 1.5, 0)
    scores, boxes = combined([LOOK, nearer])
    assert np.allclose(boxes[[0, 2]], [0.5, 0, 10.5, 10])
    assert scores[2] > nearer[0][0]


def test_what_one_look_alone_names_stays_where_it_is_and_counts_for_less():
    scores, boxes = combined([LOOK, OTHER])
    assert np.allclose(boxes, np.concatenate([LOOK[1], OTHER[1]]))
    assert np.allclose(scores, np.array([0.8, 0.6, 0.4]) * (1 - AGREEMENT))


def test_one_look_is_taken_as_it_is():
    scores, boxes = combined([LOOK])
    assert scores is LOOK[0]
    assert boxes is LOOK[1]


@given(st.permutations(range(3)), st.integers(0, 99))
def test_in_which_order_an_image_is_looked_at_does_not_matter(order, seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (3, 5, 2))
    looks = [(rng.random(5), np.concatenate([c, c + rng.uniform(15, 30, (5, 2))], 1)) for c in corners]

    def columns(some):
        scores, boxes = combined(some)
        return np.sort(np.column_stack([scores, boxes]), axis=0)

    assert np.allclose(columns(looks), columns([looks[i] for i in order]))


@pytest.mark.parametrize("scales", [(0.4, 1.0), (1.0, 0.4), (0.4, 1.0, 1.5)])
def test_the_segmenter_reads_the_tokens_of_the_usual_area_wherever_that_stands(head, scales):
    class Counting(ColourTokens):
        calls = 0

        def features(self, images, layers):
            self.calls += 1
            return super().features(images, layers)

    source = Counting()
    areas = [round(AREA * scale) for scale in scales]
    LearnedDetector(source, head, areas=areas).detect([scene()[0]])
    tiled_grid(source, scene()[0], AREA)
    assert source.calls == len(scales)


def scene(height=240, width=320, boxes=((40, 50, 80, 90), (200, 120, 250, 160))):
    """A calm ground with one loud disc per box."""
    rng = np.random.default_rng(0)
    image = (90 + 10 * rng.random((height, width, 1)) + np.zeros(3)).astype(np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        colour = ((230, 40, 40), (30, 200, 60), (40, 60, 230))[i % 3]
        centre, axes = ((x0 + x1) // 2, (y0 + y1) // 2), ((x1 - x0) // 2, (y1 - y0) // 2)
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1)
    return image, np.array(boxes, np.float32)


ODD = {
    "tiny": np.arange(192, dtype=np.uint8).reshape(8, 8, 3),
    "one pixel": np.full((1, 1, 3), 7, np.uint8),
    "constant": np.full((60, 90, 3), 128, np.uint8),
    "black": np.zeros((40, 40, 3), np.uint8),
    "row": np.random.default_rng(0).integers(0, 255, (1, 700, 3), np.uint8),
    "strip": np.random.default_rng(1).integers(0, 255, (900, 5, 3), np.uint8),
    "grey": np.repeat(np.random.default_rng(2).integers(0, 255, (50, 70, 1), np.uint8), 3, axis=2),
    "scene": scene()[0],
    "large": cv2.resize(scene()[0], (2400, 1800)),
}


class TestContract:
    @pytest.mark.parametrize("odd", ODD)
    def test_boxes_lie_inside_and_scores_fall(self, detector, odd):
        image = ODD[odd]
        (found,) = detector.detect([image])
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.boxes.shape == (len(found.scores), 4)
        assert len(found.boxes) <= 25
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()
        assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()
        assert ((found.scores >= 0.2) & (found.scores <= 1)).all()
        assert (np.diff(found.scores) <= 0).all()

    def test_is_a_named_detector(self, detector):
        assert isinstance(detector, Detector)
        assert detector.name in ("proposals", "owlv2", "learned", "rf-detr")

    def test_same_image_same_boxes_and_batch_changes_nothing(self, detector):
        image, _ = scene()
        alone = detector.detect([image])[0]
        together = detector.detect([ODD["grey"], image, image])
        assert detector.detect([]) == []
        for other in together[1:]:
            np.testing.assert_array_equal(alone.boxes, other.boxes)
            np.testing.assert_array_equal(alone.scores, other.scores)

    def test_image_is_left_alone(self, detector):
        image, _ = scene()
        image.setflags(write=False)
        detector.detect([image])


def test_none_is_no_detector():
    assert made(kind="none") is None


@pytest.mark.slow
def test_proposals_stand_in_where_no_head_was_trained_for_the_encoder():
    assert made(kind="embedded").name == "proposals"


@pytest.mark.slow
class TestProposals:
    @pytest.mark.parametrize("factor", [1, 5])
    def test_finds_plain_objects_at_any_resolution(self, factor):
        image, boxes = scene(boxes=((40, 50, 80, 90), (200, 120, 250, 160), (100, 180, 140, 215)))
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        found = made(kind="proposals").detect([image])[0]
        assert (intersection_over_union(boxes * factor, found.boxes).max(axis=1) >= 0.5).all()

    def test_one_colour_holds_no_object(self):
        assert len(ProposalsDetector(ColourTokens()).detect([ODD["constant"]])[0].boxes) == 0

    def test_settings_are_kept(self):
        image, _ = scene()
        everything = ProposalsDetector(ColourTokens(), threshold=0.0, max_objects=25).detect([image])[0]
        few = ProposalsDetector(ColourTokens(), threshold=0.0, max_objects=3).detect([image])[0]
        sure = ProposalsDetector(ColourTokens(), threshold=0.5).detect([image])[0]
        np.testing.assert_array_equal(few.boxes, everything.boxes[:3])
        assert (sure.scores >= 0.5).all()
        overlaps = intersection_over_union(everything.boxes, everything.boxes) - np.eye(len(everything.boxes))
        assert overlaps.max() <= 0.41


class TestRegions:
    def test_superpixels_cover_the_image_and_follow_edges(self):
        image, _ = scene(boxes=((100, 60, 200, 160),))
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
        labels = superpixels(lab, gradient(lab), 12)
        assert labels.shape == image.shape[:2]
        assert set(np.unique(labels)) == set(range(labels.max() + 1))
        red = image[..., 0] > 200
        inside = np.bincount(labels[red], minlength=labels.max() + 1)
        share = inside / np.bincount(labels.ravel())
        assert ((share < 0.15) | (share > 0.85)).mean() > 0.9

    def test_tree_nests_and_sums(self):
        image, _ = scene()
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
        labels = superpixels(lab, gradient(lab), 16)
        tree = grow(labels, gradient(lab), lab, by_size=0.5)
        leaves = labels.max() + 1
        assert len(tree.parent) == 2 * leaves - 1
        assert (tree.parent == -1).sum() == 1
        child = np.flatnonzero(tree.parent >= 0)
        parent = tree.parent[child]
        assert (parent > child).all()
        assert (tree.height[parent] >= tree.height[child]).all()
        assert (tree.boxes[parent, :2] <= tree.boxes[child, :2]).all()
        assert (tree.boxes[parent, 2:] >= tree.boxes[child, 2:]).all()
        np.testing.assert_allclose(np.bincount(parent, tree.size[child])[leaves:], tree.size[leaves:])
        np.testing.assert_allclose(tree.means(lab)[-1], lab.mean(axis=(0, 1)), rtol=1e-4)
        np.testing.assert_allclose(tree.means(lab)[3], lab[labels == 3].mean(axis=0), rtol=1e-4)


class TestSaliency:
    def test_the_odd_cells_stand_out(self):
        grid = np.random.default_rng(0).normal(size=(20, 30, 8)).astype(np.float32) * 0.1 + 1
        grid[5:7, 8:10] = [-1, 1] * 4
        ground = np.ones((20, 30), bool)
        ground[4:8, 7:11] = False
        far = saliency.distance(grid - grid.mean(axis=(0, 1)))
        for plane in (saliency.rarity(grid), saliency.rarity(grid, ground), far):
            assert plane[5:7, 8:10].min() > np.delete(plane.ravel(), [158, 159, 188, 189]).max()

    def test_principal_components_are_those_of_a_full_decomposition(self):
        rng = np.random.default_rng(0)
        grid = (rng.normal(size=(30, 40, 60)) * np.geomspace(10, 0.1, 60)).astype(np.float32)
        coordinates, variance = saliency.principal(grid, 8)
        cells = grid.reshape(-1, 60) - grid.mean(axis=(0, 1))
        np.testing.assert_allclose(variance, np.linalg.svd(cells)[1][:8] ** 2 / 1200, rtol=1e-3)
        white = saliency.whiten(coordinates, variance, 0.0).reshape(-1, 8)
        np.testing.assert_allclose(white.T @ white / len(white), np.eye(8), atol=1e-3)


class TestBoxes:
    def test_intersection_over_union_by_hand(self):
        one = np.array([[0, 0, 2, 2]], float)
        other = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6], [2, 0, 1, 2]], float)
        np.testing.assert_allclose(intersection_over_union(one, other)[0], [1 / 7, 1, 0, 0])

    def test_pick_drops_overlaps_and_delays_parts(self):
        boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [2, 2, 5, 5], [20, 20, 30, 30]], float)
        chosen, scores = pick(boxes, np.array([0.9, 0.8, 0.7, 0.5]), iou=0.5, max_count=9)
        assert chosen.tolist() == [0, 2, 3]
        chosen, scores = pick(boxes, np.array([0.9, 0.8, 0.7, 0.5]), iou=0.5, max_count=9, decay=0.5)
        assert chosen.tolist() == [0, 3, 2]
        np.testing.assert_allclose(scores, [0.9, 0.5, 0.35])
        assert pick(np.zeros((0, 4)), np.zeros(0), iou=0.5, max_count=9)[0].tolist() == []

    def test_finish_cuts_to_the_image(self):
        boxes = np.array([[-5, -5, 3, 4], [90, 2, 200, 50], [1, 1, 1.5, 9], [5, 5, 9, 9]])
        found = finish(boxes, np.array([0.4, 0.9, 0.9, 0.1]), (40, 100, 3), threshold=0.2)
        assert found.boxes.tolist() == [[90, 2, 100, 40], [0, 0, 3, 4]]


class TestFitting:
    def test_logistic_finds_the_coefficients(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(20000, 2)) * [1, 3] + [0, 2]
        chance = 1 / (1 + np.exp(-(x @ [1.5, -0.5] + 0.25)))
        weights, bias = logistic(x, (rng.random(20000) < chance).astype(float), ridge=0.01)
        np.testing.assert_allclose([*weights, bias], [1.5, -0.5, 0.25], atol=0.08)

    def test_fitted_scores_are_calibrated(self):
        rng = np.random.default_rng(0)
        examples = []
        for _ in range(60):
            corner = rng.uniform(0, 900, (60, 2))
            quality = rng.uniform(0, 1, (1, 60)) * (rng.random((1, 60)) < 0.4)
            features = np.zeros((60, 14))
            features[:, 3] = quality[0] + rng.normal(size=60) * 0.2
            examples.append(Example(np.concatenate([corner, corner + 20], 1), features, quality))
        figures = measure(fit(examples), examples)
        assert figures["average precision"] > 0
        assert figures["calibration error"] < 0.1


@pytest.mark.slow
class TestRfDetr:
    def test_boxes_are_shares_of_the_image_and_the_best_class_is_the_score(self, rf_detr_folder):
        from soir_qdrant.models.detectors.rf_detr import RfDetrDetector
        from soir_qdrant.models.squares import squeezed

        image = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
        detector = RfDetrDetector(
            str(rf_detr_folder), size=64, threshold=0, iou=1, max_objects=99, dtype="float32", device="cpu"
        )
        found = detector.detect([image])[0]
        with torch.inference_mode():
            whole = detector.model(pixel_values=squeezed(image, 64))
        cx, cy, w, h = (whole.pred_boxes[0] * torch.tensor([200, 120, 200, 120])).T
        expected = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1).numpy()
        expected = np.clip(expected, 0, [200, 120, 200, 120])
        scores = whole.logits[0].sigmoid().max(-1).values.numpy()
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_allclose(found.scores, scores[order], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected[order], atol=1e-2)

    def test_what_does_not_fit_is_refused(self, rf_detr_folder, owlv2_folder):
        with pytest.raises(ConfigError, match=r"detector\.size 60: give a multiple of 8"):
            made(kind="rf-detr", weights=str(rf_detr_folder), size=60)
        with pytest.raises(WeightsError, match="a owlv2 model where a rf_detr one belongs"):
            made(kind="rf-detr", weights=str(owlv2_folder))


@pytest.mark.slow
class TestOwlv2:
    def test_missing_weights_say_what_to_do(self, tmp_path):
        with pytest.raises(WeightsError, match="neither"):
            made(kind="owlv2", weights="nowhere")
        with pytest.raises(WeightsError, match=r"config\.json"):
            made(kind="owlv2", weights=str(tmp_path))

    def test_boxes_map_back_by_the_longer_side(self, owlv2_folder):
        """Against the whole model, prompted with text, and the processor's own rescaling."""
        from soir_qdrant.models.detectors.owlv2 import Owlv2Detector, preprocess

        image = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
        detector = Owlv2Detector(str(owlv2_folder), threshold=0, iou=1, max_objects=99, dtype="float32")
        found = detector.detect([image])[0]
        with torch.inference_mode():
            whole = detector.model(
                pixel_values=preprocess(image, 64), input_ids=torch.ones(1, 4, dtype=torch.long)
            )
        centre, sides = whole.pred_boxes[0].chunk(2, -1)
        expected = torch.cat([centre - sides / 2, centre + sides / 2], -1).numpy() * 200
        expected = np.clip(expected, 0, [200, 120, 200, 120])
        scores = whole.objectness_logits[0].sigmoid().numpy()
        inside = (expected[:, 3] - expected[:, 1] >= 1) & (expected[:, 2] - expected[:, 0] >= 1)
        order = np.argsort(-scores[inside], kind="stable")
        np.testing.assert_allclose(found.scores, scores[inside][order], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected[inside][order], atol=1e-2)

    @pytest.mark.parametrize("shape", [(96, 160), (160, 96), (64, 64)])
    def test_preprocessing_matches_the_processor(self, shape):
        pytest.importorskip("scipy")
        processors = pytest.importorskip("transformers.models.owlv2.image_processing_pil_owlv2")
        from soir_qdrant.models.detectors.owlv2 import preprocess

        rng = np.random.default_rng(0)
        image = cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), np.uint8), (0, 0), 3)

        class Grey(processors.Owlv2ImageProcessorPil):
            def pad(self, image):
                return super().pad(image, constant_value=0.5)

        processor = Grey(size={"height": 64, "width": 64})
        theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
        ours = preprocess(image, 64)[0].numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() < 0.02
        padding = ours[:, int(np.ceil(shape[0] / max(shape) * 64)) + 1 :]
        np.testing.assert_allclose(padding, theirs[:, 64 - padding.shape[1] :], atol=1e-3)


class TestTiles:
    """The learned detector looks at a picture in tiles."""

    @given(st.integers(1, 400))
    def test_they_cover_a_row_and_overlap(self, length):
        side, starts = spans(length)
        assert side <= LARGEST
        assert starts[0] == 0
        assert starts[-1] + side == length
        assert all(SHARED <= one + side - other < side for one, other in pairwise(starts))

    @pytest.mark.parametrize("size", [(768, 1024), (100, 3000), (30, 40), (1, 1)])
    def test_tokens_that_see_one_patch_are_those_of_the_whole_picture(self, size):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        whole, tiled = token_grid(ColourTokens(), image), tiled_grid(ColourTokens(), image, GRID_AREA)
        np.testing.assert_allclose(tiled, whole, atol=1e-6)
