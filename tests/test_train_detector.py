"""The trained detector: what a head is taught, that a killed training goes on, and that it finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_detector import ColourTokens, made, scene

from soir_qdrant.errors import ConfigError
from soir_qdrant.lab.evaluate.bench import BenchObject, GalleryImage
from soir_qdrant.lab.train.detector import Plan, _owners, assign, average, loss, measure, train, untrained
from soir_qdrant.lab.train.looks import Example, _example
from soir_qdrant.models import artifacts
from soir_qdrant.models.detectors.token_head import LearnedDetector, batched, inputs
from soir_qdrant.models.heads.boxes import STRIDES, GroupNorm, Head, TrainedHead, flat


def scenes(folder, count):
    """Discs on a calm ground, as they are kept for training."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        corners = np.array([[20, 30], [130, 40], [220, 130], [60, 150]]) + rng.integers(0, 25, (4, 2))
        boxes = np.concatenate([corners, corners + rng.integers(35, 60, (4, 2))], 1)
        image, boxes = scene(boxes=boxes.tolist())
        grid, small = inputs(ColourTokens(), image, 320 * 240)
        np.savez(folder / f"{i}.npz", grid=grid.astype(np.float16), small=small, size=(320, 240))
        found.append(Example(folder / f"{i}.npz", (320, 240), boxes))
    return found


def fresh():
    torch.manual_seed(0)
    return Head(9, (16, 16, 16))


def files(folder):
    return {"state": folder / "state", "log": folder / "log.jsonl"}


def test_a_saved_head_says_the_same(tmp_path):
    made = fresh()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save(tmp_path / "head.safetensors", "colours@1")
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(7, 9, 9)).astype(np.float32)
    small = rng.integers(0, 256, (56, 72, 3), np.uint8)
    with torch.inference_mode():
        logits, boxes = flat(made.half().float()(*batched([(grid, small)])))
        loaded = TrainedHead.load(tmp_path / "head.safetensors").network
        again, named = flat(loaded(*batched([(grid, small)])))
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(named, boxes)


def test_a_head_of_version_1_is_refused_with_what_to_do(tmp_path):
    artifacts.save(tmp_path / "old", {"pixels.weight": np.zeros(1)}, fitted_for="colours@1", depth="4")
    with pytest.raises(ConfigError, match="make one anew with `soir train detector`"):
        TrainedHead.load(tmp_path / "old")


def test_every_level_names_boxes_in_the_same_tokens():
    """An untrained head boxes about four cells around each, whatever the level."""
    levels = fresh()(*batched([(np.zeros((9, 14, 9), np.float32), np.zeros((72, 112, 3), np.uint8))]))
    for (_, boxes), stride, shape in zip(levels, STRIDES, ((9, 14), (5, 7), (3, 4)), strict=True):
        assert boxes.shape == (1, *shape, 4)
        middles = (boxes[0, ..., :2] + boxes[0, ..., 2:]) / 2
        torch.testing.assert_close(middles[1, 2], torch.tensor([2.5, 1.5]) * stride, atol=1e-4, rtol=0)
        assert abs(float(boxes[0, 1, 2, 2] - boxes[0, 1, 2, 0]) - 4 * stride) < 0.1 * stride


def test_an_object_is_boxed_on_the_levels_of_its_size():
    head, boxes = fresh(), torch.tensor([[0.0, 0.0, 3.0, 3.0], [0.0, 0.0, 14.0, 14.0]])
    levels = head(*batched([(np.zeros((16, 16, 9), np.float32), np.zeros((128, 128, 3), np.uint8))]))
    near = [
        _owners(boxes, logit.shape[1:], stride) for (logit, _), stride in zip(levels, STRIDES, strict=True)
    ]
    assert [set(owner[owner >= 0].tolist()) for owner in near] == [{0}, {1}, {1}]


def test_what_is_unknown_is_taught_nothing():
    """Neither in a box of unknown content, nor, strongly, where not all is labelled."""
    logits = torch.full((1, 8, 8), 3.0, requires_grad=True)
    levels = [(logits, torch.zeros(1, 8, 8, 4))]
    none = torch.zeros(0, 4)

    def taught(unknown=none, exhaustive=True):
        (gradient,) = torch.autograd.grad(loss(levels, none, unknown, exhaustive=exhaustive), logits)
        return gradient[0]

    masked = taught(unknown=torch.tensor([[0.0, 0.0, 4.0, 8.0]]))
    assert (masked[:, :4] == 0).all()
    assert (masked[:, 4:] > 0).all()
    assert (taught(exhaustive=False) < 0.2 * taught()).all()
    assert (taught(exhaustive=False) > 0).all()


def test_a_look_keeps_what_it_shows_and_forgets_what_it_cuts():
    boxes = [(10, 10, 30, 30), (45, 10, 75, 30), (70, 60, 90, 80), (12, 50, 20, 60)]
    kinds = ["cup", "cup", "cup", "person"]
    objects = [BenchObject(None, box, kind) for box, kind in zip(boxes, kinds, strict=True)]
    entry = GalleryImage(Path("a.jpg"), None, objects, exhaustive=False)
    seen = _example(Path("a.npz"), entry, (0, 0, 50, 100), ["person"])
    assert seen.boxes.tolist() == [[10, 10, 30, 30]]
    assert seen.unknown.tolist() == [[45, 10, 50, 30], [12, 50, 20, 60]]
    assert seen.size == (50, 100)
    assert not seen.exhaustive


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_result(tmp_path):
    examples, plan = scenes(tmp_path, 10), Plan(epochs=3, holdout=5)
    whole = train(fresh(), examples, plan, state=tmp_path / "whole", log=tmp_path / "whole.jsonl")

    def interrupted(line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fresh(), examples, plan, **files(tmp_path), report=interrupted)
    again = train(fresh(), examples, plan, **files(tmp_path))
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "log.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    with pytest.raises(ConfigError, match="of another plan"):
        train(fresh(), examples, Plan(epochs=9), **files(tmp_path))
    with pytest.raises(ConfigError, match="of other pictures or labels"):
        train(fresh(), examples, plan, **files(tmp_path), data="others")


@pytest.mark.slow
def test_it_learns_to_find_and_is_used(tmp_path):
    held = scenes(tmp_path, 40)
    head = fresh()
    before = measure(head, held[-4:])
    train(head, held, Plan(epochs=15, lr=1e-2), **files(tmp_path))
    after = measure(head, held[9::10])
    assert after["precision"] > 0.8 > before["precision"]
    head.save(tmp_path / "head.safetensors", "colours@1")
    head = str(tmp_path / "head.safetensors")
    detector = made(head=head)
    assert isinstance(detector, LearnedDetector)
    image, _ = scene()
    assert len(detector.detect([image])[0].boxes)
    other = ColourTokens()
    other.fingerprint = "another@2/224px"
    with pytest.raises(ConfigError, match="was trained for 'colours@1', and the encoder is 'another@2'"):
        made(other, head=head)


@pytest.mark.slow
def test_training_goes_on_from_a_head_that_is_there(tmp_path):
    held = scenes(tmp_path, 20)
    fresh().save(tmp_path / "untrained.safetensors", "colours@1")
    make, digest = untrained(tmp_path / "untrained.safetensors", "colours@1")
    head = train(make(9), held, Plan(epochs=8, lr=1e-2, start=digest), **files(tmp_path))
    head.save(tmp_path / "trained.safetensors", "colours@1")
    again, other = untrained(tmp_path / "trained.safetensors", "colours@1")
    assert other != digest
    assert measure(again(9), held[9::10])["recall"] == pytest.approx(
        measure(head, held[9::10])["recall"], abs=0.05
    )
    with pytest.raises(ConfigError, match="of another plan"):  # the state is of a training with another start
        train(again(9), held, Plan(epochs=8, lr=1e-2, start=other), **files(tmp_path))


def test_a_head_of_another_encoder_is_refused_before_anything_is_computed(tmp_path):
    fresh().save(tmp_path / "head.safetensors", "colours@1")
    with pytest.raises(ConfigError, match="was trained for 'colours@1', and the encoder is 'other@1'"):
        untrained(tmp_path / "head.safetensors", "other@1")


def test_the_mean_of_two_heads_lies_between_them(tmp_path):
    heads = {}
    for name, value in (("first", 1.0), ("trained", 3.0)):
        head = fresh()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.fill_(value)
        head.save(tmp_path / name, "colours@1")
        heads[name] = tmp_path / name
    average(heads["trained"], heads["first"], 0.25)
    mean = TrainedHead.load(heads["trained"])
    assert mean.fitted_for == "colours@1"
    for parameter in mean.network.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1.5))
    fresh().save(tmp_path / "other", "another@2")
    with pytest.raises(ConfigError, match="different encoders"):
        average(heads["trained"], tmp_path / "other", 0.5)


def test_small_objects_count_like_large_ones():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [6.0, 0.0, 12.5, 6.5]])
    owner = assign(boxes, 12, 18)
    assert 1 < (owner == 0).sum() < (owner == 1).sum()

    def missed(which):
        """The loss where one object's cells name a box of half its sides."""
        named = boxes[owner.clamp(min=0)]
        middle = (named[..., :2] + named[..., 2:]).repeat(1, 1, 2) / 2
        smaller = torch.where((owner == which)[..., None], (named + middle) / 2, named)
        return loss([(torch.zeros(1, 12, 18), smaller[None])], boxes, torch.zeros(0, 4))

    torch.testing.assert_close(missed(0), missed(1))
    assert missed(0) > missed(2)


def test_a_cell_is_to_name_the_smallest_box_whose_middle_is_near():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [3.0, 3.0, 5.0, 5.0], [9.0, 9.0, 9.4, 9.4]])
    owner = assign(boxes, 10, 12)
    assert owner[3, 3] == owner[4, 4] == 1
    assert owner[2, 2] == 0
    assert owner[9, 9] == 2  # smaller than a cell
    assert owner[0, 11] == owner[7, 7] == -1


@pytest.mark.parametrize("side", [24, 48])  # torch's own is slow below 32
def test_a_normalisation_in_half_precision_rounds_its_answer_alone(side):
    layer = GroupNorm(8, 64)
    for weights in layer.parameters():
        torch.nn.init.normal_(weights)
    layer = layer.bfloat16()
    x = torch.randn(2, 64, side, side).bfloat16()
    exact = torch.nn.functional.group_norm(x.float(), 8, layer.weight.float(), layer.bias.float(), layer.eps)
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), exact, atol=0.02, rtol=0.01)
