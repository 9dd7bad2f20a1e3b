"""The paper's table, on three made pictures and a tiny BLIP-2 with random weights."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ColourPipeline, painted
from PIL import Image
from qdrant_client import QdrantClient
from test_hooks import model  # noqa: F401
from typer.testing import CliRunner

from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.images import load as load_image
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.lab.evaluate import text_recall
from soir_qdrant.lab.evaluate.text_recall import Captioned, evaluate, load
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.rerank.q_perturbation.blip2 import Blip2Matcher
from soir_qdrant.rerank.q_perturbation.hooks import blip2, perturbed
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
from soir_qdrant.rerank.q_perturbation.text_reranker import TextPerturbation
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Hit, Vector

pytestmark = pytest.mark.slow

CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
BOX = f"<object><name>7</name><bndbox>{CORNERS}</bndbox></object>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The layout of Flickr30K with its Entities; picture 2 has no boxes."""
    rng = np.random.default_rng(0)
    entries = []
    (tmp_path / "pictures").mkdir()
    (tmp_path / "flickr30k_entities/Annotations").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / f"pictures/{i}.png")
        entries.append({"image": f"pictures/{i}.png", "caption": [f"one {i}", f"two words {i}"]})
    for i, corners in enumerate([(1, 1, 12, 10), (11, 21, 60, 40)]):
        xml = f"<annotation><size/>{BOX.format(*corners)}<object><scene>1</scene></object></annotation>"
        (tmp_path / f"flickr30k_entities/Annotations/{i}.xml").write_text(xml)
    (tmp_path / "test.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.fixture
def matcher(model: Any) -> Blip2Matcher:  # noqa: F811
    def pixels(pictures: list[Image.Image]) -> torch.Tensor:
        squeezed = [np.asarray(p.resize((56, 56)), np.float32) / 128 - 1 for p in pictures]
        return torch.from_numpy(np.stack(squeezed)).permute(0, 3, 1, 2)

    def words(texts: list[str]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[ord(c) % 50 for c in text.ljust(12)[:12]] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return Blip2Matcher(model, pixels, words)


def tokens_of(matcher: Blip2Matcher, pictures: list[Captioned]) -> torch.Tensor:
    return matcher.image_tokens([Image.open(picture.file) for picture in pictures])


def test_hits_of_words_are_ordered_by_the_model_itself(folder: Path, matcher: Blip2Matcher) -> None:
    """By ITC and ITM of every picture with its stored boxes, as the model's own forward gives them."""
    pictures = load(folder)
    hits = [
        Hit(
            id=i,
            score=1.0 - i,
            uri=str(picture.file),
            box=None,
            payload={
                "soir": {
                    "sha256": load_image(picture.file).sha256,
                    "objects": [{"box": box} for box in picture.boxes.tolist()],
                }
            },
        )
        for i, picture in enumerate(pictures)
    ]
    gone = replace(hits[0], id=9, uri=str(folder / "gone.png"))
    query = SearchQuery(np.ones(4, np.float32), text="a red mug")
    settings, failed = PerturbSettings(scale=8.0), []
    made = TextPerturbation(matcher, settings).rerank(query, [gone, *hits], failed=failed)
    assert made[0] is gone  # it keeps its place
    assert [f.name for f in failed] == [gone.uri]
    words = matcher.words(["a red mug"])
    for picture, hit in zip(pictures, sorted(made[1:], key=lambda hit: hit.id), strict=True):
        pixels = matcher.pixels([Image.open(picture.file)])
        with (
            torch.inference_mode(),
            perturbed(blip2(matcher.model), [picture.boxes], [picture.size], settings),
        ):
            itc = matcher.model(pixel_values=pixels, **words).logits_per_image
            itm = matcher.model(
                pixel_values=pixels, **words, use_image_text_matching_head=True
            ).logits_per_image
        assert hit.score == pytest.approx(float(itc.squeeze()) + float(itm.squeeze()[..., 1]), abs=1e-4)
    assert [hit.score for hit in made[1:]] == sorted((hit.score for hit in made[1:]), reverse=True)
    plain = TextPerturbation(replace(matcher, itm=False), None).rerank(query, hits)
    assert {hit.id for hit in plain} == {0, 1, 2}


class Reading(ColourPipeline):
    """Whose encoder reads text: every sentence is red."""

    def text(self, words: str) -> Vector:
        return self.query(painted(((0, 0, 80, 60), (250, 0, 0))))


def test_words_are_searched_with_blip2(
    folder: Path, matcher: Blip2Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name: the published weights; the first candidates come by the encoder's own vectors."""
    monkeypatch.setattr(Blip2Matcher, "load", lambda weights: matcher)
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=Reading()).add(folder / "pictures", progress=False)
    searcher = SoirSearcher(client, pipeline=Reading())
    hits = searcher.search(text="a red mug", rerank="blip2")
    own = TextPerturbation(matcher).rerank(SearchQuery(np.ones(12, np.float32), text="a red mug"), hits)
    assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in own]
    assert len(hits) == 3
    with pytest.raises(ConfigError, match=r"needs words, and this query is an image"):
        searcher.search(painted(), rerank="blip2")


def test_folder_is_read_as_published(folder: Path) -> None:
    first, second, third = load(folder)
    assert first.captions == ["one 0", "two words 0"]
    assert first.boxes.tolist() == [[0, 0, 12, 10]]
    assert first.size == (60, 40)
    assert (first.largest, second.largest, third.largest) == (0.05, pytest.approx(50 * 20 / 2400), 1.0)


def test_scores_are_those_of_the_model_itself(folder: Path, matcher: Blip2Matcher) -> None:
    """Pictures and sentences are encoded once each; the model's own forward takes them in pairs."""
    pictures = load(folder)
    words = matcher.words([p.captions[1] for p in pictures])
    settings = PerturbSettings(scale=8.0)
    with torch.inference_mode():
        tokens = tokens_of(matcher, pictures)
        with perturbed(
            blip2(matcher.model), [p.boxes for p in pictures], [p.size for p in pictures], settings
        ):
            seen = matcher.describe(tokens)
            pixels = matcher.pixels([Image.open(p.file) for p in pictures])
            itc = matcher.model(pixel_values=pixels, **words).logits_per_image
            itm = matcher.model(pixel_values=pixels, **words, use_image_text_matching_head=True)
        scores = (seen @ matcher.read(words).T).amax(1)
        with perturbed(blip2(matcher.model), [pictures[1].boxes], [pictures[1].size], settings):
            logits = matcher.match(tokens[1:2], words)  # one picture against all sentences
    torch.testing.assert_close(scores, itc)
    torch.testing.assert_close(logits[1], itm.logits_per_image[1, 1])


def test_recall_counts_sentences_and_small_pictures(folder: Path, matcher: Blip2Matcher) -> None:
    calls: list[None] = []
    plain = evaluate(matcher, load(folder), None, advance=lambda: calls.append(None))
    assert len(calls) == 6
    assert plain["sentences"] == 6
    assert plain["small sentences"] == 2
    assert plain["R@5"] == plain["small R@5"] == 100  # of three pictures
    assert evaluate(matcher, load(folder), PerturbSettings(scale=0.0), batch=2) == plain


def test_half_precision_as_transformers_loads_it(folder: Path, matcher: Blip2Matcher) -> None:
    """The Q-Former and its query tokens stay in float32, the rest is halved."""
    half = copy.deepcopy(matcher.model).to(torch.bfloat16)
    half.qformer.float()
    half.query_tokens.data = half.query_tokens.data.float()
    halved = Blip2Matcher(half, lambda pictures: matcher.pixels(pictures).bfloat16(), matcher.words)
    found = evaluate(halved, load(folder), PerturbSettings(scale=1.0))
    assert found["R@5"] == 100
    with torch.inference_mode():
        words = matcher.words(["one", "two"])
        logits = [m.match(tokens_of(m, load(folder)[:1]), words).float() for m in (halved, matcher)]
    torch.testing.assert_close(logits[0], logits[1], atol=0.2, rtol=0.1)


def test_a_sentence_whose_picture_is_not_listed_is_lost() -> None:
    scores = torch.tensor([[0.3, 0.9, 0.5], [-torch.inf, 0.1, -torch.inf]])
    found = text_recall._recalls(scores, torch.tensor([2, 0]), torch.tensor([True, False, False]))
    assert found == {
        **{"sentences": 2, "R@1": 0, "R@5": 50, "R@10": 50},
        **{"small sentences": 1, "small R@1": 0, "small R@5": 0, "small R@10": 0},
    }


def test_command_prints_both_rows(
    folder: Path, matcher: Blip2Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blip2Matcher, "load", lambda weights, device: matcher)
    result = CliRunner().invoke(app, ["evaluate-vl", str(folder), "--weights", "mine", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert set(rows) == {"blip2", "q-perturbation"}
    assert rows["blip2"]["R@5"] == 100


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"other.json: not readable"):
        load(folder, "other.json")
    with pytest.raises(DatasetError, match="boxes: no such folder"):
        load(folder, boxes="boxes")
    (folder / "flickr30k_entities/Annotations/0.xml").write_text("<annotation>")
    with pytest.raises(DatasetError, match=r"0\.xml: no annotation of Flickr30K Entities"):
        load(folder)
    (folder / "test.json").write_text('[{"image": "pictures/9.png", "caption": "nine"}]')
    with pytest.raises(DatasetError, match=r"9\.png: not readable as an image"):
        load(folder)
    (folder / "test.json").write_text('[{"image": "pictures/0.png"}]')
    with pytest.raises(DatasetError, match='entry 0 needs "image"'):
        load(folder)
