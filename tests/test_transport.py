import socket
import sqlite3

import httpx
import pytest
from conftest import FINGERPRINT, QUICK, scene, store
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from soir_qdrant.errors import ServerError
from soir_qdrant.qdrant import faults, schema, transport
from soir_qdrant.qdrant.faults import Gone, Refused
from soir_qdrant.qdrant.points import Points
from soir_qdrant.qdrant.transport import MAX_BYTES, MAX_POINTS, Retry, json_size, split


def answer(status: int, content: bytes = b"{}") -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", content, httpx.Headers())


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

    assert faults.is_passing(Lost(grpc.StatusCode.UNAVAILABLE))
    assert not faults.is_passing(Lost(grpc.StatusCode.INVALID_ARGUMENT))

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
    for wait, longest in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert longest / 2 <= wait <= longest

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
    with pytest.raises(ServerError, match=r"collection 'images'.*did not answer in 3 attempts"):
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
    points = [Points(held).point(i, scene(seed=i), {}) for i in range(4)]
    found = [(point.id, reason) for point, reason in Points(held).write(points)]
    assert [reason is None for _, reason in found] == [True, True, False, True]
    assert "no twos" in found[2][1]
    assert set(Points(held).stored(range(4))) == {0, 1, 3}

    def gone(collection_name, points, wait, timeout=None):
        raise answer(404)

    monkeypatch.setattr(client, "upsert", gone)
    with pytest.raises(Gone, match="is gone"):
        list(Points(held).write(points))


@pytest.mark.slow
def test_writes_survive_a_shaky_server(stand_in):
    """Over HTTP: refused for a while, dropped before or after being carried out; each point is in once."""
    client = stand_in.client()
    held = store(client)
    held.create(12, FINGERPRINT, keep_objects=True)
    assert set(stand_in.indexes) == set(schema.INDEXES)
    points = [Points(held).point(i, scene(seed=i), {"a": "ü"}) for i in range(5)]
    for waiting in ([503, 429, None], ["lose", "late", None], [500, "late", None]):
        stand_in.faults[:] = waiting
        assert [reason for _, reason in Points(held).write(points)] == [None] * 5
        assert client.count("images").count == 5
    stand_in.faults[:] = ["late"] * 3
    with pytest.raises(ServerError, match=r"write to collection 'images'.*3 attempts"):
        list(Points(held).write(points))
    stand_in.faults[:] = [413, None, 400, None, None, None]
    reasons = [reason for _, reason in Points(held).write(points)]
    assert [reason is None for reason in reasons] == [True, False, True, True, True]
    assert "400" in reasons[1]
    stand_in.faults[:] = [403]
    with pytest.raises(ServerError, match="API key"):
        list(Points(held).write(points))


def test_writes_are_split_by_size(stand_in, monkeypatch):
    monkeypatch.setattr(transport, "MAX_BYTES", 5000)
    held = store(stand_in.client())
    held.create(12, FINGERPRINT, keep_objects=True)
    points = [Points(held).point(i, scene(seed=i), {}) for i in range(30)]
    assert len(list(Points(held).write(points))) == 30
    assert len(stand_in.writes) > 3
    assert max(stand_in.writes) <= 5000
    assert stand_in.memory.count("images").count == 30


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
    point = Points(held).point(1, scene(5), {"a": "x" * 1000, "b": [1, 2]})
    true = len(point.model_dump_json(exclude_none=True))
    assert 0.8 * true <= json_size(point) <= 2 * true
