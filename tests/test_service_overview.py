"""A collection at a glance, over HTTP: sorted, on a map, its near-duplicates, what failed to get in."""

import numpy as np
import pytest
from conftest import ColourPipeline, painted
from PIL import Image
from qdrant_client import QdrantClient
from service_app import BLUE, BOTTOM, GREEN, RED, TOP, fill, ids, png, service, shelf
from typer.testing import CliRunner

from soir_qdrant import SoirIngestor
from soir_qdrant.qdrant.codes import decode, encode
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.types import Failure, SceneObject

IMAGES = "/v1/collections/shelves/images"


@pytest.fixture
def web(tmp_path):
    with service(tmp_path / "photos") as running:
        yield running


def listed(web, **parameters):
    answer = web.get(IMAGES, params=parameters)
    assert answer.status_code == 200, answer.text
    return [image["name"] for image in answer.json()["images"]]


def test_images_are_listed_in_an_order_of_ones_own(web):
    assert listed(web, sort="name") == ["green-blue.png", "red-blue.png", "red-green.png"]
    assert listed(web, sort="price", descending=True) == ["green-blue.png", "red-blue.png", "red-green.png"]
    first = web.get(IMAGES, params={"sort": "price", "limit": 2}).json()
    rest = web.get(IMAGES, params={"sort": "price", "limit": 2, "after": first["next"]}).json()
    names = [image["name"] for image in first["images"] + rest["images"]]
    assert names == ["red-green.png", "red-blue.png", "green-blue.png"]
    assert rest["next"] is None
    south = '{"must": [{"key": "shop", "match": {"value": "south"}}]}'
    assert listed(web, sort="name", filter=south) == ["green-blue.png", "red-blue.png"]


def test_images_are_sorted_by_size_and_by_how_many_and_how_large_things_they_show(web, tmp_path):
    large = [SceneObject((0.0, 0.0, 100.0, 90.0))]
    Image.fromarray(painted((large[0].box, RED), size=(160, 120))).save(tmp_path / "large.png")
    ingestor = SoirIngestor(web.service.client, "shelves", pipeline=ColourPipeline())
    ingestor.add([tmp_path / "large.png"], objects=[large], progress=False)
    assert listed(web, sort="largest", descending=True)[0] == "large.png"
    assert listed(web, sort="pixels", descending=True)[0] == "large.png"
    assert listed(web, sort="objects")[0] == "large.png"


def test_images_without_the_key_come_last_either_way(web):
    known = ids(web)
    web.service.client.set_payload("shelves", {"rank": 1}, points=[known["red-green.png"]])
    for descending in (False, True):
        assert listed(web, sort="rank", descending=descending)[0] == "red-green.png"
    assert web.get(IMAGES, params={"sort": "rank", "after": known["red-blue.png"]}).status_code == 422


@pytest.mark.slow
def test_codes_of_different_lengths_lie_on_one_map(web):
    client = web.service.client
    (point, *_), _ = client.scroll("shelves")
    objects = point.payload["soir"]["objects"]
    code = encode(decode(objects[0]["code"]), 2)
    client.set_payload("shelves", {"objects": [{**objects[0], "code": code}]}, points=[point.id], key="soir")
    answer = web.get("/v1/collections/shelves/map")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["points"]) == 5


def test_near_duplicates_on_edge_are_refused_with_a_sentence(tmp_path):
    edge = pytest.importorskip(
        "soir_qdrant.qdrant.edge.client", reason="qdrant-edge-py: the extra edge has it"
    )
    with service(tmp_path / "photos", client=edge.EdgeClient(tmp_path / "edge")) as web:
        answer = web.get("/v1/collections/shelves/duplicates")
        assert answer.status_code == 422, answer.text
        assert "Qdrant Edge" in answer.json()["detail"]
        for view in ("map", "facets", "images", "images?sort=name", "ingest"):
            assert web.get(f"/v1/collections/shelves/{view}").status_code in (200, 404), view


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_objects_that_look_alike_lie_together_on_the_map(tmp_path, method):
    """Twelve images, each with two of three colours: the objects of one colour are neighbours."""
    client, rng = QdrantClient(":memory:"), np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    objects, colours = {}, {}
    for i in range(12):
        pair = [(RED, GREEN), (RED, BLUE), (GREEN, BLUE)][i % 3]
        shades = [tuple(np.clip(np.array(c) + rng.integers(-6, 6, 3), 0, 255)) for c in pair]
        name = f"{i}.png"
        Image.fromarray(painted((TOP, shades[0]), (BOTTOM, shades[1]))).save(tmp_path / "photos" / name)
        objects[name], colours[name] = [SceneObject(TOP), SceneObject(BOTTOM)], pair
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(
        tmp_path / "photos", objects=objects, progress=False
    )
    with service(tmp_path, client=client, filled=False) as web:
        names = {id_: name for name, id_ in ids(web).items()}
        answer = web.get("/v1/collections/shelves/map", params={"method": method}).json()
    assert (answer["images"], answer["total"], len(answer["points"])) == (12, 12, 24)
    xy = np.array([[point["x"], point["y"]] for point in answer["points"]])
    own = [colours[names[point["id"]]][point["object"]] for point in answer["points"]]
    nearest = ((xy[:, None] - xy) ** 2).sum(-1) + 9 * np.eye(len(xy))
    assert np.mean([own[i] == own[j] for i, j in enumerate(nearest.argmin(1))]) > 0.9


def test_a_map_is_a_sample_and_says_of_how_many(web):
    answer = web.get("/v1/collections/shelves/map", params={"limit": 3}).json()
    assert len(answer["points"]) == 3
    assert answer["total"] == 3
    south = '{"must": [{"key": "shop", "match": {"value": "south"}}]}'
    some = web.get("/v1/collections/shelves/map", params={"filter": south}).json()
    assert (some["total"], len(some["points"])) == (2, 4)
    none = '{"must": [{"key": "shop", "match": {"value": "west"}}]}'
    assert web.get("/v1/collections/shelves/map", params={"filter": none}).json()["points"] == []


def test_a_collection_without_codes_has_no_map_and_says_so(tmp_path):
    client = QdrantClient(":memory:")
    (tmp_path / "a.png").write_bytes(png(shelf(RED, BLUE)))
    SoirIngestor(client, "shelves", pipeline=ColourPipeline(), object_codes=0).add(
        tmp_path / "a.png", progress=False
    )
    with service(tmp_path, client=client, filled=False) as web:
        answer = web.get("/v1/collections/shelves/map")
    assert answer.status_code == 422
    assert "no codes of objects" in answer.json()["detail"]


def test_images_that_are_nearly_the_same_are_grouped(tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    image = Image.fromarray(shelf(RED, GREEN))
    (tmp_path / "copies").mkdir()
    image.save(tmp_path / "copies" / "copy.jpg", quality=95)
    objects = {"copy.jpg": [SceneObject(TOP), SceneObject(BOTTOM)]}
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(
        tmp_path / "copies", objects=objects, progress=False
    )
    with service(tmp_path, client=client, filled=False) as web:
        answer = web.get("/v1/collections/shelves/duplicates", params={"threshold": 0.98}).json()
        (group,) = answer["groups"]
        assert {image["name"] for image in group["images"]} == {"copy.jpg", "red-green.png"}
        assert group["similarity"] >= 0.98
        all_ = web.get("/v1/collections/shelves/duplicates", params={"threshold": 0.5}).json()
        assert len(all_["groups"][0]["images"]) == 4


def test_what_failed_in_the_last_ingest_of_the_command_line_is_shown(tmp_path, monkeypatch):
    from soir_qdrant.cli.main import app

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(shelf(RED, BLUE)))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    client = QdrantClient(":memory:")
    ingestor = SoirIngestor(client, "shelves", pipeline=ColourPipeline())
    monkeypatch.setattr("soir_qdrant.cli.collection.open_ingestor", lambda *_, **__: ingestor)
    folder = ["--path", str(tmp_path / "db"), "--collection", "shelves"]
    run = CliRunner().invoke(app, ["ingest", str(tmp_path / "photos"), *folder])
    assert run.exit_code == 1  # some failed
    with service(tmp_path, client=client, filled=False, roots=(tmp_path,)) as web:
        last = web.get("/v1/collections/shelves/ingest").json()
    assert (last["counts"]["added"], last["failures"]) == (1, 1)
    assert last["failed"][0]["name"] == "broken.jpg"
    assert str(tmp_path) not in last["failed"][0]["reason"]
    assert last["time"].startswith("20")


def test_each_namespace_knows_its_own_last_ingest_and_the_fingerprint_stays(tmp_path):
    from soir_qdrant.qdrant.last_ingest import MAX_NAMED, recall, remember

    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    before = client.get_collection("shelves").config.metadata["soir"]
    store = Store(client, "shelves", namespace="us")
    remember(store, {"added": 3}, [Failure(f"{i}.jpg", "x" * 999) for i in range(300)])
    assert recall(client, "shelves", None) is None
    ours = recall(client, "shelves", "us")
    assert (ours["failures"], len(ours["failed"])) == (300, MAX_NAMED)
    remember(store, {"skipped": 3}, [])
    assert recall(client, "shelves", "us")["counts"] == {"skipped": 3}
    assert client.get_collection("shelves").config.metadata["soir"] == before
