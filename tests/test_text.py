"""Search by words: text towers of CLIP and SigLIP, small and random, against the models' own words."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import painted
from models import BOTH, tiny_words
from PIL import Image
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from soir_qdrant import Composed, Settings, SoirIngestor, SoirSearcher, Text
from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError, ImageError, WeightsError
from soir_qdrant.models.encoders.text import text_encoder
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import SceneObject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BOTH)
def weights(request, tmp_path_factory):
    """A whole model with both towers and a tokenizer of eight words, as one folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, tiny_words(folder, request.param)


def settings(folder, profile="clip"):
    return Settings.for_profile(profile).but(
        encoder={"weights": str(folder), "input_size": 32, "dtype": "float32"}, detector={"kind": "none"}
    )


def test_words_become_what_the_model_makes_of_them(weights):
    folder, model = weights
    made = text_encoder(str(folder), "cpu")
    ids = [[3, 4, 5, 2, 0, 0]] if "siglip" in model.config.model_type else [[3, 4, 5, 2]]
    if (
        model.config.model_type == "siglip2"
    ):  # its own tokenizer cuts words in another way and pads on the left
        ids = made.tokenizer(["a red mug <end>"], padding="max_length", max_length=6)["input_ids"]
    words = "a red mug <end>"
    with torch.inference_mode():
        own = model.get_text_features(torch.tensor(ids))
    own = own if torch.is_tensor(own) else own.pooler_output
    own = torch.nn.functional.normalize(own, dim=-1).numpy()
    assert np.allclose(made.encode([words]), own, atol=1e-5)
    assert made.encode([words, "blue"]).shape == own.repeat(2, 0).shape
    assert np.isfinite(made.encode(["a " * 50])).all()  # cut to what the model reads
    with pytest.raises(ConfigError, match="empty"):
        made.encode([" "])


def test_pictures_are_found_by_words(weights):
    folder, _ = weights
    pipeline, client = Pipeline(settings(folder)), QdrantClient(":memory:")
    boxes = [(5, 5, 15, 15), (40, 30, 50, 45)]
    images = [painted((boxes[0], (250, 10 * i, 0)), (boxes[1], (0, 10 * i, 250))) for i in range(8)]
    SoirIngestor(client, pipeline=pipeline).add(
        images,
        payloads=[{"shop": "north" if i % 2 else "south"} for i in range(8)],
        objects=[[SceneObject(box) for box in boxes]] * 8,
        progress=False,
    )
    searcher = SoirSearcher(client, pipeline=pipeline)
    hits = searcher.search(text="a red mug", limit=3, rerank="codes")
    assert len(hits) == 3
    assert hits[0].box in boxes
    vector = searcher.vector(Text("a red mug"))
    assert np.allclose(np.linalg.norm(vector), 1, atol=1e-5)
    plain = searcher.search(text="a red mug", limit=8, rerank=None, with_vectors=True)
    assert np.allclose([hit.score for hit in plain], [hit.vector @ vector for hit in plain], atol=1e-5)
    north = models.Filter(must=[models.FieldCondition(key="shop", match=models.MatchValue(value="north"))])
    among = searcher.search(text="a red mug", limit=8, rerank=None, filter=north)
    assert [hit.id for hit in among] == [hit.id for hit in plain if hit.payload["shop"] == "north"]
    assert len(among) == 4
    both = searcher.search(text="a red mug", rerank=None, examples=[images[0]])  # and an image
    assert both[0].score > plain[0].score
    instead = (
        r'needs a query image, and this query is text.* take rerank="text-q-perturbation", "blip2" or "coca"'
    )
    with pytest.raises(ConfigError, match=instead):
        searcher.search(text="a red mug", rerank="q-perturbation")
    with pytest.raises(ConfigError, match="box is for a query image"):
        searcher.search(text="a red mug", box=boxes[0])


def test_text_is_said_and_a_string_is_a_path(weights):
    folder, _ = weights
    client, pipeline = QdrantClient(":memory:"), Pipeline(settings(folder))
    SoirIngestor(client, pipeline=pipeline).add([painted(), painted(((5, 5, 15, 15), (250, 0, 0)))])
    searcher = SoirSearcher(client, pipeline=pipeline)
    hits = searcher.search(text="a red mug")
    (many,) = searcher.search_many([Text("a red mug")])
    for others in (searcher.search(Text("a red mug")), many):
        assert [hit.id for hit in others] == [hit.id for hit in hits]
        # local mode rounds one and the same score in two ways, by where its arrays lie
        assert [hit.score for hit in others] == pytest.approx([hit.score for hit in hits], abs=1e-7)
    with pytest.raises(ImageError, match=r"no such file.*text='a red mug'"):
        searcher.search("a red mug")
    with pytest.raises(ConfigError, match="a heat map is made with an image"):
        searcher.heat(Text("a red mug"), hits[0])


def test_prompts_are_averaged_and_images_moved_by_words(weights):
    folder, _ = weights
    client, pipeline = QdrantClient(":memory:"), Pipeline(settings(folder))
    image = painted(((5, 5, 30, 30), (250, 0, 0)))
    SoirIngestor(client, pipeline=pipeline).add([image, painted()], progress=False)
    searcher = SoirSearcher(client, pipeline=pipeline)

    def is_like(vector, expected):
        return vector @ expected == pytest.approx(np.linalg.norm(expected), abs=1e-4)

    one, other = (pipeline.text(words) for words in ("a red mug", "red mug of"))
    assert is_like(searcher.vector(Text("red mug", prompts=("a {}", "{} of"))), one + other)
    plain, blue, mug = searcher.vector(image), pipeline.text("a blue mug"), pipeline.text("a mug")
    assert is_like(searcher.vector(Composed(image, "a blue mug", weight=0.25)), 0.75 * plain + 0.25 * blue)
    assert is_like(searcher.vector(Composed(image, "a blue mug", "a mug")), plain + 0.5 * (blue - mug))
    assert len(searcher.search(Composed(image, "a blue mug"))) == 2


def test_the_command_takes_words(weights, tmp_path):
    folder, _ = weights
    profile, db, page = tmp_path / "mine.json", tmp_path / "db", tmp_path / "page.html"
    profile.write_text(settings(folder).model_dump_json())
    Image.fromarray(painted(((5, 5, 15, 15), (250, 0, 0)))).save(tmp_path / "mug.png")
    run = CliRunner()
    common = ["--path", str(db), "--profile", str(profile), "--json"]
    assert run.invoke(app, ["ingest", str(tmp_path / "mug.png"), *common]).exit_code == 0
    done = run.invoke(app, ["search", "--text", "a red mug", "--save-html", str(page), *common])
    assert [Path(hit["uri"]).name for hit in json.loads(done.stdout)] == ["mug.png"]
    assert "Searched: a red mug" in page.read_text()
    for wrong, said in ((["mug.png", "--text", "a mug"], "give one of them"), ([], "nothing to search for")):
        refused = run.invoke(app, ["search", *wrong, *common])
        assert said in str(refused.exception)


def test_the_command_averages_prompts_and_changes_the_thing(weights, tmp_path):
    folder, _ = weights
    profile, db, mug = tmp_path / "mine.json", tmp_path / "db", tmp_path / "mug.png"
    profile.write_text(settings(folder).model_dump_json())
    Image.fromarray(painted(((5, 5, 30, 30), (250, 0, 0)))).save(mug)
    common = ["--path", str(db), "--profile", str(profile), "--json"]
    assert CliRunner().invoke(app, ["ingest", str(mug), *common]).exit_code == 0

    def score(*arguments):
        done = CliRunner().invoke(app, ["search", *arguments, "--rerank", "none", *common])
        assert done.exit_code == 0, done.output
        return pytest.approx(json.loads(done.stdout)[0]["score"], abs=1e-5)

    def refused(*arguments):
        done = CliRunner().invoke(app, ["search", *arguments, *common])
        assert done.exit_code != 0
        return done.output + str(done.exception)

    prompts = ["--text", "red mug", "--prompt", "a {}", "--prompt", "{} of"]
    printed = [
        score(*prompts),
        score(str(mug), "--but", "a blue mug"),
        score(str(mug), "--but", "a blue mug", "--instead-of", "a mug"),
    ]
    client = QdrantClient(path=str(db))
    searcher = SoirSearcher(client, pipeline=Pipeline(settings(folder)))
    queries = [
        Text("red mug", prompts=("a {}", "{} of")),
        Composed(mug, "a blue mug"),
        Composed(mug, "a blue mug", "a mug"),
    ]
    scores = [searcher.search(query, rerank=None)[0].score for query in queries]
    client.close()
    assert scores == printed
    assert len({round(value, 4) for value in scores}) == 3
    page = tmp_path / "page.html"
    assert score(str(mug), "--but", "a blue mug", "--save-html", str(page)) == scores[1]
    assert "a blue mug" in page.read_text()
    assert "give --text too" in refused(str(mug), "--prompt", "a {}")
    assert "give an image of it" in refused("--text", "a mug", "--but", "a blue mug")
    assert "give --but too" in refused(str(mug), "--instead-of", "a mug")
    assert "where the words go" in refused("--text", "a mug", "--prompt", "a photo")


def test_an_encoder_without_text_says_so(tmp_path):
    from models import tiny_encoder

    folder = tiny_encoder(tmp_path / "dinov2")
    assert text_encoder(str(folder)) is None
    with pytest.raises(ConfigError, match=r"reads no text.*clip, siglip, siglip2, metaclip2, tipsv2"):
        Pipeline(settings(folder)).text("a red mug")


def test_a_model_without_its_tokenizer_is_named(weights, tmp_path):
    _, model = weights
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(WeightsError, match="bare: its text tower could not be loaded"):
        text_encoder(str(tmp_path / "bare"))
