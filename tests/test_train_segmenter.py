"""The trained segmenter: one network, trained and run; training survives interruption, and teaches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_detector import ColourTokens
from test_segmenter import made

from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.lab.evaluate.bench import Bench, load
from soir_qdrant.lab.evaluate.coco_masks import Outline
from soir_qdrant.lab.evaluate.datasets import load as load_any
from soir_qdrant.lab.train.progress import contents, place_of
from soir_qdrant.lab.train.segmenter import MAX_OBJECTS, Plan, Views, examples, measure, train, untrained
from soir_qdrant.models import artifacts
from soir_qdrant.models.compatibility import DATA, trunk
from soir_qdrant.models.heads.masks import CELLS, SIDE, MaskHead
from soir_qdrant.models.segmenters.box import BoxSegmenter
from soir_qdrant.models.segmenters.grabcut import GrabCutSegmenter
from soir_qdrant.models.segmenters.token_unet import LearnedSegmenter
from soir_qdrant.models.segmenters.windows import (
    MAX_BATCH,
    box_planes,
    in_box,
    likely,
    resized_tokens,
    sampled_tokens,
    window,
    window_image,
    window_tokens,
)
from soir_qdrant.models.token_grid import AREA, MAX_GRIDS, tiled_grid

pytestmark = pytest.mark.slow


def folder_of(place, scenes):
    """Bright discs on dark noise, annotated with their masks."""
    rng, gallery = np.random.default_rng(0), []
    y, x = np.mgrid[:120, :160]
    for i in range(scenes):
        image, ids, objects = rng.integers(0, 90, (120, 160, 3), np.uint8), np.zeros((120, 160), np.uint8), []
        for k, (cx, cy) in enumerate([(40, 60), (110, 50)]):
            inside = (x - cx) ** 2 + (y - cy) ** 2 <= (18 + 4 * k + i % 5) ** 2
            image[inside], ids[inside] = rng.integers(160, 256, 3), k + 1
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            box = [int(columns[0]), int(rows[0]), int(columns[-1] + 1), int(rows[-1] + 1)]
            objects.append({"instance": f"disc{k}", "box": box})
        Image.fromarray(image).save(place / f"{i}.png")
        Image.fromarray(ids).save(place / f"{i}-mask.png")
        gallery.append({"file": f"{i}.png", "mask": f"{i}-mask.png", "objects": objects})
    (place / "annotations.json").write_text(json.dumps({"gallery": gallery, "queries": []}))
    return load(place)


def fresh():
    torch.manual_seed(0)
    return MaskHead(9, widths=(8, 16, 16))


def files(folder):
    return {"state": folder / "state", "log": folder / "log.jsonl"}


def loud(head):
    """The same head, far from predicting nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head.eval()


class Counting(ColourTokens):
    """How many images went through the trunk."""

    calls = 0

    def features(self, images, layers):
        self.calls += len(images)
        return super().features(images, layers)


IMAGE = np.random.default_rng(5).integers(0, 256, (300, 400, 3), np.uint8)
CORNERS = np.random.default_rng(6).uniform((0, 0, 20, 20), (300, 200, 90, 90), (2 * MAX_BATCH + 5, 4))
BOXES = np.concatenate([CORNERS[:, :2], CORNERS[:, :2] + CORNERS[:, 2:]], 1)


def test_a_saved_head_predicts_what_it_predicted(tmp_path):
    head = loud(fresh())
    head.save(tmp_path / "head.safetensors", "colours@1")
    loaded = MaskHead.load(tmp_path / "head.safetensors")
    assert loaded.fitted_for == "colours@1"
    assert not loaded.training
    small = torch.randint(0, 256, (2, SIDE, SIDE, 3)).float()
    planes, tokens = torch.randn(2, SIDE, SIDE, 2), torch.randn(2, CELLS**2, 9)
    with torch.inference_mode():
        before, after = (one(small, planes, tokens) for one in (head, loaded))
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, atol=0.02, rtol=0.02)  # weights are saved in half precision


class TestBatches:
    def test_many_boxes_are_each_as_alone(self):
        segmenter = LearnedSegmenter(ColourTokens(), loud(fresh()))
        for method in (segmenter.segment, segmenter.refine_boxes):
            together = method(IMAGE, BOXES)
            assert len(together) == len(BOXES)
            for i in (0, MAX_BATCH - 1, MAX_BATCH, len(BOXES) - 1):
                (alone,) = method(IMAGE, BOXES[i : i + 1])
                assert str(alone) == str(together[i])

    def test_chances_are_those_of_the_network_on_each_window(self):
        head = loud(fresh())
        segmenter = LearnedSegmenter(ColourTokens(), head)
        corners = [tuple(box) for box in BOXES.tolist()]
        windows = [window(box, IMAGE.shape) for box in corners]
        tokens = np.random.default_rng(0).normal(size=(len(BOXES), CELLS**2, 9)).astype(np.float32)
        chances = segmenter.chances(IMAGE, corners, windows, tokens)
        for i in (0, MAX_BATCH, len(BOXES) - 1):
            parts = (
                window_image(IMAGE, windows[i], SIDE),
                box_planes(corners[i], windows[i], SIDE),
                tokens[i],
            )
            with torch.inference_mode():
                expected = head(*(torch.as_tensor(part[None]).float() for part in parts)).sigmoid()
            np.testing.assert_allclose(chances[i], expected[0], atol=1e-5)
        assert chances.std() > 0.01

    def test_no_batch_is_larger_than_its_bound(self, monkeypatch):
        segmenter, sizes = LearnedSegmenter(ColourTokens(), fresh()), []
        forward = segmenter.head.forward
        monkeypatch.setattr(segmenter.head, "forward", lambda *x: sizes.append(len(x[0])) or forward(*x))
        segmenter.refine_boxes(IMAGE, BOXES)
        assert sizes == [MAX_BATCH, MAX_BATCH, 5]


class TestTokens:
    def test_the_detectors_grid_is_read_and_not_computed_again(self):
        source = Counting()
        tiled_grid(source, IMAGE, AREA)
        before = source.calls
        LearnedSegmenter(source, fresh()).refine_boxes(IMAGE, BOXES)
        assert source.calls == before > 0
        tiled_grid(source, IMAGE[::-1].copy(), AREA)
        assert source.calls == 2 * before  # another image's is not taken for it

    def test_no_more_grids_are_remembered_than_the_bound(self):
        source = Counting()
        images = [np.full((60, 60, 3), i, np.uint8) for i in range(MAX_GRIDS + 1)]
        each = [tiled_grid(source, image, 60 * 60) for image in images]
        before = source.calls
        np.testing.assert_array_equal(tiled_grid(source, images[-1], 60 * 60), each[-1])
        assert source.calls == before
        tiled_grid(source, images[0], 60 * 60)
        assert source.calls > before

    def test_a_window_of_the_grid_has_the_tokens_that_lie_in_it(self):
        """A grid whose tokens are their own places, in pixels: what is sampled are the middles of cells."""
        y, x = np.mgrid[:20, :30].astype(np.float32)
        grid = np.stack([(x + 0.5) * 10, (y + 0.5) * 5], 2)  # of an image of 300 x 100 pixels
        tokens = sampled_tokens(grid, (100, 300, 3), [(40, 20, 60), (100, 10, 24)], 4)
        assert tokens.shape == (2, 16, 2)
        for seen, (left, top, side) in zip(
            tokens.reshape(2, 4, 4, 2), [(40, 20, 60), (100, 10, 24)], strict=True
        ):
            middles = (np.arange(4) + 0.5) * side / 4
            np.testing.assert_allclose(seen[..., 0], np.tile(left + middles, (4, 1)), atol=1e-3)
            np.testing.assert_allclose(seen[..., 1], np.tile((top + middles)[:, None], (1, 4)), atol=1e-3)

    def test_outside_the_image_the_edge_is_repeated(self):
        grid = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
        tokens = sampled_tokens(grid, (10, 40, 3), [(-20, -20, 20)], 2)
        np.testing.assert_allclose(tokens, 0)

    def test_few_tokens_are_spread_over_the_window(self):
        few = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
        many = resized_tokens(few, 4).reshape(4, 4)
        assert many[0, 0] == 0
        assert many[-1, -1] == 3
        assert (np.diff(many, axis=1) >= 0).all()
        assert resized_tokens(few, 2) is few

    def test_windows_alone_are_one_image_each(self):
        windows = [window(tuple(box), IMAGE.shape) for box in BOXES.tolist()]
        tokens = window_tokens(ColourTokens(), [IMAGE] * len(windows), windows, 3)
        assert tokens.shape == (len(BOXES), 9, 9)
        seen = window_image(IMAGE, windows[-1], 3 * 14)[:14, :14].mean((0, 1)) / 255
        np.testing.assert_allclose(tokens[-1, 0, :3], seen, atol=0.01)


def test_it_learns_to_cut_out_discs_and_goes_on_after_an_interruption(tmp_path):
    bench, plan = folder_of(tmp_path, 20), Plan(epochs=14, batch=8, holdout=10)
    scenes = examples([bench], ColourTokens(), tmp_path / "cache")
    assert len(scenes) == 20

    class KilledError(Exception):
        pass

    def killed(line):
        if line["epoch"] == 2:
            raise KilledError

    whole = train(fresh(), scenes, plan, state=tmp_path / "other", log=tmp_path / "other.jsonl")
    with pytest.raises(KilledError):
        train(fresh(), scenes, plan, **files(tmp_path), report=killed)
    resumed = train(fresh(), scenes, plan, **files(tmp_path))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [*range(1, 15)]
    assert lines[-1]["iou"] > 0.9 > 0.7 > measure(fresh(), Views(scenes[9:10]))

    whole.save(tmp_path / "head.safetensors", "colours@1")
    segmenter = LearnedSegmenter(ColourTokens(), MaskHead.load(tmp_path / "head.safetensors"))
    scene = bench.gallery[9]
    image = np.asarray(Image.open(scene.file))
    for mask, true, box in zip(
        segmenter.segment(image, scene.boxes), scene.masks(), scene.boxes, strict=True
    ):
        x0, y0, x1, y1 = box.astype(int)
        part = true[y0:y1, x0:x1]
        assert (mask & part).sum() / (mask | part).sum() > 0.9


def test_a_head_is_run_without_normalisations_and_says_the_same():
    head = loud(fresh())
    for layer in head.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    fused = head.fused()
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    small = torch.randint(0, 256, (2, SIDE, SIDE, 3)).float()
    planes, tokens = torch.randn(2, SIDE, SIDE, 2), torch.randn(2, CELLS**2, 9)
    with torch.inference_mode():
        torch.testing.assert_close(
            fused(small, planes, tokens), head(small, planes, tokens), atol=1e-4, rtol=1e-4
        )


def test_what_is_no_head_is_refused(tmp_path):
    weights = {name: x.numpy() for name, x in fresh().state_dict().items() if x.ndim}
    artifacts.save(tmp_path / "old.safetensors", weights, fitted_for="colours@1")
    with pytest.raises(ConfigError, match="another version; make one anew with `soir train segmenter`"):
        MaskHead.load(tmp_path / "old.safetensors")
    del weights["bottom.0.0.weight"]
    artifacts.save(tmp_path / "part.safetensors", weights, fitted_for="colours@1", version="2")
    with pytest.raises(ConfigError, match="not the file of a segmenter"):
        MaskHead.load(tmp_path / "part.safetensors")


def test_training_goes_on_from_another_head(tmp_path):
    loud(fresh()).save(tmp_path / "head.safetensors", "colours@1")
    new, name = untrained(None, "")
    assert (new(9).tokens.weight.shape[1], name) == (9, "")
    start, digest = untrained(tmp_path / "head.safetensors", "colours@1")
    head = start(9)
    assert len(digest) == 8
    assert all(parameter.requires_grad for parameter in head.parameters())
    expected = MaskHead.load(tmp_path / "head.safetensors").state_dict()
    for key, value in head.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def test_mended_masks_are_other_data(tmp_path):
    folder = folder_of(tmp_path, 2).root
    before, looks = contents([load(folder)]), place_of(tmp_path, load(folder), labels=False)
    mask = load(folder).gallery[0].mask
    with Image.open(mask) as image:
        mended = np.array(image)
    mended[60, 40] = 0
    Image.fromarray(mended).save(mask)
    assert contents([load(folder)]) != before
    assert (
        place_of(tmp_path, load(folder), labels=False) == looks
    )  # what the detector computes needs no masks
    outlined = replace(load(folder).gallery[0], mask=None, outlines=[Outline([[0, 0, 9, 0, 9, 9]], 120, 160)])
    moved = replace(outlined, outlines=[Outline([[0, 0, 8, 0, 9, 9]], 120, 160)])
    assert contents([Bench(tmp_path, [outlined], [])]) != contents([Bench(tmp_path, [moved], [])])


def test_what_else_may_be_in_an_image_is_other_data_and_the_same_tokens(tmp_path):
    bench = load(folder_of(tmp_path, 2).root)
    partly = replace(bench, gallery=[replace(entry, exhaustive=False) for entry in bench.gallery])
    assert contents([bench]) != contents([partly])
    assert place_of(tmp_path, bench, labels=False) == place_of(tmp_path, partly, labels=False)


def test_images_count_alike_however_many_objects_they_have(tmp_path):
    for i, count in enumerate([2, 0, 40]):
        np.save(tmp_path / f"{i}.npy", np.zeros(count, [("small", np.uint8)]))
    views = Views([tmp_path / f"{i}.npy" for i in range(3)])
    assert len(views.files) == 2
    rows = views.drawn(np.repeat([0, 1], 500), np.random.default_rng(0))
    assert set(rows[:500]) == {0, 1}
    assert set(rows[500:]) == set(range(2, 42))


def test_objects_without_a_mask_teach_nothing_and_many_are_thinned_out(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "0.png")
    squares = [[x, y, x + 9, y, x + 9, y + 9, x, y + 9] for y in (10, 50) for x in range(10, 170, 20)]
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [*square[:2], 9, 9], "segmentation": [square]}
        for square in squares
    ]
    annotations += [{"image_id": 1, "category_id": 1, "bbox": [200, 100, 50, 50]}] * 3

    def taught(some):
        told = {"images": [{"id": 1, "file_name": "0.png", "width": 400, "height": 300}], "annotations": some}
        (tmp_path / "coco.json").write_text(json.dumps(told))
        (file,) = examples([load_any(tmp_path, "coco")], ColourTokens(), tmp_path / "cache")
        return np.load(file)

    assert len(squares) > MAX_OBJECTS
    assert len(taught(annotations)) == 2 * MAX_OBJECTS + 4
    assert len(taught(annotations[-3:] + annotations[:1])) == 2 + 1
    small = taught(annotations[:1])["mask"][0] / 255
    box = taught(annotations[:1])["planes"][0, ..., 0] > 0.5
    assert 0.5 < (small > 0.5).sum() / box.sum() < 2
    with pytest.raises(DatasetError, match="no scene with masks"):
        taught(annotations[-3:])


def test_a_folder_without_masks_teaches_nothing(tmp_path):
    Image.new("RGB", (60, 60)).save(tmp_path / "0.png")
    told = {
        "gallery": [{"file": "0.png", "objects": [{"instance": "a", "box": [0, 0, 9, 9]}]}],
        "queries": [],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(told))
    with pytest.raises(DatasetError, match="no scene with masks"):
        examples([load(tmp_path)], ColourTokens(), tmp_path / "cache")


def test_a_cache_is_of_the_pictures_and_labels_as_they_are(tmp_path):
    bench = folder_of(tmp_path, 2)
    before = examples([bench], ColourTokens(), tmp_path / "cache")
    assert examples([bench], ColourTokens(), tmp_path / "cache") == before
    bench.gallery[0].objects[0] = replace(bench.gallery[0].objects[0], box=(20, 40, 60, 80))
    assert not set(examples([bench], ColourTokens(), tmp_path / "cache")) & set(before)


class TestWhichSegmenter:
    def test_the_shipped_head_is_for_the_shipped_encoder(self, shipped_encoder):
        segmenter = made(shipped_encoder)
        assert isinstance(segmenter, LearnedSegmenter)
        assert segmenter.head.fitted_for == trunk(shipped_encoder.fingerprint)
        assert not any(parameter.requires_grad for parameter in segmenter.head.parameters())

    def test_grabcut_stands_in_for_other_encoders(self):
        assert isinstance(made(ColourTokens()), GrabCutSegmenter)
        assert isinstance(made(kind="box"), BoxSegmenter)

    def test_ones_own_file_for_another_encoder_is_refused(self, tmp_path):
        fresh().save(tmp_path / "mine.safetensors", "another@2")
        with pytest.raises(ConfigError, match="soir train segmenter"):
            made(ColourTokens(), head=str(tmp_path / "mine.safetensors"))
        with pytest.raises(ConfigError, match="no segmenter there"):
            made(ColourTokens(), head=str(tmp_path / "none"))
        with pytest.raises(ConfigError, match="not the file of a segmenter"):
            made(ColourTokens(), head=str(DATA / "detector.safetensors"))


class TestWindow:
    def test_a_mask_comes_back_where_it_was(self):
        """Through the window and back: for boxes inside, at an edge, larger than the image."""
        for box in [(30, 40, 70, 90), (0, 0, 30, 20), (-5, 10, 160, 120), (150, 100, 160, 120)]:
            image = np.zeros((120, 160, 3), np.uint8)
            x0, y0, x1, y1 = (max(box[0], 0), max(box[1], 0), box[2], box[3])
            image[y0:y1, x0 : (x0 + x1) // 2] = 255  # the left half of the box
            at = window(box, image.shape)
            seen = window_image(image, at, SIDE)[..., 0].astype(np.float32) / 255
            mask = in_box(likely(seen, at[2]), box, at, image.shape)
            true = image[y0:y1, x0:x1, 0] > 0
            assert (mask == true).mean() > 0.9

    def test_planes_tell_of_the_box(self):
        planes = box_planes((20, 20, 60, 60), (0, 0, 80), SIDE)
        assert planes.shape == (SIDE, SIDE, 2)
        np.testing.assert_allclose(planes[..., 0].sum(), (SIDE / 2) ** 2, rtol=0.01)
        assert planes[SIDE // 2, SIDE // 2, 1] < -0.9
        assert planes[0, 0, 1] > 0
