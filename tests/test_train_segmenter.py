"""The learned segmenter: trained in torch, run in NumPy; training survives interruption, and teaches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_detector import ColourTokens, GpuTokens

from soir_qdrant import parts
from soir_qdrant.config import SegmenterSettings
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.evaluate.bench import load
from soir_qdrant.train import mask_head as torch_head
from soir_qdrant.train.segmenter import Plan, Views, examples, measure, train
from soir_qdrant.vision.fitted import DATA
from soir_qdrant.vision.mask_head import (
    CELL,
    SIDE,
    LearnedSegmenter,
    MaskHead,
    box_planes,
    enlarged,
    in_box,
    picture,
    window,
)
from soir_qdrant.vision.segmenter import BoxSegmenter, GrabCutSegmenter, make_segmenter


class Source(ColourTokens):
    fingerprint = "colours@1/224px"


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
    return torch_head.MaskHead(9, widths=(8, 8, 16, 16))


def files(folder):
    return {"state": folder / "state", "log": folder / "log.jsonl"}


def test_numpy_says_what_torch_says(tmp_path):
    made = fresh()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save(tmp_path / "head.safetensors", "colours@1")
    made.half().float()
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    planes = box_planes((20, 10, 70, 50), (10, 0, 80), SIDE)
    tokens = rng.normal(size=((SIDE // CELL) ** 2, 9)).astype(np.float32)
    with torch.inference_mode():
        logits = made(*(torch.as_tensor(part[None]).float() for part in (small, planes, tokens)))
    said = MaskHead.load(tmp_path / "head.safetensors")(small, planes, tokens)
    np.testing.assert_allclose(said, logits[0].sigmoid().numpy(), atol=1e-5)


def test_it_learns_to_cut_out_discs_and_goes_on_after_an_interruption(tmp_path):
    bench, plan = folder_of(tmp_path, 20), Plan(epochs=6, batch=8, held=10)
    scenes = examples([bench], ColourTokens(), tmp_path / "cache")
    assert len(scenes) == 20

    class KilledError(Exception):
        pass

    def killed(line):
        if line["epoch"] == 2:
            raise KilledError

    whole = train(fresh(), scenes, plan, state=tmp_path / "other", log=tmp_path / "other.jsonl")
    with pytest.raises(KilledError):
        train(fresh(), scenes, plan, **files(tmp_path), told=killed)
    resumed = train(fresh(), scenes, plan, **files(tmp_path))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
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


def test_a_head_of_another_resolution_is_run_at_its_own(tmp_path):
    """Files from before resolution was told are of 64 pixels; the encoder may be on a GPU."""
    made = fresh()
    held = {name: x.numpy() for name, x in made.state_dict().items()}
    parts.save(tmp_path / "old.safetensors", held, fitted_for="colours@1")
    head = MaskHead.load(tmp_path / "old.safetensors")
    assert (head.side, head.cells) == (64, 8)
    for source in (ColourTokens(), GpuTokens()):
        (mask,) = LearnedSegmenter(source, head).segment(
            np.zeros((120, 160, 3), np.uint8), np.array([[20, 20, 60, 50]])
        )
        assert mask.shape == (30, 40)


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
    def test_the_shipped_head_is_for_the_shipped_encoder(self):
        from soir_qdrant.vision.encoder import ViTEncoder

        encoder = ViTEncoder()
        found = make_segmenter(SegmenterSettings(), encoder, encoder.fingerprint)
        assert isinstance(found, LearnedSegmenter)

    def test_grabcut_stands_in_for_other_encoders(self):
        assert isinstance(make_segmenter(SegmenterSettings(), Source(), Source.fingerprint), GrabCutSegmenter)
        assert isinstance(make_segmenter(SegmenterSettings(), object(), "served"), GrabCutSegmenter)
        assert isinstance(make_segmenter(SegmenterSettings(kind="box")), BoxSegmenter)

    def test_ones_own_file_for_another_encoder_is_refused(self, tmp_path):
        fresh().save(tmp_path / "mine.safetensors", "another@2")
        settings = SegmenterSettings(head=str(tmp_path / "mine.safetensors"))
        with pytest.raises(ConfigError, match="soir train segmenter"):
            make_segmenter(settings, Source(), Source.fingerprint)
        with pytest.raises(ConfigError, match="no segmenter there"):
            make_segmenter(SegmenterSettings(head=str(tmp_path / "none")), Source(), Source.fingerprint)
        with pytest.raises(ConfigError, match="not the file of a segmenter"):
            make_segmenter(SegmenterSettings(head=str(DATA / "detector.safetensors")), Source(), "any")


class TestWindow:
    def test_a_mask_comes_back_where_it_was(self):
        """Through the window and back: for boxes inside, at an edge, larger than the image."""
        for box in [(30, 40, 70, 90), (0, 0, 30, 20), (-5, 10, 160, 120), (150, 100, 160, 120)]:
            image = np.zeros((120, 160, 3), np.uint8)
            x0, y0, x1, y1 = (max(box[0], 0), max(box[1], 0), box[2], box[3])
            image[y0:y1, x0 : (x0 + x1) // 2] = 255  # the left half of the box
            at = window(box, image.shape)
            seen = picture(image, at, SIDE)[..., 0].astype(np.float32) / 255
            mask = in_box(enlarged(seen, at[2]), box, at, image.shape)
            true = image[y0:y1, x0:x1, 0] > 0
            assert (mask == true).mean() > 0.9

    def test_planes_tell_of_the_box(self):
        planes = box_planes((20, 20, 60, 60), (0, 0, 80), SIDE)
        assert planes.shape == (SIDE, SIDE, 2)
        np.testing.assert_allclose(planes[..., 0].sum(), (SIDE / 2) ** 2, rtol=0.01)
        assert planes[SIDE // 2, SIDE // 2, 1] < -0.9
        assert planes[0, 0, 1] > 0
