"""Words over HTTP: alone, in prompts, and to change the thing in an image."""

import json

import numpy as np
import pytest
from qdrant_client import QdrantClient
from service_app import BLUE, BOTTOM, GREEN, RED, TOP, Reading, ids, names, png, search, service, shelf

from soir_qdrant import Composed, Crop, Settings, SoirIngestor, SoirSearcher, Text
from soir_qdrant.config import READING
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import SceneObject


@pytest.fixture
def web(tmp_path):
    with service(tmp_path / "photos", pipeline=Reading()) as made:
        yield made


def test_words_alone_and_in_prompts(web):
    assert web.get("/v1").json()["reads_text"]
    assert set(names(search(web, query={"text": "red"}))[:2]) == {"red-green.png", "red-blue.png"}
    prompts = ["a photo of {}", "{} on a shelf"]
    assert set(names(search(web, query={"text": "blue", "prompts": prompts}))[:2]) == {
        "red-blue.png",
        "green-blue.png",
    }
    wrong = search(web, query={"text": "blue", "prompts": ["a photo"]})
    assert (wrong.status_code, "has no {}" in wrong.json()["detail"]) == (422, True)


def test_words_change_the_thing_in_an_image(web):
    """This red thing, but blue: the image with a blue one and none that is red comes first, or the one with both."""
    red = {"id": ids(web)["red-green.png"], "object": 0}
    blue = {**red, "but": "blue", "instead_of": "red", "weight": 1}
    assert set(names(search(web, query=blue))[:2]) == {"red-blue.png", "green-blue.png"}
    sent = search(web, png(shelf(RED, RED)), box=list(TOP), but="blue", instead_of="red", weight=1)
    assert set(names(sent)[:2]) == {"red-blue.png", "green-blue.png"}
    again = search(
        web, query={"upload": sent.json()["upload"], "box": list(TOP), "but": "green", "weight": 0.9}
    )
    assert set(names(again)[:2]) == {"red-green.png", "green-blue.png"}
    grouped = search(web, query=blue, group_by="shop").json()["groups"]
    assert grouped[0]["key"] == "south"


def test_words_that_were_read_in_the_images_narrow_a_search(tmp_path):
    images = {"oat.png": shelf(RED, GREEN), "soup.png": shelf(RED, BLUE), "bare.png": shelf(GREEN, BLUE)}
    for name, image in images.items():
        (tmp_path / name).write_bytes(png(image))
    objects = {
        "oat.png": [SceneObject(TOP, text="OAT MILK"), SceneObject(BOTTOM)],
        "soup.png": [SceneObject(TOP, text="Tomato soup"), SceneObject(BOTTOM, text="oat flakes")],
    }
    client = QdrantClient(":memory:")
    SoirIngestor(client, "shelves", pipeline=Reading()).add(tmp_path, objects=objects, progress=False)
    with service(tmp_path, pipeline=Reading(), client=client, filled=False) as web:
        for query in ({"query": {"text": "red"}}, {"image": png(shelf(RED, RED)), "box": list(TOP)}):
            assert set(names(search(web, **query))) == set(images)
            assert set(names(search(web, **query, text_in_image="oat"))) == {"oat.png", "soup.png"}
            assert names(search(web, **query, text_in_image="milk oat")) == ["oat.png"]
            assert names(search(web, **query, text_in_image="flour")) == []
            first = {"must": [{"has_id": [ids(web)["soup.png"]]}]}
            assert names(search(web, **query, text_in_image="oat", filter=first)) == ["soup.png"]
        nothing = search(web, query={"text": "red"}, text_in_image=" - ")
        assert (nothing.status_code, "say which words" in nothing.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"id": 1, "instead_of": "a mug"}, "but says what is wanted"),
        ({"id": 1, "but": ""}, "at least 1 character"),
        ({"id": 1, "but": "blue", "weight": 2}, "less than or equal to 1"),
        ({"text": "blue", "but": "red"}, "but"),
    ],
)
def test_what_is_wrong_with_words_is_said(web, query, said):
    answer = search(web, query=query)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text
    examples = search(web, query={"text": "red"}, examples=[{"id": 1, "but": "blue"}])
    assert examples.status_code == 422


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The profile clip with small random towers."""
    from models import tiny_words

    folder = tmp_path_factory.mktemp("clip")
    tiny_words(folder)
    encoder = {"weights": str(folder), "input_size": 32, "dtype": "float32"}
    return Pipeline(Settings.for_profile("clip").but(encoder=encoder, detector={"kind": "none"}))


@pytest.mark.slow
def test_the_answers_are_those_of_the_searcher(tmp_path, clip):
    client = QdrantClient(":memory:")
    images = {
        f"{i}.png": shelf(top, bottom)
        for i, (top, bottom) in enumerate([(RED, GREEN), (BLUE, RED), (GREEN, BLUE)])
    }
    for name, image in images.items():
        (tmp_path / name).write_bytes(png(image))
    boxes = [SceneObject(TOP), SceneObject(BOTTOM)]
    SoirIngestor(client, "shelves", pipeline=clip).add(
        tmp_path, objects=dict.fromkeys(images, boxes), progress=False
    )
    searcher = SoirSearcher(client, "shelves", pipeline=clip)
    with service(tmp_path, pipeline=clip, client=client, filled=False) as web:
        prompted = search(web, query={"text": "a red mug", "prompts": ["a {}"]})
        own = searcher.search(Text("a red mug", ("a {}",)))
        assert _scores(prompted) == pytest.approx([hit.score for hit in own], abs=1e-5)
        query = png(images["0.png"])
        changed = search(web, query, box=list(TOP), but="a blue mug", instead_of="a mug", weight=0.3)
        own = searcher.search(Composed(Crop(query, TOP), "a blue mug", "a mug", 0.3))
        assert _scores(changed) == pytest.approx([hit.score for hit in own], abs=1e-5)
        plain = search(web, query, box=list(TOP))
        assert not np.allclose(_scores(plain), _scores(changed), atol=1e-3)


def _scores(answer):
    assert answer.status_code == 200, answer.text
    return [hit["score"] for hit in answer.json()["hits"]]


def test_a_profile_that_reads_no_words_names_those_that_do(tmp_path, tiny_settings):
    client, pipeline = QdrantClient(":memory:"), Pipeline(tiny_settings)
    (tmp_path / "a.png").write_bytes(png(shelf(RED, BLUE)))
    SoirIngestor(client, "shelves", pipeline=pipeline).add(tmp_path, progress=False)
    with service(tmp_path, pipeline=pipeline, client=client, filled=False) as web:
        assert web.get("/v1").json()["reads_text"] is False
        stored = {"id": ids(web)["a.png"], "but": "a blue mug"}
        for query in ({"text": "a red mug"}, stored):
            answer = search(web, query=query)
            assert answer.status_code == 422
            assert all(profile in answer.json()["detail"] for profile in READING)


def test_openapi_shows_how(web):
    schema = web.get("/openapi.json").json()
    examples = json.dumps(schema["components"]["schemas"]["SearchRequest"]["examples"])
    assert '"but": "a blue mug"' in examples
    assert '"prompts": ["a photo of {}"' in examples
    form = schema["paths"]["/v1/collections/{collection}/search"]["post"]["requestBody"]["content"][
        "multipart/form-data"
    ]
    reference = form["schema"]["properties"]["request"]["contentSchema"]["$ref"]
    assert "but" in schema["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
