"""The head that reads textures: learnt from looks at things, run by the encoder that it was learnt for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_encoder
from PIL import Image

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.lab.evaluate.bench import load
from soir_qdrant.lab.train.surfaces import BOX, SIDE, Looks, look, looks, view
from soir_qdrant.lab.train.texture import Plan, loss, train
from soir_qdrant.models.compatibility import trunk
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.heads.texture import LAYERS, TextureHead
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.features import sizes

pytestmark = pytest.mark.slow

THINGS = 12
PLAN = Plan(steps=30, batch=12, lr=2e-3, again=0.5, every=10)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(tiny_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve boards of coloured squares, each in two images; and an image of things without names."""
    place, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    boards = rng.integers(0, 256, (THINGS, 4, 4, 3))
    gallery = []
    for i in range(2 * THINGS):
        image = rng.integers(0, 90, (90, 120, 3), np.uint8)
        x, y = rng.integers(5, 40, 2)
        image[y : y + 40, x : x + 40] = (
            np.clip(boards[i % THINGS] * rng.uniform(0.7, 1.1), 0, 255).repeat(10, 0).repeat(10, 1)
        )
        Image.fromarray(image).save(place / f"{i}.png")
        box = [int(x), int(y), int(x) + 40, int(y) + 40]
        gallery.append({"file": f"{i}.png", "objects": [{"instance": f"board{i % THINGS}", "box": box}]})
    (place / "annotations.json").write_text(json.dumps({"gallery": gallery, "queries": []}))
    return load(place)


def pipeline_of(weights, **settings):
    return Pipeline(
        Settings().but(
            encoder={"weights": weights, "input_size": 48, "dtype": "float32"},
            detector={"kind": "none"},
            segmenter={"kind": "box"},
            vector={"whitening": None},
            **settings,
        )
    )


def fresh(dim=24):
    torch.manual_seed(0)
    return TextureHead(dim, width=64, length=16)


def files(folder):
    return {"state": folder / "state", "log": folder / "log.jsonl"}


def looks_of(count, things):
    """Looks in memory: `things` names them, "" is of nothing that comes again."""
    examples = Looks([])
    examples.pixels = [np.zeros((SIDE, SIDE, 4), np.uint8)] * count
    named = {name: [i for i in range(count) if things[i] == name] for name in dict.fromkeys(things)}
    examples.once = [[i] for i in named.pop("", [])]
    examples.again = [list(named.values())]
    return examples


class TestLooks:
    def test_a_box_is_in_the_middle_with_its_mask_whatever_its_place(self):
        image = np.zeros((60, 100, 3), np.uint8)
        mask = np.zeros((60, 100), np.bool_)
        for x, y in ((40, 20), (0, 0), (80, 40)):
            image[:], mask[:] = 0, False
            image[y : y + 20, x : x + 20], mask[y : y + 20, x : x + 20] = 200, True
            examples = look(image, mask, (x, y, x + 20, y + 20))
            assert examples.shape == (SIDE, SIDE, 4)
            start = (SIDE - BOX) // 2
            assert examples[start + 8 : -start - 8, start + 8 : -start - 8].min() >= 195
            assert examples[start + 8 : -start - 8, start + 8 : -start - 8, 3].min() == 255

    def test_things_that_come_again_are_drawn_from_two_places_and_no_thing_twice(self):
        examples = looks_of(30, [f"thing{i % 5}" for i in range(20)] + [""] * 10)
        pairs = examples.pairs(8, 0.5, np.random.default_rng(0))
        assert len(pairs) == 8
        again = [pair for pair in pairs if pair[0] < 20]
        assert len(again) == 4
        assert all(a != b and a % 5 == b % 5 for a, b in again)
        assert len({a % 5 for a, _ in again}) == 4
        assert all(a == b for a, b in pairs if a >= 20)

    def test_they_are_computed_once(self, folder, weights, tmp_path):
        pipeline = pipeline_of(weights)
        examples = looks([folder], pipeline, tmp_path)
        assert len(examples) == 2 * THINGS
        assert len(examples.again[0]) == THINGS
        stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")}
        assert len(looks([folder], pipeline, tmp_path)) == 2 * THINGS
        assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")}

    def test_images_without_labels_are_looked_at_through_windows(self, folder, weights, tmp_path):
        bare = [replace(entry, objects=[]) for entry in folder.gallery[:2]]
        examples = looks([replace(folder, gallery=bare)], pipeline_of(weights), tmp_path)
        assert len(examples.once) == len(examples) > 2
        assert not examples.again
        with pytest.raises(DatasetError, match="nothing to tell apart"):
            looks([replace(folder, gallery=[])], pipeline_of(weights), tmp_path)

    def test_a_view_is_the_same_thing_under_another_camera(self):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        mask = np.zeros((160, 160), np.bool_)
        mask[40:120, 40:120] = True
        examples = look(image, mask, (40, 40, 120, 120))
        one, other = view(examples, examples, 126, rng), view(examples, examples, 126, rng)
        assert one.shape == (126, 126, 4)
        assert one.dtype == np.uint8
        assert view(examples, examples, 288, rng).shape == (
            288,
            288,
            4,
        )  # of larger patches: more than a look has
        assert not np.array_equal(one, other)
        np.testing.assert_array_equal(
            view(examples, examples, 126, np.random.default_rng(5)),
            view(examples, examples, 126, np.random.default_rng(5)),
        )
        inside = one[..., 3] > 127
        assert 0.6 < inside.mean() / (112 / 126) ** 2 < 1.4


class TestTraining:
    def test_the_loss_wants_the_two_looks_at_a_thing_together_and_things_apart(self):
        rows = torch.nn.functional.normalize(torch.randn(16, 32, generator=torch.manual_seed(0)), dim=1)
        paired = rows[::2].repeat_interleave(2, 0)
        assert loss(paired) < loss(rows)
        assert loss(paired) < loss(torch.nn.functional.normalize(paired + 4, dim=1))

    def test_it_learns_to_know_boards_again_and_goes_on_after_an_interruption(
        self, folder, weights, tmp_path
    ):
        pipeline = pipeline_of(weights)
        examples, encoder = looks([folder], pipeline, tmp_path / "cache"), pipeline.encoder
        head = train(fresh(), examples, encoder, PLAN, **files(tmp_path), data="boards")
        curve = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in curve] == [10, 20, 30]
        assert curve[-1]["loss"] < curve[0]["loss"] - 0.2
        assert curve[-1]["first"] > curve[0]["first"]

        class Killed(RuntimeError):
            pass

        def kill(line):
            if line["step"] == 20:
                raise Killed

        again = tmp_path / "again"
        again.mkdir()
        with pytest.raises(Killed):
            train(fresh(), examples, encoder, PLAN, **files(again), data="boards", report=kill)
        resumed = train(fresh(), examples, encoder, PLAN, **files(again), data="boards")
        for name, expected in head.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], expected, atol=1e-5, rtol=1e-4)
        assert (again / "log.jsonl").read_text() == (tmp_path / "log.jsonl").read_text()


class TestHead:
    def test_a_texture_is_the_heads_of_early_tokens_under_the_weights(self, weights, tmp_path):
        encoder = ViTEncoder(weights, input_size=48, dtype="float32")
        head = fresh().eval()
        head.save(tmp_path / "head.safetensors", encoder.weights.sha256)
        reading = ViTEncoder(
            weights, input_size=48, dtype="float32", texture=str(tmp_path / "head.safetensors")
        )
        surfaces = np.random.default_rng(0).integers(0, 256, (3, 72, 72, 3), np.uint8)
        share = np.full((3, 81), 1 / 81, np.float32)
        share[1], share[1, :9] = 0, 1 / 9
        rows = reading.texture(surfaces, share)
        assert rows.shape == (3, reading.texture_dim) == (3, 16)
        grid = encoder.features(surfaces, LAYERS).reshape(3, 81, len(LAYERS), 24)
        with torch.inference_mode():
            expected = head(
                [torch.from_numpy(grid[:, :, i]) for i in range(len(LAYERS))], torch.from_numpy(share)
            )
        np.testing.assert_allclose(rows, expected, atol=5e-3)  # saved in half precision
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        other = share.copy()
        other[1] = 1 / 81
        assert np.abs(reading.texture(surfaces, other)[1] - rows[1]).max() > 1e-3
        assert sizes(("cls", "texture"), reading) == [24, 16]

    def test_it_is_named_by_the_encoder_that_has_it_and_by_nothing_that_does_not_see_it(
        self, weights, tmp_path
    ):
        plain = ViTEncoder(weights, input_size=48, dtype="float32")
        names = set()
        for seed in (0, 1):
            torch.manual_seed(seed)
            file = tmp_path / f"{seed}.safetensors"
            TextureHead(24, width=64, length=16).save(file, plain.weights.sha256)
            encoder = ViTEncoder(weights, input_size=48, dtype="float32", texture=str(file))
            names.add(encoder.fingerprint)
            assert trunk(encoder.fingerprint) == trunk(plain.fingerprint)
        assert len(names | {plain.fingerprint}) == 3
        settings = {
            "encoder": {"weights": weights, "input_size": 48, "texture": str(file)},
            "vector": {"whitening": None},
        }
        with_it = Pipeline(Settings().but(**settings))
        assert with_it.encoder.fingerprint in names
        assert with_it.dim == 5 * 24 + 16
        settings["vector"]["features"] = ["cls"]
        assert Pipeline(Settings().but(**settings)).encoder.fingerprint == plain.fingerprint

    def test_the_one_that_ships_is_not_of_another_encoder(self, weights):
        """Whose textures are then statistics, as of any encoder."""
        pipeline = pipeline_of(weights)
        assert pipeline.encoder.texture_head is None
        assert pipeline.encoder.texture_dim == 2 * pipeline.encoder.width
        assert type(pipeline.encoder).texture is not Encoder.texture

    def test_a_head_of_another_encoder_is_refused_with_what_to_do(self, weights, tmp_path):
        fresh().save(tmp_path / "head.safetensors", "another")
        with pytest.raises(ConfigError, match="soir train texture"):
            ViTEncoder(weights, input_size=48, texture=str(tmp_path / "head.safetensors"))
        with pytest.raises(ConfigError, match="soir train texture"):
            TextureHead.load(tmp_path / "none.safetensors")
