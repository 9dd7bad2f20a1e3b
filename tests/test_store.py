import multiprocessing
import socket
import sqlite3
import uuid

import httpx
import numpy as np
import pytest
from conftest import ColourPipeline, picture
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from soir_qdrant import schema, transport
from soir_qdrant.errors import CollectionError, ConfigError, ObjectsError, ServerError, SoirError
from soir_qdrant.payload import (
    PayloadError,
    build_payload,
    check_id,
    clean_payload,
    decode,
    encode,
    match_box,
    object_area,
    point_id,
    short_hash,
    shown,
)
from soir_qdrant.store import Store
from soir_qdrant.transport import MAX_BYTES, MAX_POINTS, Refused, Retry, connect, json_size, split
from soir_qdrant.types import LoadedImage, Scene, SceneObject

FINGERPRINT = ColourPipeline().fingerprint
QUICK = Retry(attempts=3, first=0.001, most=0.002)


def answer(status: int, content: bytes = b"{}") -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", content, httpx.Headers())


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def scene(count: int = 2, dim: int = 12, seed: int = 0) -> Scene:
    objects = tuple(SceneObject((5.0 * i, 0.0, 5.0 * i + 4, 6.0), label=f"l{i}") for i in range(count))
    return Scene(40, 30, objects, unit(dim, seed=seed), unit(count, dim, seed=seed + 1))


def store(client: QdrantClient, **options) -> Store:
    made = Store(client, "images", retry=QUICK, **options)
    return made


# -- the collection ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "picture"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_collection_holds_what_was_put_in(client, name, keep):
    held = store(client, vector_name=name)
    held.create(12, FINGERPRINT, keep_objects=keep)
    assert (held.dim, held.has_objects) == (12, keep)
    one = scene()
    point = held.point(7, one, {"soir": {"encoder": short_hash(FINGERPRINT)}, "mine": [1]})
    assert list(held.upsert([point])) == [(point, None)]
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


def test_a_prepared_empty_collection_is_taken(client):
    client.create_collection("images", models.VectorParams(size=12, distance=models.Distance.COSINE))
    held = store(client)
    held.create(12, FINGERPRINT)
    list(held.upsert([held.point(1, scene(), {"soir": {"encoder": short_hash(FINGERPRINT)}})]))
    held.open(12, FINGERPRINT)
    with pytest.raises(CollectionError, match="unknown but for its hash"):
        held.open(12, {**FINGERPRINT, "version": "2"})
    list(held.upsert([models.PointStruct(id=0, vector=[1.0] * 12, payload={"mine": 1})]))
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
    list(held.upsert([held.point(1, scene(), {"soir": {"encoder": short_hash(FINGERPRINT)}})]))
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
    list(held.upsert([held.point(1, scene(), {"soir": {"encoder": short_hash(FINGERPRINT)}})]))
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
    assert held.existing([]) == set()
    list(held.upsert([held.point(3, scene(), {}), held.point(other, scene(), {})]))
    assert held.existing([1, 3, other, str(uuid.uuid4())]) == {3, other}
    with pytest.raises(SoirError, match="not finite"):
        held.point(1, Scene(4, 4, (), np.full(12, np.nan, np.float32), unit(1, 12)), {})
    with pytest.raises(SoirError, match="12 finite numbers"):
        held.point(1, scene(dim=11), {})


def test_too_many_objects_for_a_multivector():
    held = store(QdrantClient(":memory:"))
    held.create(1024, FINGERPRINT, keep_objects=True)
    rows = np.zeros((1024, 1024), np.float32)
    with pytest.raises(ObjectsError, match="fewer than 1024"):
        held.point(1, Scene(4, 4, (), unit(1024), rows), {})


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


# -- errors and retries ------------------------------------------------------------------------------------

PASSING = [
    answer(429),
    answer(500),
    answer(503),
    ResponseHandlingException(httpx.ConnectError("refused")),
    ResponseHandlingException(httpx.ReadTimeout("timed out")),
    ResourceExhaustedResponse("slow down", 0),
]
LASTING = [answer(400), answer(404), answer(413), answer(422), ResponseHandlingException(ValueError("odd"))]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_passing_errors_are_tried_again(error):
    tries = []

    def action():
        tries.append(1)
        if len(tries) < 3:
            raise error
        return "done"

    assert QUICK(action, "do it") == "done"
    tries.clear()
    with pytest.raises(ServerError, match="could not do it: Qdrant did not answer in 2 attempts"):
        Retry(2, 0.001, 0.001)(action, "do it")
    assert len(tries) == 2


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_lasting_errors_are_not(error):
    tries = []

    def action():
        tries.append(1)
        raise error

    with pytest.raises(Refused, match="could not do it"):
        QUICK(action, "do it")
    assert len(tries) == 1


def test_other_errors():
    def raises(error):
        def action():
            raise error

        return action

    with pytest.raises(ServerError, match="API key"):
        QUICK(raises(answer(403)), "do it")
    with pytest.raises(ServerError, match="writable and has space"):
        QUICK(raises(sqlite3.OperationalError("database or disk is full")), "do it")
    with pytest.raises(KeyError):  # a bug is no matter of the server
        QUICK(raises(KeyError("x")), "do it")


def test_grpc_errors():
    grpc = pytest.importorskip("grpc")

    class Lost(grpc.RpcError):
        def __init__(self, code):
            self.held = code

        def code(self):
            return self.held

        def details(self):
            return "the details"

    assert transport.is_passing(Lost(grpc.StatusCode.UNAVAILABLE))
    assert not transport.is_passing(Lost(grpc.StatusCode.INVALID_ARGUMENT))

    def action():
        raise Lost(grpc.StatusCode.INVALID_ARGUMENT)

    with pytest.raises(Refused, match="INVALID_ARGUMENT: the details"):
        QUICK(action, "do it")


def test_waits_grow_and_are_bounded(monkeypatch):
    waits = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)

    def action():
        raise answer(503)

    with pytest.raises(ServerError):
        Retry(6, 1.0, 5.0)(action, "do it")
    for wait, most in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert most / 2 <= wait <= most

    def asked():
        raise ResourceExhaustedResponse("slow down", 7)

    waits.clear()
    with pytest.raises(ServerError):
        Retry(2, 1.0, 5.0)(asked, "do it")
    assert waits == [7]


def test_a_dead_server_is_named_quickly():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = QdrantClient(url=f"http://127.0.0.1:{port}", check_compatibility=False)
    with pytest.raises(ServerError, match=r"look for collection 'images'.*did not answer in 3 attempts"):
        store(client).create(12, FINGERPRINT)


def test_a_refused_point_does_not_stop_the_others(monkeypatch):
    client = QdrantClient(":memory:")
    held = store(client)
    held.create(12, FINGERPRINT)
    upsert = client.upsert

    def picky(collection_name, points, wait, timeout=None):
        if any(point.id == 2 for point in points):
            raise answer(400, b'{"status":{"error":"no twos"}}')
        return upsert(collection_name, points)

    monkeypatch.setattr(client, "upsert", picky)
    points = [held.point(i, scene(seed=i), {}) for i in range(4)]
    found = [(point.id, reason) for point, reason in held.upsert(points)]
    assert [reason is None for _, reason in found] == [True, True, False, True]
    assert "no twos" in found[2][1]
    assert held.existing(range(4)) == {0, 1, 3}

    def gone(collection_name, points, wait, timeout=None):
        raise answer(404)

    monkeypatch.setattr(client, "upsert", gone)
    with pytest.raises(CollectionError):
        list(held.upsert(points))


def test_writes_survive_a_shaky_server(stand_in):
    """Over HTTP: refused for a while, dropped before or after being carried out; each point is in once."""
    client = QdrantClient(url=stand_in.url, check_compatibility=False)
    held = store(client)
    held.create(12, FINGERPRINT, keep_objects=True)
    assert set(stand_in.indexes) == set(schema.INDEXES)
    points = [held.point(i, scene(seed=i), {"a": "ü"}) for i in range(5)]
    for faults in ([503, 429, None], ["lose", "late", None], [500, "late", None]):
        stand_in.faults[:] = faults
        assert [reason for _, reason in held.upsert(points)] == [None] * 5
        assert client.count("images").count == 5
    stand_in.faults[:] = ["late"] * 3
    with pytest.raises(ServerError, match=r"write to collection 'images'.*3 attempts"):
        list(held.upsert(points))
    stand_in.faults[:] = [413, None, 400, None, None, None]
    reasons = [reason for _, reason in held.upsert(points)]
    assert [reason is None for reason in reasons] == [True, False, True, True, True]
    assert "400" in reasons[1]
    stand_in.faults[:] = [403]
    with pytest.raises(ServerError, match="API key"):
        list(held.upsert(points))


def test_writes_are_split_by_size(stand_in, monkeypatch):
    monkeypatch.setattr(transport, "MAX_BYTES", 5000)
    held = store(QdrantClient(url=stand_in.url, check_compatibility=False))
    held.create(12, FINGERPRINT, keep_objects=True)
    points = [held.point(i, scene(seed=i), {}) for i in range(30)]
    assert len(list(held.upsert(points))) == 30
    assert len(stand_in.writes) > 3
    assert max(stand_in.writes) <= 5000
    assert stand_in.held.count("images").count == 30


def test_own_timeout_where_the_client_has_one():
    client = QdrantClient(":memory:")
    seen = {}

    class Client:
        def upsert(self, collection_name, points, wait=True, timeout=None):
            seen["new"] = timeout

    class Old:
        def upsert(self, collection_name, points, wait=True, **kwargs):
            seen["old"] = kwargs

    held = store(client, timeout=33)
    for kind in (Client(), Old()):
        held.call("write to", kind.upsert, points=[], wait=True)
    assert seen == {"new": 33, "old": {}}


@given(st.lists(st.integers(1, 4_000_000), max_size=200))
def test_writes_are_bounded(sizes):
    points = [models.PointStruct(id=i, vector=[0.0], payload={}) for i in range(len(sizes))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "json_size", lambda point: sizes[point.id])
        batches = list(split(points))
    assert [point.id for batch in batches for point in batch] == list(range(len(sizes)))
    assert all(len(batch) <= MAX_POINTS for batch in batches)
    assert all(len(batch) == 1 or sum(sizes[p.id] for p in batch) <= MAX_BYTES for batch in batches)


def test_sizes_are_estimated_from_above():
    held = store(QdrantClient(":memory:"))
    held.create(12, FINGERPRINT, keep_objects=True)
    point = held.point(1, scene(5), {"a": "x" * 1000, "b": [1, 2]})
    true = len(point.model_dump_json(exclude_none=True))
    assert 0.8 * true <= json_size(point) <= 2 * true


# -- ids and payload ---------------------------------------------------------------------------------------


def test_ids():
    assert point_id("ab") == point_id("ab") != point_id("ac")
    assert uuid.UUID(point_id("ab")).version == 5
    some = uuid.uuid4()
    assert check_id(some) == check_id(str(some).upper()) == check_id(some.hex) == str(some)
    assert check_id(np.int64(3)) == 3
    for bad in ("img_001", -1, 1.5, True, 2**64, None, "12"):
        with pytest.raises(ConfigError, match="whole numbers from 0 and UUIDs"):
            check_id(bad)


def test_payload_is_as_designed():
    one = scene(2)
    image = LoadedImage(picture(1), "a.png", "/x/a.png", "ff", None)
    payload = build_payload(image, one, "e1", {"mine": 3}, 8)
    codes = [item.pop("code") for item in payload["soir"]["objects"]]
    assert [len(decode(code)) for code in codes] == [8, 8]
    assert payload == {
        "soir": {
            "uri": "/x/a.png",
            "width": 40,
            "height": 30,
            "sha256": "ff",
            "encoder": "e1",
            "objects": [
                {"box": [0.0, 0.0, 4.0, 6.0], "score": 1.0, "area": 0.02, "label": "l0"},
                {"box": [5.0, 0.0, 9.0, 6.0], "score": 1.0, "area": 0.02, "label": "l1"},
            ],
            "labels": ["l0", "l1"],
            "count": 2,
        },
        "mine": 3,
    }
    assert "code" not in build_payload(image, one, "e1", {}, 0)["soir"]["objects"][0]


def test_areas():
    box, mask = (2.0, 3.0, 6.5, 7.0), np.zeros((30, 40), bool)
    assert object_area(SceneObject(box), 40, 30) == 4.5 * 4 / 1200
    assert object_area(SceneObject(box, mask), 40, 30) == 4.5 * 4 / 1200  # an empty mask is the whole box
    mask[0:5, 0:5] = True  # 2 x 3 pixels of it in the box
    assert object_area(SceneObject(box, mask), 40, 30) == 6 / 1200
    assert object_area(SceneObject(box, np.eye(4, 5, dtype=bool)), 40, 30) == 4 / 1200


def test_users_payloads():
    some = uuid.uuid4()
    assert clean_payload(None) == {}
    assert clean_payload({"id": some, "list": (1, 2)}) == {"id": str(some), "list": [1, 2]}
    for bad, message in [
        ({"soir": 1}, "kept for this package"),
        ([1], "not a dict"),
        ({1: 2}, "text keys"),
        ({"a": float("nan")}, "JSON"),
        ({"a": object()}, "JSON"),
    ]:
        with pytest.raises(PayloadError, match=message):
            clean_payload(bad)


@given(st.integers(0, 1000), st.integers(1, 64))
def test_codes_keep_the_direction(seed, count):
    row = unit(64, seed=seed)
    kept, head = decode(encode(row, count)), row[:count]
    assert kept.shape == (count,)
    cosine = kept @ head / np.linalg.norm(kept) / np.linalg.norm(head)
    assert cosine > 0.999
    assert len(decode(encode(row, 999))) == 64
    assert not decode(encode(np.zeros(5, np.float32), 4)).any()


def test_match_box():
    rows = unit(4, 64, seed=3)
    objects = [{"box": [i, 0, i + 1, 1], "code": encode(row, 32)} for i, row in enumerate(rows)]
    payload = {"soir": {"objects": objects}}
    for i, row in enumerate(rows):
        assert match_box(payload, row, rows.tolist()) == (i, 0, i + 1, 1)
        assert match_box(payload, row, None) == (i, 0, i + 1, 1)
        assert match_box(payload, row, rows[:2].tolist()) == (i, 0, i + 1, 1)  # rows that do not fit
    bare = shown(payload)
    assert all("code" not in item for item in bare["soir"]["objects"])
    assert "code" in objects[0]
    assert match_box(bare, rows[0], None) is None
    assert match_box({"soir": {"objects": bare["soir"]["objects"][:1]}}, rows[0], None) == (0, 0, 1, 1)
    assert match_box({}, rows[0], None) is None
    assert shown({"mine": 1}) == {"mine": 1}
