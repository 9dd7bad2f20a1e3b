"""Servers that restart, hurry, lie and hide behind proxies; and what comes of a run then."""

import gzip
import pickle
import ssl
from email.utils import format_datetime

import httpx
import pytest
from conftest import QUICK, ColourPipeline, counts, ingestor, picture, scene, store
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException
from stand_in import Reply

from soir_qdrant import IngestStopped, SoirSearcher
from soir_qdrant.errors import CollectionError, ServerError
from soir_qdrant.qdrant import faults, transport
from soir_qdrant.qdrant.points import Points
from soir_qdrant.qdrant.transport import Retry

HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
OK = (("Content-Type", "application/json"),)
NONSENSE = {
    "408": Reply(408, b"Request Timeout"),
    "a page of HTML": Reply(200, HTML, (("Content-Type", "text/html"),)),
    "nothing": Reply(200),
    "half an answer": Reply(200, b'{"result": {"operation_id": 1, "sta', OK),
    "bad gzip": Reply(200, gzip.compress(b"{}")[:-6] + b"xxxxxx", (*OK, ("Content-Encoding", "gzip"))),
    "too many, half a second": Reply(429, b"{}", (("Retry-After", "0.001"),)),
    "too many, a date": Reply(429, b"{}", (("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),)),
    "too many, no sense": Reply(429, b"{}", (("Retry-After", "soon"),)),
    "a page for what is not there": Reply(404, HTML, (("Content-Type", "text/html"),)),
    "the way to a page": Reply(302, b"", (("Location", "/login"),)),
    "bad gateway": Reply(502, HTML, (("Content-Type", "text/html"),)),
}


class Clock:
    """Stands for the module time: nobody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def connected(stand_in) -> QdrantClient:
    return stand_in.client()


@pytest.mark.parametrize("kind", NONSENSE)
def test_what_a_proxy_says_while_the_server_restarts_is_waited_out(stand_in, kind):
    client = connected(stand_in)
    ready = store(client)
    ready.create(12, {"a": 1})
    points = [Points(ready).point(i, scene(seed=i), {}) for i in range(3)]
    stand_in.faults[:] = [NONSENSE[kind], NONSENSE[kind]]
    assert [reason for _, reason in Points(ready).write(points)] == [None] * 3
    assert client.count("images").count == 3
    stand_in.reads[:] = [NONSENSE[kind]]
    assert ready.exists()


@pytest.mark.parametrize("answer", [Reply(200, HTML), Reply(200, b'{"hello": 1}', OK), Reply(200, b"{", OK)])
def test_a_server_that_is_none_of_qdrant_is_said_to_be_none(stand_in, answer):
    stand_in.reads[:] = [answer] * 3
    with pytest.raises(ServerError, match="not one of Qdrant: see that the URL"):
        store(connected(stand_in)).exists()


def test_a_write_counts_when_the_server_says_that_it_is_completed(stand_in):
    ready = store(connected(stand_in))
    ready.create(12, {"a": 1})
    point = Points(ready).point(1, scene(), {})
    stand_in.faults[:] = ["acknowledged", "acknowledged"]
    assert list(Points(ready).write([point])) == [(point, None)]
    assert len(stand_in.writes) == 3
    stand_in.faults[:] = ["acknowledged"] * 3
    with pytest.raises(ServerError, match="'acknowledged', not that the write is completed"):
        list(Points(ready).write([point]))


def test_the_delay_that_a_server_asks_for_is_kept_in_every_form():
    def asked(value):
        return faults.retry_after(
            QdrantException(f"Retry-After header value is not a valid integer: {value}")
        )

    from datetime import UTC, datetime, timedelta

    assert asked("0.5") == 0.5
    assert 50 < asked(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked("soon") == 0
    assert Retry(first=0.01).wait(1, QdrantException(f"{faults._RETRY_AFTER}7")) == 7
    assert faults.retry_after(ValueError("other")) is None


def test_a_wrong_certificate_is_no_passing_fault():
    def action():
        tries.append(1)
        try:
            raise ssl.SSLCertVerificationError("certificate verify failed: self-signed certificate")
        except ssl.SSLError as cause:
            lost = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
            lost.__cause__ = cause
            raise ResponseHandlingException(lost) from lost

    tries = []
    with pytest.raises(ServerError, match=r"no secure connection .*CERTIFICATE_VERIFY_FAILED.*https://"):
        QUICK(action, "do it")
    assert len(tries) == 1


def test_a_restart_of_two_minutes_is_ridden_out_and_no_longer(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)

    def back_after(seconds):
        def action():
            if clock.now < seconds:
                raise ResponseHandlingException(httpx.ConnectError("refused"))
            return "done"

        return action

    assert Retry()(back_after(100), "write") == "done"
    clock.now = 0.0
    with pytest.raises(ServerError, match=r"did not answer in \d+ attempts, 1\d\d s"):
        Retry()(back_after(1000), "write")
    assert clock.now <= 120
    clock.now = 0.0
    with pytest.raises(ServerError):
        Retry(total=30)(back_after(1000), "write")
    assert clock.now <= 30


@pytest.mark.parametrize("is_first", [True, False], ids=["the collection is opened", "it is open"])
def test_the_timeout_of_a_search_bounds_all_its_tries(stand_in, monkeypatch, is_first):
    client = connected(stand_in)
    ingestor(client).add([picture(0)])
    searcher = SoirSearcher(client, pipeline=ColourPipeline())
    if not is_first:
        searcher.search(picture(0))
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    stand_in.reads[:] = [503] * 500
    with pytest.raises(ServerError):
        searcher.search(picture(0), timeout=2)
    assert 0 < clock.now <= 2  # of the 30 s of the searcher


def test_requests_about_a_collection_have_our_timeout_and_not_the_clients(stand_in):
    """The client's own is 5 s, and neither `collection_exists` nor `get_collection` takes one."""
    client, seconds = connected(stand_in), {}
    inner = client.http.client.send_inner

    def sent(request):
        what = f"{request.method} {request.url.path.removeprefix('/collections/images')}"
        seconds[what] = request.extensions["timeout"]["read"]
        return inner(request)

    client.http.client.send_inner = sent
    ingestor(client, timeout=40).add([picture(0)])
    assert (seconds["GET /exists"], seconds["GET "], seconds["PUT /points"]) == (40, 40, 40)
    SoirSearcher(client, pipeline=ColourPipeline()).search(picture(0), timeout=2)
    assert (seconds["GET "], seconds["POST /points/query"]) == (2, 2)
    client.get_collection("images")
    assert seconds["GET "] == 5  # the user's own calls are as they were


def test_a_first_search_makes_two_requests_and_the_next_one(stand_in):
    client = connected(stand_in)
    ingestor(client).add([picture(i) for i in range(3)])
    searcher = SoirSearcher(client, pipeline=ColourPipeline())
    stand_in.requests.clear()
    searcher.search(picture(1))
    assert stand_in.requests == ["GET /collections/images", "POST /collections/images/points/query"]
    searcher.search(picture(2))
    assert len(stand_in.requests) == 3


def test_a_collection_that_vanishes_in_mid_run_ends_it_with_its_report(stand_in):
    client = connected(stand_in)

    def images():
        for i in range(12):
            if i == 8:
                client.delete_collection("images")
            yield picture(i)

    with pytest.raises(IngestStopped, match="is gone") as caught:
        ingestor(client).add(images(), batch_size=2)
    report = caught.value.report
    assert 0 < report.added < 12
    assert counts(pickle.loads(pickle.dumps(caught.value)).report) == counts(report)
    with pytest.raises(CollectionError, match="no collection 'images'"):
        SoirSearcher(client, pipeline=ColourPipeline()).search(picture(0))


@pytest.mark.parametrize("fault", [400, 403], ids=["refused", "the key may not"])
def test_a_request_that_is_refused_in_mid_run_ends_it_with_its_report(stand_in, fault):
    client = connected(stand_in)

    def images():
        for i in range(12):
            if i == 8:
                stand_in.reads[:] = [fault]
            yield picture(i)

    with pytest.raises(IngestStopped, match="could not look into") as caught:
        ingestor(client).add(images(), batch_size=2)
    assert 0 < caught.value.report.added == client.count("images").count < 12
    assert counts(ingestor(client).add([picture(i) for i in range(12)]))[2] == 0


def test_errors_survive_a_process_pool():
    for error in (faults.Refused("no", 404), faults.Gone("gone"), ServerError("lost")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_writing_goes_on_while_the_next_images_are_computed(stand_in):
    """The server holds back its answer to the first write until the models have seen the second batch."""
    import threading

    client = connected(stand_in)
    second, pipeline, upsert = threading.Event(), ColourPipeline(), client.upsert
    scenes = pipeline.scenes

    def computed(images, objects, seconds):
        if pipeline.calls:
            second.set()
        return scenes(images, objects, seconds)

    def slow(*args, **options):
        assert second.wait(20), "the models waited for the write"
        return upsert(*args, **options)

    pipeline.scenes = computed
    client.upsert = slow
    report = ingestor(client, pipeline).add([picture(i) for i in range(6)], batch_size=2)
    assert counts(report) == (6, 0, 0)


def test_a_lost_server_loses_no_outcome_of_what_was_being_written(stand_in):
    client = connected(stand_in)
    stand_in.faults[:] = [None, None, 503, 503, 503]
    with pytest.raises(IngestStopped) as caught:
        ingestor(client).add([picture(i) for i in range(12)], batch_size=2)
    assert caught.value.report.added == client.count("images").count == 4
    assert counts(ingestor(client).add([picture(i) for i in range(12)])) == (8, 4, 0)
