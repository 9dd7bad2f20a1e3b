"""`soir train words` and `soir evaluate --words` on small random towers and painted squares."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import painted
from models import tiny_words
from PIL import Image
from qdrant_client import QdrantClient
from typer.testing import CliRunner

from soir_qdrant import Composed, Settings, SoirIngestor, SoirSearcher, Text
from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, GalleryImage
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.words import Caption, captions, embedding, evaluate_captions, evaluate_classes
from soir_qdrant.lab.train.words import UNKNOWN, Plan, examples, loss_of, pseudo_labels, targets, train
from soir_qdrant.models.heads.queries import QueryHead
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import Scene, SceneObject

pytestmark = pytest.mark.slow

COLOURS = {"red": (250, 20, 20), "blue": (20, 20, 250), "mug": (20, 230, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, and forty images of one square each, whose colour is its name."""
    root = tmp_path_factory.mktemp("words")
    tiny_words(root / "weights")
    rng, images, annotations, sentences = np.random.default_rng(0), [], [], []
    (root / "images").mkdir()
    for i in range(40):
        name = [*COLOURS][i % 3]
        x, y = (int(v) for v in rng.integers(2, 30, 2))
        Image.fromarray(painted(((x, y, x + 24, y + 24), COLOURS[name]))).save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 60})
        annotations.append({"image_id": i, "bbox": [x, y, 24, 24], "category_id": 1 + i % 3})
        sentences.append({"image": f"images/{i}.png", "sentence": f"a {name}", "box": [x, y, x + 24, y + 24]})
    categories = [{"id": 1 + k, "name": name} for k, name in enumerate(COLOURS)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (root / "coco.json").write_text(text)
    (root / "captions.json").write_text(json.dumps(sentences[:3]))
    (root / "novel.txt").write_text("mug\n")
    settings = Settings.for_profile("sum-clip").but(
        encoder={"weights": str(root / "weights"), "input_size": 32, "dtype": "float32", "device": "cpu"}
    )
    (root / "profile.json").write_text(settings.model_dump_json())
    return root


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output, result.exception


def test_words_are_trained_resumed_and_evaluated(folder, tmp_path):
    common = [
        folder,
        "--novel",
        folder / "novel.txt",
        "--names",
        folder / "novel.txt",
        "--batch",
        8,
        "--queries",
        4,
    ]
    common += ["--profile", folder / "profile.json", "--format", "coco", "--prompt", "a {}"]
    whole = tmp_path / "whole.safetensors"
    code, output, error = run("train", "words", *common, "--epochs", 6, "--out", whole)
    assert code == 0, (output, error)
    assert "2 classes and 1 names without labels" in output
    curve = [json.loads(line) for line in whole.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert curve[-1]["held out mAP"] > 0

    state = torch.load(whole.with_suffix(".state"), weights_only=True)
    assert not any(name.startswith("block") for name in state["module"])  # the encoder stays as it is

    profile = json.loads((folder / "profile.json").read_text())
    (tmp_path / "mine.json").write_text(
        json.dumps({**profile, "profile": "sum-clip", "scene": {"head": str(whole)}})
    )
    code, output, error = run(
        "evaluate", folder, "--words", "--novel", folder / "novel.txt", "--profile", tmp_path / "mine.json",
        "--json", tmp_path / "results.json",
    )  # fmt: skip
    assert code == 0, (output, error)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["base classes"], results["novel classes"], results["captions sentences"]) == (2, 1, 3)
    assert results["base mAP@50"] > 45  # chance is about a third
    assert {"novel mAP@50", "captions R@1"} < set(results)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_killed_training_goes_on_to_the_same_result(folder, tmp_path, monkeypatch, share):
    from soir_qdrant.lab.train.progress import Progress

    common = ["train", "words", folder, "--batch", 8, "--queries", 2, "--epochs", 3, "--format", "coco"]
    common += ["--profile", folder / "profile.json", "--labelled", share]
    assert run(*common, "--out", tmp_path / "whole.safetensors")[0] == 0
    keep = Progress.keep

    def killed(self, done, *rest):
        keep(self, done, *rest)
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "keep", killed)
    assert run(*common, "--out", tmp_path / "parts.safetensors")[0] != 0
    monkeypatch.undo()
    assert run(*common, "--out", tmp_path / "parts.safetensors")[0] == 0
    from safetensors.numpy import load_file

    one, other = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "parts.safetensors")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    code, _, error = run(*common, "--out", tmp_path / "whole.safetensors", "--prompt", "a drawing of {}")
    assert code != 0
    assert "of other pictures or labels" in str(error), error
    code, _, error = run(*common, "--out", tmp_path / "whole.safetensors", "--labelled", 0.75)
    assert code != 0
    assert "of another plan" in str(error), error


def semi_supervised(folder, cache):
    """What `soir train words` trains on: images, the encoder, the embeddings of two classes and of a name."""
    pipeline = Pipeline(Settings.for_profile(str(folder / "profile.json")))
    images = examples([load(folder, "coco")], pipeline, ["blue", "red"], 1, cache)
    rows = embedding(pipeline, ["a {}"])(["blue", "red", "mug"])
    return images, pipeline.encoder, (rows[:2], rows[2:])


def test_a_share_of_the_images_has_labels_and_clusters_tell_of_the_others(folder, tmp_path):
    images, _, embeddings = semi_supervised(folder, tmp_path)
    plan = Plan(epochs=1, batch=8, labelled=0.25)
    labels, pseudo = targets(images, embeddings, plan)
    with_labels = (labels != UNKNOWN).all(1)
    assert with_labels.sum() == 10  # a quarter of forty
    assert (labels[~with_labels] == UNKNOWN).all()
    assert np.array_equal(labels[with_labels], np.stack([one.classes for one in images])[with_labels])
    by_clusters = pseudo_labels([one.clusters for one in images], np.concatenate(embeddings), plan)
    assert np.array_equal(pseudo[:, 2], by_clusters[:, 2])  # the name without labels, in every image
    assert np.array_equal(pseudo[~with_labels], by_clusters[~with_labels])
    assert (pseudo[with_labels, :2] == UNKNOWN).all()
    assert {0, 1} <= set(pseudo[~with_labels, :2].ravel())
    for share, count in ((0.0, 0), (0.5, 20), (1.0, 40)):
        labels, _ = targets(images, embeddings, replace(plan, labelled=share))
        assert (labels != UNKNOWN).all(1).sum() == count


def test_labels_that_are_not_used_change_nothing(folder, tmp_path):
    images, encoder, embeddings = semi_supervised(folder, tmp_path / "cache")
    plan = Plan(epochs=2, batch=8, queries=2, labelled=0.25, holdout=1000)
    with_labels = (targets(images, embeddings, plan)[0] != UNKNOWN).all(1)

    def trained(examples):
        torch.manual_seed(0)
        head = QueryHead(encoder.width, count=2)
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        train(head, examples, encoder.last_block, embeddings, plan, state=place / "state", log=place / "log")
        return torch.cat([weight.flatten() for weight in head.state_dict().values()])

    def otherwise(change, which):
        return [change(one) if chosen else one for one, chosen in zip(images, which, strict=True)]

    def other_labels(one):
        return replace(one, classes=1 - one.classes)

    def other_clusters(one):
        return replace(one, clusters=-one.clusters)

    plain = trained(images)
    assert torch.equal(trained(otherwise(other_labels, ~with_labels)), plain)
    assert not torch.equal(trained(otherwise(other_labels, with_labels)), plain)
    assert not torch.equal(trained(otherwise(other_clusters, ~with_labels)), plain)


def test_what_no_label_tells_is_left_to_clusters():
    names = np.eye(2, dtype=np.float32)
    clusters = [np.array([[s, 0]], np.float32) for s in (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9)]
    labels = pseudo_labels(clusters, names, Plan(epochs=1, batch=1))
    assert labels[:, 0].tolist() == [0] * 7 + [1]
    assert labels[:, 1].tolist() == [0] * 8  # alike everywhere: shown nowhere
    between = pseudo_labels(clusters, names, Plan(epochs=1, batch=1, near=3.0, far=1.0))
    assert between[7, 0] == -1


def test_the_loss_sees_what_is_known_alone():
    scores = torch.tensor([[0.5, 0.9, 0.1]])
    full = loss_of(scores, torch.tensor([[1, 0, 0]]), 0.1)
    ignored = loss_of(scores, torch.tensor([[1, -1, 0]]), 0.1)
    assert ignored < full
    assert loss_of(scores, torch.tensor([[-1, -1, -1]]), 0.1) == 0
    expected = -torch.log_softmax(scores[0, [0, 2]] / 0.1, 0)[0]
    assert torch.isclose(ignored, expected)


def test_folders_without_names_and_captions_of_another_form_are_errors(folder, tmp_path):
    with pytest.raises(DatasetError, match="sentence"):
        captions(tmp_path)
    (tmp_path / "captions.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(DatasetError, match="sentence"):
        captions(tmp_path)


def test_of_right_first_hits_the_box_must_be_on_the_thing(tmp_path):
    def scene(box, vector):
        return Scene(80, 60, (SceneObject(box),), np.array(vector), np.array([vector], np.float32))

    thing, elsewhere = (0.0, 0.0, 20.0, 20.0), (40.0, 30.0, 60.0, 50.0)
    words = {"mug": (1.0, 0.0, 0.0), "cup": (0.0, 1.0, 0.0), "jar": (0.0, 0.0, 1.0)}
    places = {"mug": (0.0, 0.0, 20.0, 18.0), "cup": elsewhere, "jar": thing}
    files = [tmp_path / name for name in words]
    bench = Bench(
        tmp_path, [GalleryImage(tmp_path / n, None, [BenchObject(None, thing, n)]) for n in words], []
    )
    scenes = [scene(places[name], words[name]) for name in words]

    def embed(names):
        return np.array([words[name] for name in names], np.float32)

    classes = evaluate_classes(bench, embed, scenes, novel=["jar"])
    assert (classes["base mAP@50"], classes["base LocScore"]) == (100, 50)  # the cup's image, and not its box
    assert (classes["novel mAP@50"], classes["novel LocScore"], classes["novel classes"]) == (100, 100, 1)
    listed = [
        Caption(files[0], "mug", thing),
        Caption(files[1], "cup", thing),
        Caption(files[1], "jar", thing),
    ]
    sentences = evaluate_captions(listed, embed, dict(zip(files, scenes, strict=True)))
    assert (sentences["captions R@1"], sentences["captions LocScore"]) == (66.67, 50)  # of two right ones


def test_prompts_are_averaged_and_images_moved_by_words(folder):
    pipeline = Pipeline(
        Settings.for_profile(str(folder / "profile.json")).but(scene={"kind": "cluster", "count": 4})
    )
    client = QdrantClient(":memory:")
    image = painted(((5, 5, 30, 30), (250, 0, 0)))
    SoirIngestor(client, pipeline=pipeline).add([image, painted()], progress=False)
    searcher = SoirSearcher(client, pipeline=pipeline)
    one, other = (pipeline.text(words) for words in ("a red mug", "red mug of"))
    both = searcher.vector(Text("red mug", prompts=("a {}", "{} of")))
    assert np.allclose(both, (one + other) / np.linalg.norm(one + other), atol=1e-5)
    plain, blue, mug = searcher.vector(image), pipeline.text("a blue mug"), pipeline.text("a mug")
    mixed = searcher.vector(Composed(image, "a blue mug", weight=0.25))
    assert mixed @ (0.75 * plain + 0.25 * blue) == pytest.approx(
        np.linalg.norm(0.75 * plain + 0.25 * blue), abs=1e-4
    )
    moved, step = searcher.vector(Composed(image, "a blue mug", "a mug")), plain + 0.5 * (blue - mug)
    assert moved @ step == pytest.approx(np.linalg.norm(step), abs=1e-4)
    assert len(searcher.search(Composed(image, "a blue mug"))) == 2
    with pytest.raises(ConfigError, match=r"reads no text.*clip, siglip, siglip2, metaclip2, tipsv2"):
        Pipeline(pipeline.settings.but(scene=None, vector={"features": ("patches",)})).text("a mug")
