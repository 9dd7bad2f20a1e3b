import multiprocessing
import uuid

import numpy as np
import pytest
from conftest import FINGERPRINT, QUICK, scene, store, unit
from qdrant_client import QdrantClient, models

from soir_qdrant.errors import CollectionError, ConfigError, ObjectsError, SoirError
from soir_qdrant.qdrant import schema
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.payload import (
    short_hash,
)
from soir_qdrant.qdrant.points import Points
from soir_qdrant.qdrant.transport import connect
from soir_qdrant.types import Scene


@pytest.mark.parametrize("name", [None, "picture"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_collection_holds_what_was_put_in(client, name, keep):
    held = store(client, vector_name=name)
    held.create(12, FINGERPRINT, keep_objects=keep)
    assert (held.dim, held.has_objects) == (12, keep)
    one = scene()
    point = Points(held).point(7, one, {"soir": {"encoder": short_hash(FINGERPRINT)}, "mine": [1]})
    assert list(Points(held).write([point])) == [(point, None)]
    (record,) = client.retrieve("images", [7], with_vectors=True)
    assert record.payload == point.payload
    assert np.allclose(held.dense(record.vector), one.vector, atol=1e-6)
    if keep:
        assert np.allclose(record.vector["objects"], one.object_vectors, atol=1e-6)
    held.create(12, FINGERPRINT, keep_objects=keep)  # again changes nothing
    assert client.count("images").count == 1
    again = store(client, vector_name=name)
    again.open(12, FINGERPRINT)
    assert again.has_objects is keep


def test_the_collection_is_as_designed(client):
    store(client).create(12, FINGERPRINT, keep_objects=True)
    vectors = client.get_collection("images").config.params.vectors
    assert vectors[""].size == 12
    assert vectors[""].distance == models.Distance.COSINE
    assert vectors["objects"].multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
    assert vectors["objects"].hnsw_config.m == 0
    assert vectors["objects"].on_disk is True


@pytest.mark.parametrize("kind", ["scalar", "binary"])
def test_quantized_vectors_are_rescored(client, kind):
    held = store(client)
    held.create(12, FINGERPRINT, quantization=kind)
    params = client.get_collection("images").config.params.vectors
    assert getattr(params.quantization_config, kind) is not None
    assert params.on_disk is True
    again = store(client)
    again.open(12, FINGERPRINT)
    assert again.request(unit(12), limit=3).params.quantization.rescore is True
    own = models.SearchParams(exact=True)
    assert again.request(unit(12), limit=3, params=own).params == own
    plain = store(QdrantClient(":memory:"))
    plain.create(12, FINGERPRINT)
    assert plain.request(unit(12), limit=3).params is None
    with pytest.raises(ConfigError, match='choose "scalar"'):
        schema.quantization_of("none")


def test_a_prepared_empty_collection_is_taken(client):
    client.create_collection("images", models.VectorParams(size=12, distance=models.Distance.COSINE))
    held = store(client)
    held.create(12, FINGERPRINT)
    list(Points(held).write([Points(held).point(1, scene(), {"soir": {"encoder": short_hash(FINGERPRINT)}})]))
    held.open(12, FINGERPRINT)
    with pytest.raises(CollectionError, match="unknown but for its hash"):
        held.open(12, {**FINGERPRINT, "version": "2"})
    list(Points(held).write([models.PointStruct(id=0, vector=[1.0] * 12, payload={"mine": 1})]))
    with pytest.raises(CollectionError, match="did not write"):
        held.open(12, FINGERPRINT)


def test_without_metadata_the_points_tell(monkeypatch):
    """As with clients and servers before 1.16."""
    client = QdrantClient(":memory:")
    with_metadata = client.create_collection
    calls = []

    def create_collection(collection_name, vectors_config, timeout=None):
        calls.append(collection_name)
        return with_metadata(collection_name, vectors_config)

    monkeypatch.setattr(client, "create_collection", create_collection)
    held = store(client)
    held.create(12, FINGERPRINT)
    assert calls == ["images"]
    assert schema.stored_fingerprint(client.get_collection("images")) is None
    held.open(12, {**FINGERPRINT, "version": "2"})  # nothing in it yet, nothing to protect
    list(Points(held).write([Points(held).point(1, scene(), {"soir": {"encoder": short_hash(FINGERPRINT)}})]))
    with pytest.raises(CollectionError, match=short_hash(schema.as_json(FINGERPRINT))):
        held.open(12, {**FINGERPRINT, "version": "2"})


def test_wrong_collections_are_refused(client):
    held = store(client)
    with pytest.raises(CollectionError, match="no collection 'images': ingest"):
        held.open(12)
    held.create(12, FINGERPRINT)
    with pytest.raises(CollectionError, match="12 numbers, here they have 13"):
        store(client).create(13, FINGERPRINT)
    with pytest.raises(CollectionError, match="no vector 'picture', but an unnamed one"):
        store(client, vector_name="picture").open(12)
    with pytest.raises(CollectionError, match="without vectors of objects"):
        store(client).create(12, FINGERPRINT, keep_objects=True)
    list(Points(held).write([Points(held).point(1, scene(), {"soir": {"encoder": short_hash(FINGERPRINT)}})]))
    with pytest.raises(CollectionError) as caught:
        store(client).open(12, {**FINGERPRINT, "version": "2"})
    text = str(caught.value)
    assert short_hash(FINGERPRINT) in text
    assert '"version": "2"' in text
    if schema.stored_fingerprint(client.get_collection("images")):  # else this client is older than 1.16
        assert "(version)" in text
        assert '"version": "1"' in text
    assert "ingest into a new collection" in text
    client.create_collection("other", {"a": models.VectorParams(size=12, distance=models.Distance.DOT)})
    other = Store(client, "other", vector_name="a", retry=QUICK)
    with pytest.raises(CollectionError, match="Dot"):
        other.open(12)
    with pytest.raises(CollectionError, match="no unnamed vector, but 'a'"):
        Store(client, "other", retry=QUICK).open(12)
    with pytest.raises(ConfigError, match="kept for single objects"):
        store(client, vector_name="objects")


def test_what_differs_is_named():
    one = {"a": 1, "b": {"c": 1, "d": [1]}, "e": None}
    assert schema.differing(one, one) == []
    assert schema.differing(one, {"a": 2, "b": {"c": 1, "d": [2]}, "f": 1}) == ["a", "b.d", "f"]


def test_another_process_may_create_first(monkeypatch):
    client = QdrantClient(":memory:")
    store(client).create(12, FINGERPRINT)
    held = store(client)
    answers = iter([False, True, True])
    monkeypatch.setattr(held, "exists", lambda: next(answers))
    held.create(12, FINGERPRINT)


def test_existing_and_bad_points(client):
    held = store(client)
    held.create(12, FINGERPRINT)
    other = str(uuid.uuid4())
    assert Points(held).stored([]) == {}
    list(Points(held).write([Points(held).point(3, scene(), {}), Points(held).point(other, scene(), {})]))
    assert set(Points(held).stored([1, 3, other, str(uuid.uuid4())])) == {3, other}
    with pytest.raises(SoirError, match="not finite"):
        Points(held).point(1, Scene(4, 4, (), np.full(12, np.nan, np.float32), unit(1, 12)), {})
    with pytest.raises(SoirError, match="12 finite numbers"):
        Points(held).point(1, scene(dim=11), {})


def test_too_many_objects_for_a_multivector():
    held = store(QdrantClient(":memory:"))
    held.create(1024, FINGERPRINT, keep_objects=True)
    rows = np.zeros((1024, 1024), np.float32)
    with pytest.raises(ObjectsError, match="fewer than 1024"):
        Points(held).point(1, Scene(4, 4, (), unit(1024), rows), {})


def test_no_index_and_no_warning_in_local_mode(recwarn):
    store(QdrantClient(":memory:")).create(12, FINGERPRINT)
    assert not recwarn.list


def test_a_folder_serves_one_process(tmp_path):
    def other(path, queue):
        try:
            connect(path)
        except CollectionError as error:
            queue.put(str(error))

    first = connect(tmp_path / "db")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=other, args=(tmp_path / "db", queue))
    process.start()
    assert "open in another process" in queue.get(timeout=30)
    process.join()
    first.close()
    connect(tmp_path / "db").close()
    connect().close()
    with pytest.raises(ConfigError):
        connect(tmp_path, "http://localhost")


def test_a_folder_whose_making_was_killed(tmp_path):
    """Embedded Qdrant creates meta.json and then writes it; between the two it is empty."""
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "meta.json").touch()
    client = connect(tmp_path / "db")
    store(client).create(12, FINGERPRINT)
    client.close()
    client = connect(tmp_path / "db")
    assert client.collection_exists("images")
    client.close()
