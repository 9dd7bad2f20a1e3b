"""Whose image a point is, and where its files lie."""

import pickle

import numpy as np
import pytest
from conftest import QUICK, ColourPipeline, counts, ingestor, picture, stored
from PIL import Image
from qdrant_client import QdrantClient, models

from soir_qdrant.errors import CollectionError, ConfigError
from soir_qdrant.ingest.ingestor import IngestStopped
from soir_qdrant.qdrant import filters
from soir_qdrant.qdrant.identity import point_id
from soir_qdrant.qdrant.payload import PayloadError
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import IngestReport, SceneObject


@pytest.fixture
def twins(tmp_path):
    """Two equal files and another one."""
    folder = tmp_path / "twins"
    folder.mkdir()
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        Image.fromarray(picture(seed)).save(folder / name)
    return folder


def search(client, image, **options):
    return SoirSearcher(client, pipeline=ColourPipeline(), retry=QUICK, **options).search(image)


def test_two_tenants_may_have_equal_pictures(client):
    a, b = (ingestor(client, namespace=name) for name in ("tenant-a", "tenant-b"))
    assert counts(a.add([picture(1)], payloads=[{"shelf": 1}])) == (1, 0, 0)
    assert counts(b.add([picture(1), picture(2)], payloads=[{"shelf": 2}] * 2)) == (2, 0, 0)
    assert counts(b.add([picture(1)], payloads=[{"shelf": 3}], on_exists="replace")) == (0, 0, 0)
    (hit,) = search(client, picture(1), namespace="tenant-a")
    assert hit.payload["shelf"] == 1
    assert len(search(client, picture(1), namespace="tenant-b")) == 2
    assert len(search(client, picture(1))) == 3  # without a namespace: the whole collection
    other = models.Filter(must=[models.FieldCondition(key="shelf", match=models.MatchValue(value=3))])
    searcher = SoirSearcher(client, pipeline=ColourPipeline(), namespace="tenant-a")
    assert searcher.search(picture(1), filter=other) == []
    assert searcher.search_groups(picture(1), "shelf")[0].key == 1
    b.remove(filter=models.Filter())
    assert [hit.payload["shelf"] for hit in search(client, picture(1))] == [1]


def test_an_id_of_another_tenant_is_not_taken_over(client):
    ingestor(client, namespace="a").add([picture(1)], ids=[7])
    report = ingestor(client, namespace="b").add([picture(2)], ids=[7], on_exists="replace")
    assert counts(report) == (0, 0, 1)
    assert "belongs to the namespace 'a'" in report.failed[0].reason
    ingestor(client, namespace="b").remove(ids=[7])
    ingestor(client).remove(ids=[7])
    assert list(stored(client)) == [7]
    ingestor(client, namespace="a").remove(ids=[7])
    assert stored(client) == {}


def test_a_namespace_is_a_text():
    for wrong in ("", 3):
        with pytest.raises(ConfigError, match="namespace"):
            ingestor(QdrantClient(":memory:"), namespace=wrong)
    assert point_id("ab") != point_id("ab", "a") != point_id("ab", "b")


def test_equal_files_are_one_point_that_lists_both_with_their_payloads(client, twins):
    payloads = {"a.png": {"shop": 1}, "b.png": {"shop": 2}}
    assert counts(ingestor(client).add(twins, payloads=payloads)) == (2, 1, 0)
    soir, shop = next((p["soir"], p["shop"]) for p in stored(client).values() if "shop" in p)
    assert soir["uris"] == [str(twins / "a.png"), str(twins / "b.png")]
    assert soir["payloads"] == [None, {"shop": 2}]
    assert shop == 1
    before = stored(client)
    assert counts(ingestor(client).add(twins, payloads=payloads)) == (0, 3, 0)
    assert stored(client) == before


def test_a_moved_folder_that_is_added_again_is_known_where_it_lies_now(client, twins):
    ingestor(client).add(twins)
    moved = twins.rename(twins.with_name("moved"))
    report = ingestor(client).add(moved)
    assert counts(report) == (0, 3, 0)
    assert report.relocated == 2
    assert search(client, picture(2))[0].uri == str(moved / "c.png")
    assert ingestor(client).add(moved).relocated == 0


def test_an_edited_file_replaces_its_old_point(client, twins):
    adder = ingestor(client)
    adder.add(twins)
    Image.fromarray(picture(9)).save(twins / "c.png")
    report = adder.add(twins, on_exists="update")
    assert (report.added, report.updated, report.skipped) == (0, 1, 2)
    assert client.count("images").count == 2
    Image.fromarray(picture(10)).save(twins / "b.png")  # a.png still has what both had
    report = adder.add(twins, on_exists="update")
    assert client.count("images").count == 3
    assert sorted(payload["soir"]["uris"] for payload in stored(client).values()) == [
        [str(twins / name)] for name in ("a.png", "b.png", "c.png")
    ]


def test_images_are_removed_by_id_place_or_filter(client, twins):
    adder = ingestor(client)
    adder.add([twins / name for name in ("a.png", "b.png", "c.png")], ids=[1, 1, 3])
    adder.add([picture(4), picture(5)], ids=[4, 5], payloads=[{"n": 4}, {"n": 5}])
    adder.remove(uris=[twins / "a.png"])
    assert stored(client)[1]["soir"]["uris"] == [str(twins / "b.png")]
    adder.remove(uris=[twins / "b.png"], ids=[3])
    assert set(stored(client)) == {4, 5}
    adder.remove(
        filter=models.Filter(must=[models.FieldCondition(key="n", match=models.MatchValue(value=4))])
    )
    assert set(stored(client)) == {5}
    with pytest.raises(ConfigError, match="give a list"):
        adder.remove(uris="a.png")


def test_a_payload_is_corrected_without_a_model(client, twins):
    pipeline = ColourPipeline()
    adder = ingestor(client, pipeline)
    adder.add([twins / "a.png", twins / "c.png"], ids=[1, 3], payloads=[{"n": 1, "m": 1}, None])
    calls = len(pipeline.calls)
    before = {id_: payload["soir"] for id_, payload in stored(client).items()}
    adder.update_payload({"n": 2}, ids=[1])
    adder.update_payload({"n": 3}, uris=[twins / "c.png"])
    held = stored(client)
    assert [(held[i]["n"], held[i].get("m")) for i in (1, 3)] == [(2, 1), (3, None)]
    assert {id_: payload["soir"] for id_, payload in held.items()} == before
    assert len(pipeline.calls) == calls
    with pytest.raises(PayloadError, match="kept for this package"):
        adder.update_payload({"soir": {}}, ids=[1])
    ingestor(client, namespace="other").update_payload({"n": 9}, filter=models.Filter())
    assert stored(client) == held


def test_no_object_is_not_one_object(client):
    """`min_count(1)` and filters by area, score or place skip the whole image that stands in."""

    class Nothing(ColourPipeline):
        def _scene(self, image, given):
            whole = SceneObject((0.0, 0.0, float(image.width), float(image.height)), stand_in=given is None)
            return super()._scene(image, given or [whole])

    ingestor(client, Nothing()).add(
        [picture(1), picture(2)], ids=[1, 2], objects=[None, [SceneObject((2, 2, 30, 28))]]
    )
    for condition in (
        filters.min_count(1),
        filters.object_larger_than(0.3),
        filters.object_in_region((1, 1, 35, 29), partly=True),
    ):
        records, _ = client.scroll("images", models.Filter(must=[condition]))
        assert [record.id for record in records] == [2]
    assert stored(client)[1]["soir"]["count"] == 0
    hit = next(hit for hit in search(client, picture(1)) if hit.id == 1)
    assert hit.box == (0, 0, 40, 30)


def test_a_collection_with_shards_by_key_is_refused_before_models_run(monkeypatch):
    client, pipeline = QdrantClient(":memory:"), ColourPipeline()
    ingestor(client, pipeline).add([picture(0)])
    get = client.get_collection

    def sharded(*args, **options):
        info = get(*args, **options)
        info.config.params.sharding_method = models.ShardingMethod.CUSTOM
        return info

    monkeypatch.setattr(client, "get_collection", sharded)
    calls = len(pipeline.calls)
    with pytest.raises(CollectionError, match="shard_key="):
        ingestor(client, pipeline).add([picture(1)])
    assert len(pipeline.calls) == calls
    assert counts(ingestor(client, pipeline, shard_key="europe").add([picture(1)])) == (1, 0, 0)


def test_what_every_point_is_refused_for_is_not_the_images_fault(stand_in):
    client = stand_in.client()
    ingestor(client).add([picture(0)])
    stand_in.faults = [403 + 19] * 9  # strict mode, a full disk's quota ...
    with pytest.raises(CollectionError, match="each of the first 2 points was refused"):
        ingestor(client).add([picture(i) for i in range(1, 9)], batch_size=2)


def test_a_stopped_ingestion_pickles_with_its_report():
    error = pickle.loads(pickle.dumps(IngestStopped("stopped", IngestReport(added=3))))
    assert (str(error), error.report.added) == ("stopped", 3)


def test_a_vector_of_the_pixels_alone_has_no_place(client):
    ingestor(client).add([picture(1), np.zeros((20, 20, 3), np.uint8)])
    assert [payload["soir"]["uris"] for payload in stored(client).values()] == [[], []]
