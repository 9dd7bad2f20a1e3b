"""Text inside images: read by a real RapidOCR, stored with the objects it is on, found by filter and command."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from soir_qdrant import Settings, SoirIngestor, SoirSearcher, filters
from soir_qdrant.cli.groups import Models
from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError
from soir_qdrant.models.ocr import TextLine, assigned
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.search.text_in_image import find_text, with_text
from soir_qdrant.types import SceneObject

MILK, SOUP = (60.0, 60.0, 300.0, 150.0), (330.0, 200.0, 560.0, 290.0)


def shelf(*labels):
    """An image with a text in each of some boxes."""
    image = Image.new("RGB", (600, 320), (205, 210, 190))
    draw = ImageDraw.Draw(image)
    for text, box in labels:
        draw.rectangle(box, (245, 245, 240))
        draw.text((box[0] + 15, box[1] + 25), text, fill=(20, 20, 60), font=ImageFont.load_default(size=32))
    return image


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    from models import tiny_encoder

    folder = tiny_encoder(tmp_path_factory.mktemp("vit"))
    return Settings.for_profile().but(
        encoder={"weights": str(folder), "input_size": 32, "dtype": "float32"},
        detector={"kind": "none"},
        segmenter={"kind": "box"},
        vector={"whitening": None, "features": ("cls",)},
        ocr={},
    )


@pytest.fixture(scope="module")
def filled(reading):
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    client, pipeline = QdrantClient(":memory:"), Pipeline(reading)
    images = [
        np.asarray(shelf(("OAT MILK", MILK), ("Tomato soup", SOUP))),
        np.asarray(shelf(("TOMATO", MILK))),
        np.asarray(shelf()),
    ]
    objects = [[SceneObject(MILK), SceneObject(SOUP)], [SceneObject(SOUP)], [SceneObject(MILK)]]
    report = SoirIngestor(client, pipeline=pipeline).add(
        images, ids=[1, 2, 3], objects=objects, progress=False
    )
    assert report.added == 3
    assert report.seconds["read text"] > 0
    return SoirSearcher(client, pipeline=pipeline)


@pytest.mark.slow
def test_text_lies_with_the_object_it_is_on(filled):
    one, two, three = filled.store.client.retrieve("images", [1, 2, 3])
    assert [item["text"] for item in one.payload["soir"]["objects"]] == ["OAT MILK", "Tomato soup"]
    assert two.payload["soir"]["text"] == "TOMATO"  # on no object
    assert "text" not in two.payload["soir"]["objects"][0]
    assert "text" not in three.payload["soir"]


@pytest.mark.parametrize(
    ("words", "ids"),
    [("tomato", [1, 2]), ("Milk, oat", [1]), ("oat tomato", [1]), ("oat soap", []), ("toma", [])],
)
@pytest.mark.slow
def test_images_are_found_by_the_words_in_them(filled, words, ids):
    assert sorted(hit.id for hit in find_text(filled, words)) == ids


@pytest.mark.slow
def test_hits_say_which_object_has_the_words(filled):
    first, second = find_text(filled, "tomato")
    assert (first.id, first.box, first.score) == (1, SOUP, 1.0)
    assert (second.id, second.box, second.score) == (2, None, 0.0)
    (both,) = find_text(filled, "oat tomato")
    assert both.score == 0.5  # on two objects


@pytest.mark.slow
def test_words_in_the_image_narrow_a_search(filled):
    query = np.asarray(shelf(("TOMATO", MILK)))
    everything = filled.search(query, limit=5)
    narrowed = filled.search(query, limit=5, filter=with_text("oat milk"))
    assert len(everything) == 3
    assert [hit.id for hit in narrowed] == [1]
    assert filters.has_text("oat milk") == with_text("oat milk").must[0]
    with pytest.raises(ConfigError, match="say which words"):
        filters.has_text(" - ")


def test_an_object_with_all_words_comes_first_however_many_images_have_them_apart(client):
    """Written by hand, as the words were read in them."""
    client.create_collection("images", models.VectorParams(size=4, distance=models.Distance.COSINE))

    def point(id_, *texts):
        objects = [{"box": [5 * i, 0, 5 * i + 5, 5], "text": text} for i, text in enumerate(texts)]
        return models.PointStruct(id=id_, vector=[1.0] * 4, payload={"soir": {"objects": objects}})

    apart = [point(i, "oat", "milk") for i in range(150)]
    client.upsert("images", [*apart, point(998, "milk"), point(999, "soup", "oat milk")])
    first, second, third = find_text(SoirSearcher(client), "milk oat", limit=3)
    assert (first.id, first.box, first.score) == (999, (5, 0, 10, 5), 1.0)
    assert second.score == third.score == 0.5
    assert find_text(SoirSearcher(client), "milk oat", limit=1)[0].id == 999
    none = models.Filter(must_not=[models.HasIdCondition(has_id=[999])])
    assert {hit.score for hit in find_text(SoirSearcher(client), "milk oat", filter=none)} == {0.5}


def test_a_line_belongs_to_the_smallest_box_around_its_middle():
    big, small = SceneObject((0, 0, 100, 100)), SceneObject((10, 10, 50, 50))
    known = SceneObject((60, 60, 90, 90), text="mine")
    lines = [
        TextLine("a", (12, 12, 30, 20), 1),
        TextLine("b", (40, 20, 80, 30), 1),
        TextLine("c", (61, 61, 70, 70), 1),
    ]
    listed, rest = assigned([*lines, TextLine("d", (200, 0, 210, 9), 1)], [big, small, known])
    assert [item.text for item in listed] == ["b", "a", "mine"]
    assert rest == "d"
    printed = SceneObject((11, 11, 31, 21), line=True)
    both, _ = assigned(lines[:1], [big, small, printed])
    assert [item.text for item in both] == [None, "a", "a"]  # what it is on has it too
    nowhere, all_of_it = assigned(lines[:1], [SceneObject((0, 0, 100, 100), stand_in=True)])
    assert (nowhere[0].text, all_of_it) == (None, "a")  # nothing was found there


@pytest.mark.slow
def test_the_commands_read_and_find_text(reading, tmp_path):
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    shelf(("OAT MILK", MILK)).save(tmp_path / "a.png")
    profile, db = tmp_path / "mine.json", str(tmp_path / "db")
    profile.write_text(reading.but(ocr=None).model_dump_json())
    run, common = CliRunner(), ["--path", db, "--json"]
    ingest = ["ingest", str(tmp_path / "a.png"), "--ocr", "--profile", str(profile)]
    assert run.invoke(app, [*ingest, *common]).exit_code == 0
    hits = json.loads(run.invoke(app, ["search", "--text-in-image", "oat milk", *common]).stdout)
    assert [hit["uri"].rpartition("/")[2] for hit in hits] == ["a.png"]
    assert json.loads(run.invoke(app, ["search", "--text-in-image", "soup", *common]).stdout) == []
    crop = ["search", str(tmp_path / "a.png"), "--profile", str(profile), *common]
    for words, count in (("oat milk", 1), ("soup", 0)):
        assert len(json.loads(run.invoke(app, [*crop, "--text-in-image", words]).stdout)) == count


@pytest.mark.parametrize(
    ("profile", "ocr", "reads"),
    [(None, None, True), (None, False, False), ("fast", None, False), ("fast", True, True)],
)
def test_the_command_line_reads_as_the_profile_does_unless_an_option_says_otherwise(profile, ocr, reads):
    assert (Models(profile=profile, ocr=ocr).settings.ocr is not None) is reads


@pytest.mark.slow
def test_reading_text_is_part_of_the_recipe_and_not_of_the_fingerprint(reading):
    plain, with_text = Pipeline(reading.but(ocr=None)), Pipeline(reading)
    assert plain.fingerprint == with_text.fingerprint
    assert "ocr" not in plain.recipe
    assert with_text.recipe["ocr"]["longest"] == 2000
