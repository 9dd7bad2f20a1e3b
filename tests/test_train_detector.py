"""The learned detector: trained in torch, run in NumPy; training survives interruption, and teaches."""

import numpy as np
import pytest
import torch
from test_detector import ColourTokens, scene

from soir_qdrant.config import DetectorSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.train import head as torch_head
from soir_qdrant.train.detector import Example, Plan, assign, loss, measure, train
from soir_qdrant.vision.detector import make_detector
from soir_qdrant.vision.head import Head, LearnedDetector, inputs


class Source(ColourTokens):
    fingerprint = "colours@1/224px"


def scenes(folder, count):
    """Discs on a calm ground, as they are kept for training."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        corners = np.array([[20, 30], [130, 40], [220, 130], [60, 150]]) + rng.integers(0, 25, (4, 2))
        boxes = np.concatenate([corners, corners + rng.integers(35, 60, (4, 2))], 1)
        image, boxes = scene(boxes=boxes.tolist())
        grid, small = inputs(ColourTokens(), image)
        np.savez(folder / f"{i}.npz", grid=grid.astype(np.float16), small=small, size=(320, 240))
        found.append(Example(folder / f"{i}.npz", (320, 240), boxes))
    return found


def fresh():
    torch.manual_seed(0)
    return torch_head.Head(9, width=16, depth=2)


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
    grid = rng.normal(size=(7, 9, 9)).astype(np.float32)
    small = rng.integers(0, 256, (56, 72, 3), np.uint8)
    with torch.inference_mode():
        logits, boxes = made(*torch_head.batched([(grid, small)]))
    scores, named = Head.load(tmp_path / "head.safetensors")(grid, small)
    np.testing.assert_allclose(scores, logits[0].sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(named, boxes[0].numpy(), atol=1e-3)


def test_pictures_are_looked_at_larger_than_was_learnt(tmp_path):
    """Which finds more: docs/detector.md."""

    class Asked(Source):
        def tokens(self, images, *, skip=0):
            self.area = images.size
            return super().tokens(images, skip=skip)

    made, file = fresh(), tmp_path / "head.safetensors"
    made.save(file, "colours@1")
    image, source = scene(height=768, width=1024)[0], Asked()
    inputs(source, image)
    learnt = source.area
    LearnedDetector(source, Head.load(file)).detect([image])
    assert 1.2 < source.area / learnt < 1.4


def test_an_interrupted_training_goes_on_to_the_same_result(tmp_path):
    held, plan = scenes(tmp_path, 10), Plan(epochs=3, held=5)
    whole = train(fresh(), held, plan, state=tmp_path / "whole", log=tmp_path / "whole.jsonl")

    def interrupted(line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fresh(), held, plan, **files(tmp_path), told=interrupted)
    again = train(fresh(), held, plan, **files(tmp_path))
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "log.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    with pytest.raises(ConfigError, match="of another plan"):
        train(fresh(), held, Plan(epochs=9), **files(tmp_path))
    with pytest.raises(ConfigError, match="of other pictures or labels"):
        train(fresh(), held, plan, **files(tmp_path), data="others")


def test_it_learns_to_find_and_is_used(tmp_path):
    held = scenes(tmp_path, 40)
    head = fresh()
    before = measure(head, held[-4:])
    train(head, held, Plan(epochs=15, lr=1e-2), **files(tmp_path))
    after = measure(head, held[9::10])
    assert after["precision"] > 0.8 > before["precision"]
    head.save(tmp_path / "head.safetensors", "colours@1")
    chosen = DetectorSettings(head=str(tmp_path / "head.safetensors"))
    detector = make_detector(chosen, Source())
    assert isinstance(detector, LearnedDetector)
    image, _ = scene()
    assert len(detector.detect([image])[0].boxes)
    other = Source()
    other.fingerprint = "another@2/224px"
    with pytest.raises(ConfigError, match="was trained for 'colours@1', and the encoder is 'another@2'"):
        make_detector(chosen, other)


def test_small_objects_count_like_large_ones():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [6.0, 0.0, 16.0, 10.0]])
    owner = assign(boxes, 12, 18)
    assert 1 < (owner == 0).sum() < (owner == 1).sum()

    def missed(which):
        """The loss where one object's cells name a box of half its sides."""
        named = boxes[owner.clamp(min=0)]
        middle = (named[..., :2] + named[..., 2:]).repeat(1, 1, 2) / 2
        smaller = torch.where((owner == which)[..., None], (named + middle) / 2, named)
        return loss(torch.zeros(12, 18), smaller, boxes)

    torch.testing.assert_close(missed(0), missed(1))
    assert missed(0) > missed(2)


def test_a_cell_is_to_name_the_smallest_box_whose_middle_is_near():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [3.0, 3.0, 5.0, 5.0], [9.0, 9.0, 9.4, 9.4]])
    owner = assign(boxes, 10, 12)
    assert owner[3, 3] == owner[4, 4] == 1
    assert owner[2, 2] == 0
    assert owner[9, 9] == 2  # smaller than a cell
    assert owner[0, 11] == owner[7, 7] == -1
