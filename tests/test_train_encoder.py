"""Stage A: what is trained is what is served afterwards; training survives interruption, and teaches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_encoder
from PIL import Image

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.lab.evaluate.bench import load
from soir_qdrant.lab.evaluate.datasets import load as load_layout
from soir_qdrant.lab.train.encoder import Plan, Things, _Projection, pool, train
from soir_qdrant.lab.train.tail import Tail
from soir_qdrant.lab.train.views import views
from soir_qdrant.models.compatibility import trunk
from soir_qdrant.models.encoders.lora import Adapter
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.weights import resolve
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import generalized_max_pool, normalize
from soir_qdrant.pooling.whitening import Whitening

pytestmark = pytest.mark.slow

THINGS = 40
PLAN = Plan(steps=60, scenes=4, objects=4, near=2, blocks=2, rank=4, lr=3e-2, every=10, holdout=5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Forty things, squares of four colours each, all of them in two scenes of four, seen in other light."""
    place, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    colours = rng.integers(30, 226, (THINGS, 2, 2, 3))
    gallery, queries = [], []
    order = np.concatenate([rng.permutation(THINGS), rng.permutation(THINGS)]).reshape(-1, 4)
    for i, some in enumerate(order):
        image, ids, objects = rng.integers(0, 60, (100, 130, 3)), np.zeros((100, 130), np.uint8), []
        for k, thing in enumerate(some.tolist()):
            x, y, side = 5 + 65 * (k % 2), 5 + 50 * (k // 2), int(rng.integers(24, 40))
            light = rng.uniform(0.8, 1.1)
            pattern = colours[thing].repeat(side // 2, 0).repeat(side // 2, 1)
            side = len(pattern)
            image[y : y + side, x : x + side] = np.clip(pattern * light, 0, 255)
            ids[y : y + side, x : x + side] = k + 1
            objects.append({"instance": f"thing{thing}", "box": [x, y, x + side, y + side]})
        Image.fromarray(image.astype(np.uint8)).save(place / f"{i}.png")
        Image.fromarray(ids).save(place / f"{i}-mask.png")
        gallery.append({"file": f"{i}.png", "mask": f"{i}-mask.png", "objects": objects})
    for thing in range(0, THINGS, 4):
        square = colours[thing].repeat(20, 0).repeat(20, 1).astype(np.uint8)
        Image.fromarray(square).convert("RGBA").save(place / f"q{thing}.png")
        queries.append({"file": f"q{thing}.png", "instance": f"thing{thing}"})
    (place / "annotations.json").write_text(json.dumps({"gallery": gallery, "queries": queries}))
    return load(place)


def pipeline_of(folder, kind="dinov2", **encoder):
    weights = str(tiny_encoder(folder / kind, kind))
    settings = Settings.for_profile().but(
        encoder={"weights": weights, "input_size": 48, "dtype": "float32", **encoder},
        vector={"whitening": None},
    )
    return Pipeline(settings)


def tail_of(pipeline, **changes):
    torch.manual_seed(0)
    held = {"blocks": PLAN.blocks, "rank": PLAN.rank} | changes
    return Tail(pipeline.encoder, pipeline.settings.vector.features, **held)


def plain(dim):
    return Whitening(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32), np.ones(dim, np.float32))


def files(folder, name="run"):
    return {"state": folder / f"{name}.state", "log": folder / f"{name}.jsonl"}


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_tail_says_what_the_encoder_says_before_and_after_its_additions(tmp_path, bench, kind, blocks):
    pipeline = pipeline_of(tmp_path, kind)
    tail = tail_of(pipeline, blocks=blocks)
    seen = views([bench], pipeline, blocks, tmp_path / "cache")[0]
    entry = bench.gallery[0]
    image = np.asarray(Image.open(entry.file))
    from soir_qdrant.lab.evaluate.collect import labelled

    crops = pipeline.crops([image], [labelled(entry)])
    rows = slice(0, len(entry.objects))  # a scene's true masks come first
    with torch.no_grad():
        said = tail.of(seen.take(range(rows.stop))).numpy()
    np.testing.assert_allclose(said, pipeline.features(pipeline.encode(crops)), atol=2e-3)  # bfloat16

    with torch.no_grad():
        for up in tail.up.values():
            up.normal_(std=0.2)
    weights = resolve(pipeline.settings.encoder.weights)
    tail.adapter(weights.sha256).save(tmp_path / "mine.safetensors")
    tuned = ViTEncoder(
        weights.path, input_size=48, dtype="float32", adapter=str(tmp_path / "mine.safetensors")
    )
    with torch.no_grad():
        after = tail.of(seen.take(range(rows.stop))).numpy()
    assert np.abs(after - said).max() > 0.05
    by_tuned = Pipeline(pipeline.settings, encoder=tuned)
    np.testing.assert_allclose(after, by_tuned.features(by_tuned.encode(crops)), atol=5e-3)
    assert tuned.fingerprint != pipeline.encoder.fingerprint


def test_views_are_projected_as_objects_are_each_part_to_its_length():
    rng = np.random.default_rng(0)
    mean, matrix = rng.normal(size=7).astype(np.float32), rng.normal(size=(7, 5)).astype(np.float32)
    rows = rng.normal(size=(9, 7)).astype(np.float32)
    for lengths in (None, np.array([1, 0.5, 1, 1, 0.5], np.float32)):
        whitening = Whitening(mean, matrix, np.ones(5, np.float32), "", lengths)
        projected = _Projection(whitening, torch.device("cpu"))(torch.from_numpy(rows))
        np.testing.assert_allclose(projected.numpy(), whitening(rows), atol=1e-5)


def test_an_interrupted_training_goes_on_to_the_same_result_and_teaches(tmp_path, bench):
    pipeline = pipeline_of(tmp_path)
    data = views([bench], pipeline, PLAN.blocks, tmp_path / "cache")
    assert len(data[0]) == 2 * 2 * THINGS + 10
    projection = plain(7 * 24)  # six features, of which the texture is as long as two

    class KilledError(Exception):
        pass

    def killed(line):
        if line["step"] == 20:
            raise KilledError

    whole = train(tail_of(pipeline), data, projection, PLAN, **files(tmp_path, "whole"))
    with pytest.raises(KilledError):
        train(tail_of(pipeline), data, projection, PLAN, **files(tmp_path), report=killed)
    again = views([bench], pipeline, PLAN.blocks, tmp_path / "cache")
    resumed = train(tail_of(pipeline), again, projection, PLAN, **files(tmp_path))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30, 40, 50, 60]
    chance = np.log(PLAN.scenes * PLAN.objects)
    assert lines[-1]["object"] < 0.9 * chance < lines[1]["object"]
    assert lines[-1]["scene"] < lines[1]["scene"]
    with pytest.raises(ConfigError, match="another plan"):
        train(tail_of(pipeline, rank=2), data, projection, replace(PLAN, rank=2), **files(tmp_path))
    with pytest.raises(DatasetError, match="a batch needs 64"):
        train(tail_of(pipeline), data, projection, Plan(), **files(tmp_path, "many"))


def test_pooling_is_the_ingestors():
    rows = normalize(np.random.default_rng(0).normal(size=(3, 7, 16)))
    pooled = pool(torch.from_numpy(rows), 0.3).numpy()
    for mine, theirs in zip(pooled, rows, strict=True):
        np.testing.assert_allclose(mine, generalized_max_pool(theirs, 0.3), atol=1e-5)


def test_a_batch_asks_for_each_thing_from_another_place(tmp_path, bench):
    pipeline = pipeline_of(tmp_path)
    seen = views([bench], pipeline, 1, tmp_path / "cache")
    things = Things(seen)
    things.look(lambda rows: np.eye(len(rows), dtype=np.float32))
    stored, asked = things.batch(np.arange(THINGS), np.random.default_rng(0), PLAN)
    names, scenes = seen[0].things, seen[0].scenes
    assert len(set(names[stored])) == PLAN.scenes * PLAN.objects
    assert (names[stored] == names[asked]).all()
    assert (scenes[stored] != scenes[asked]).all()
    assert not seen[0].query[stored].any()


class TestAdapter:
    def test_one_after_the_other_is_both(self, tmp_path):
        weights = resolve(str(tiny_encoder(tmp_path / "tiny")))
        torch.manual_seed(1)
        first, second = (
            Adapter({"-1.q": (torch.randn(2, 24), torch.randn(24, 2))}, weights.sha256) for _ in range(2)
        )
        first.then(second).save(tmp_path / "both.safetensors")
        plain, tuned = (
            ViTEncoder(weights.path, input_size=48, adapter=adapter).last_block.weights["q.weight"]
            for adapter in (None, str(tmp_path / "both.safetensors"))
        )
        added = sum(up @ down for a in (first, second) for down, up in a.factors.values())
        torch.testing.assert_close(tuned, plain + added, atol=2e-2, rtol=1e-2)  # saved in half precision

    def test_detector_and_segmenter_keep_their_heads_where_their_tokens_are_untouched(self):
        assert trunk("tiny@1234+0123abcd.3/224px") == trunk("tiny@1234/48px") == "tiny@1234"
        assert trunk("tiny@1234+0123abcd.4/224px") == "tiny@1234+0123abcd.4"
        assert trunk("my+tiny@1234/224px") == "my+tiny@1234"

    def test_of_other_weights_is_refused(self, tmp_path):
        weights = str(tiny_encoder(tmp_path / "tiny"))
        Adapter({}, "0" * 64).save(tmp_path / "mine.safetensors")
        with pytest.raises(ConfigError, match="soir train encoder"):
            ViTEncoder(weights, input_size=48, adapter=str(tmp_path / "mine.safetensors"))

    def test_of_other_layers_is_refused(self, tmp_path):
        weights = resolve(str(tiny_encoder(tmp_path / "tiny")))
        Adapter({"-1.q": (torch.zeros(2, 7), torch.zeros(24, 2))}, weights.sha256).save(
            tmp_path / "a.safetensors"
        )
        with pytest.raises(ConfigError, match=r"-1\.q does not fit"):
            ViTEncoder(weights.path, input_size=48, adapter=str(tmp_path / "a.safetensors"))

    def test_damaged_file(self, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(b"no")
        with pytest.raises(ConfigError, match="no adapter"):
            Adapter.load(tmp_path / "a.safetensors")


class TestCoco:
    def write(self, place, annotations):
        Image.new("RGB", (40, 30)).save(place / "a.jpg")
        told = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": annotations}
        (place / "instances.json").write_text(json.dumps(told))
        return place

    def test_instances_are_read_from_either_place(self, tmp_path):
        self.write(
            tmp_path,
            [
                {"image_id": 7, "bbox": [1, 2, 10, 10], "instance_id": 3},
                {"image_id": 7, "bbox": [11, 2, 5, 5], "attributes": {"instance": "mug"}},
                {"image_id": 7, "bbox": [20, 2, 5, 5]},
                {"image_id": 7, "bbox": [0, 0, 40, 30], "instance_id": 9, "iscrowd": 1},
                {"image_id": 7, "bbox": [5, 5, 0, 10], "instance_id": 9},
            ],
        )
        found = load_layout(tmp_path, "coco")
        assert found.gallery[0].instances == ["3", "mug", None]
        assert found.gallery[0].objects[0].box == (1, 2, 11, 12)

    @pytest.mark.parametrize(
        ("annotations", "told"),
        [
            ([{"image_id": 8, "bbox": [1, 2, 10, 10], "instance": "a"}], "not COCO"),
            ([{"image_id": 7, "bbox": [1, 2, 10], "instance": "a"}], "not COCO"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, annotations, told):
        with pytest.raises(DatasetError, match=told):
            load_layout(self.write(tmp_path, annotations), "coco")
