"""What a stranger tries at the service: files that are not its own, other sites, floods, tokens."""

import io
import os
import socket
import tempfile
import threading
import time

import httpx
import numpy as np
import pytest
from browser import running
from conftest import ColourPipeline
from PIL import Image
from qdrant_client import QdrantClient
from service_app import RED, fill, ids, png, search, service, shelf, wait_until

from soir_qdrant import SoirIngestor
from soir_qdrant.rerank.kinds import register_reranker
from soir_qdrant.rerank.q_perturbation.blip2 import Blip2Matcher
from soir_qdrant.rerank.unranked import Unranked

TOKEN = "a long enough token"
ROUTES = ("thumbnail", "crop?object=0", "mask?object=0", "heat?search=x")


def _tamper(client: QdrantClient, name: str, uri: str) -> None:
    """Point the stored image at another file, as one could who may write to Qdrant."""
    points, _ = client.scroll("shelves", limit=10)
    (point,) = [one for one in points if one.payload["soir"]["uri"].endswith(name)]
    client.set_payload("shelves", {"uri": uri, "uris": [uri]}, points=[point.id], key="soir")


@pytest.fixture
def planted(tmp_path):
    """A client, and a service for its pictures below photos/."""
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    with service(tmp_path, client=client, filled=False, roots=(tmp_path / "photos",)) as web:
        yield client, web, tmp_path


def test_only_pictures_of_the_collection_below_the_root_are_opened(planted):
    client, web, folder = planted
    known = ids(web)
    address = f"/v1/collections/shelves/images/{known['red-green.png']}/thumbnail"
    assert web.get(address).headers["content-type"] == "image/jpeg"
    secret = folder / "secret.png"
    secret.write_bytes((folder / "photos" / "red-green.png").read_bytes())  # even the very same content
    name = "red-green.png"
    for uri in (str(secret), f"{folder}/photos/../secret.png", "/etc/passwd", "photos/red-green.png"):
        _tamper(client, name, uri)
        name = uri
        answer = web.get(f"{address}?side=99")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_link_that_leads_out_of_the_root_is_not_followed(planted):
    _, web, folder = planted
    inside = folder / "photos" / "red-green.png"
    inside.rename(folder / "moved.png")
    inside.symlink_to(folder / "moved.png")
    answer = web.get(f"/v1/collections/shelves/images/{ids(web)['red-green.png']}/thumbnail")
    assert answer.status_code == 404
    assert "outside" in answer.json()["detail"]


def test_a_file_that_was_changed_since_is_not_shown(planted):
    _, web, folder = planted
    Image.fromarray(shelf(RED, RED)).save(folder / "photos" / "red-green.png")
    answer = web.get(f"/v1/collections/shelves/images/{ids(web)['red-green.png']}/thumbnail")
    assert answer.status_code == 404
    assert "another image than was ingested" in answer.json()["detail"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_place_of_a_picture_holds_nothing_up(planted):
    _, web, folder = planted
    (folder / "photos" / "red-green.png").unlink()
    os.mkfifo(folder / "photos" / "red-green.png")
    answer = web.get(f"/v1/collections/shelves/images/{ids(web)['red-green.png']}/thumbnail")
    assert "no file" in answer.json()["detail"]


def test_no_address_reads_a_file_by_its_path(planted):
    _, web, _ = planted
    for id_ in ("..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "0", "-1"):
        for route in ROUTES:
            for images in ("/v1/collections/shelves/images", "/v1/images"):
                assert web.get(f"{images}/{id_}/{route}").status_code in (404, 410, 422)
    for path in ("/page/../settings.py", "/page/%2e%2e/settings.py", "/page/..%2fsettings.py"):
        assert web.get(path).status_code == 404


@pytest.mark.slow
def test_no_request_makes_the_service_call_another_host(planted):
    client, web, folder = planted
    known = ids(web)["red-green.png"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/red-green.png"
        _tamper(client, "red-green.png", address)
        for route in ROUTES:
            assert web.get(f"/v1/collections/shelves/images/{known}/{route}").status_code in (404, 410, 422)
        assert search(web, query={"id": address}).status_code == 422
        assert search(web, query={"id": known, "object": 0}).status_code == 404
        form = {"data": {"image": address, "request": "{}"}, "files": {"mask": png(shelf(RED, RED))}}
        assert web.post("/v1/collections/shelves/search", **form).status_code == 422
        with service(folder, client=client, filled=False, roots=(folder,), writable=True) as writable:
            for path in (address, f"file://{folder}/photos"):
                added = writable.post("/v1/collections/shelves/images", json={"paths": [path]})
                assert added.status_code == 403
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


def test_pictures_are_made_anew_without_what_a_camera_wrote_into_them(tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "the photographer"  # turned by 90 degrees; artist
    Image.fromarray(shelf(RED, RED)).save(tmp_path / "photos" / "turned.jpg", exif=exif)
    client = QdrantClient(":memory:")
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(tmp_path / "photos", progress=False)
    with service(tmp_path, client=client, filled=False) as web:
        answer = web.get(f"/v1/collections/shelves/images/{ids(web)['turned.jpg']}/thumbnail")
    assert b"photographer" not in answer.content
    assert Image.open(io.BytesIO(answer.content)).size == (60, 80)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    with service(tmp_path / "photos", max_pixels=10_000) as web:
        large = png(np.zeros((200, 200, 3), np.uint8))
        answer = search(web, large)
    assert answer.status_code == 422
    assert "200x200 pixels" in answer.json()["detail"]


def test_too_many_bytes_are_refused_whether_or_not_they_are_announced(tmp_path):
    with service(tmp_path / "photos", max_bytes=2000) as web:
        address = "/v1/collections/shelves/search"
        assert web.post(address, content=b"x" * 3000).status_code == 413
        chunks = (b"x" * 500 for _ in range(10))
        assert web.post(address, content=chunks).status_code == 413


def test_another_site_can_neither_post_here_nor_pose_as_this_service(tmp_path):
    with service(tmp_path / "photos") as web:
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = web.post("/v1/collections/shelves/search", json={}, headers=headers)
            assert answer.status_code == 403
        assert (
            web.get("/v1", headers={"Host": "evil.example"}).status_code == 421
        )  # a name pointed at 127.0.0.1
        assert (
            "access-control-allow-origin"
            not in web.get("/v1", headers={"Origin": "http://evil.example"}).headers
        )
        assert web.get("/").headers["content-security-policy"].startswith("default-src 'self';")


def test_a_service_for_a_namespace_knows_nothing_of_the_others(tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    Image.fromarray(shelf(RED, RED)).save(tmp_path / "ours" / "own.png")
    SoirIngestor(client, "shelves", pipeline=ColourPipeline(), namespace="us").add(
        tmp_path / "ours", progress=False
    )
    with service(tmp_path, client=client, filled=False) as web:
        known = ids(web)
    with service(tmp_path, client=client, filled=False, namespace="us", writable=True) as web:
        assert set(ids(web)) == {"own.png"}
        assert web.get("/v1/collections").json() == [{"name": "shelves", "count": 1}]
        assert web.get("/v1/collections/shelves/facets").json()["labels"] == []
        assert [hit["name"] for hit in search(web, png(shelf(RED, RED))).json()["hits"]] == ["own.png"]
        theirs = known["red-green.png"]
        assert web.get(f"/v1/collections/shelves/images/{theirs}").status_code == 404
        assert web.get(f"/v1/collections/shelves/images/{theirs}/thumbnail").status_code == 404
        assert search(web, query={"id": theirs, "object": 0}).status_code == 404
        gone = web.request("DELETE", "/v1/collections/shelves/images", json={"ids": [theirs]})
        assert gone.json() == {"deleted": 0}
    assert client.count("shelves").count == 4


def test_an_image_is_shown_from_any_of_its_places(tmp_path):
    client = QdrantClient(":memory:")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(shelf(RED, RED)).save(tmp_path / "photos" / name)
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(tmp_path / "photos", progress=False)
    with service(tmp_path, client=client, filled=False) as web:
        (image,) = web.get("/v1/collections/shelves/images").json()["images"]
        (tmp_path / "photos" / image["name"]).unlink()
        assert web.get(f"/v1/collections/shelves/images/{image['id']}/thumbnail").status_code == 200


def test_a_token_opens_the_service_and_guessing_it_does_not(tmp_path):
    with service(tmp_path / "photos", token=TOKEN) as web:
        assert web.get("/healthz").status_code == 200
        assert web.get("/").status_code == 200
        for path in ("/v1", "/metrics", "/v1/collections/shelves/images/1/thumbnail"):
            assert web.get(path).status_code == 401
        assert web.get("/v1", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        guesses = [
            web.get("/v1", headers={"Authorization": f"Bearer guess {i}"}).status_code for i in range(15)
        ]
        assert set(guesses[:10]) == {401}
        assert guesses[-1] == 429
        assert web.get("/v1", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_page_exchanges_the_token_for_a_cookie_that_scripts_cannot_read(tmp_path):
    with service(tmp_path / "photos", token=TOKEN) as web:
        assert web.post("/v1/session", json={"token": "wrong"}).status_code == 401
        cookie = web.post("/v1/session", json={"token": TOKEN}).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert web.get("/v1").status_code == 200


def test_addresses_that_others_reach_need_a_token():
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from soir_qdrant.errors import ConfigError
    from soir_qdrant.service.settings import ServiceSettings

    with pytest.raises(ConfigError, match="set a token"):
        ServiceSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="at least 16"):
        ServiceSettings(host="0.0.0.0", token="short")
    assert ServiceSettings(host="0.0.0.0", token=TOKEN).host == "0.0.0.0"
    assert ServiceSettings(host="127.0.0.2").token is None


def test_one_client_cannot_keep_the_models_to_itself(tmp_path):
    with service(tmp_path / "photos", rate=0.01, burst=3) as web:
        picture = png(shelf(RED, RED))
        answers = [search(web, picture) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    for address in ("/v1/images", "/v1/collections/shelves/images"):
        with service(tmp_path / "photos", rate=0.01, burst=1) as web:
            mask = f"{address}/{ids(web)['red-green.png']}/mask?object=0"
            assert [web.get(mask).status_code for _ in range(2)] == [200, 429]


def test_log_lines_and_ids_cannot_be_forged(tmp_path, caplog):
    caplog.set_level("INFO", "soir_qdrant.service")
    with service(tmp_path / "photos") as web:
        answer = web.get("/v1/x%0afake line", headers={"X-Request-ID": "mine\tforged"})
        assert "mine" not in answer.headers["x-request-id"]
        assert (
            web.get("/v1", headers={"X-Request-ID": "trace-12345678"}).headers["x-request-id"]
            == "trace-12345678"
        )
    assert any("trace-12345678 GET /v1 200" in record.getMessage() for record in caplog.records)
    assert not any("\nfake" in record.getMessage() for record in caplog.records)


def test_what_a_client_searches_with_never_touches_the_disk(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("an upload went to the disk")

    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    with service(tmp_path / "photos") as web:
        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
        image = png(noise)
        assert len(image) > 2_000_000
        assert search(web, image, box=[10, 10, 50, 50]).status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        '{"box": [NaN, 0, 10, 10]}',
        '{"box": [0, 0, 1e999, 10]}',
        '{"score_threshold": NaN}',
        '{"limit": 1e30}',
        '{"filter": ' + '{"must": [' * 3000 + "]}" * 3000 + "}",
        '{"group_by": "a\\u0000b"}',
        "[" * 100_000,
    ],
)
def test_strange_numbers_and_deep_json_are_wrong_requests_not_failures(tmp_path, request_):
    with service(tmp_path / "photos") as web:
        form = {"files": {"image": png(shelf(RED, RED))}, "data": {"request": request_}}
        assert web.post("/v1/collections/shelves/search", **form).status_code in (200, 422)
        address = "/v1/collections/shelves/images"
        assert web.get(address, params={"filter": request_[:20_000]}).status_code in (200, 422)
        box = {"box": "nan,0,inf,9"}
        assert web.get(f"{address}/{ids(web)['red-green.png']}/crop", params=box).status_code == 422


@pytest.mark.slow
def test_a_request_whose_body_never_comes_is_answered_and_holds_nothing_up(tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    with running(client, timeout=1) as origin:
        port = int(origin.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            head = "POST /v1/collections/shelves/search HTTP/1.1\r\nHost: localhost\r\n"
            slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode())
            assert httpx.get(f"{origin}/v1", timeout=30).status_code == 200
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.slow
def test_a_connection_that_never_finishes_its_request_is_closed(tmp_path, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from soir_qdrant.service import run
    from soir_qdrant.service.app import create_app
    from soir_qdrant.service.settings import ServiceSettings

    monkeypatch.setattr(run, "HEADER_SECONDS", 0.5)
    app = create_app(QdrantClient(":memory:"), ColourPipeline, ServiceSettings(port=0))
    listener = run.listener(ServiceSettings(port=0))
    server = uvicorn.Server(run.configuration(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with socket.create_connection(listener.getsockname()[:2], timeout=10) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            start = time.monotonic()
            while slow.recv(100):
                pass
            assert time.monotonic() - start < 8
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_search_opens_no_image_and_loads_no_model_to_order_its_hits(planted, monkeypatch):
    client, web, folder = planted
    secret = folder / "secret.png"
    secret.write_bytes((folder / "photos" / "red-green.png").read_bytes())
    _tamper(client, "red-green.png", str(secret))
    used = []
    monkeypatch.setattr("soir_qdrant.rerank.hit_image.load", lambda *_, **__: used.append("an image"))
    monkeypatch.setattr(Blip2Matcher, "load", lambda *_, **__: used.append("a model"))
    upload = png(shelf(RED, RED))
    for rerank in ("image", "picture", "patches", "q-perturbation", "text-q-perturbation", "blip2", "coca"):
        answer = search(web, upload, rerank=rerank)
        assert (answer.status_code, used) == (422, []), rerank
        assert "choose stored, codes, objects" in answer.json()["detail"]
    for rerank in ("stored", "codes", "none", None):
        assert search(web, upload, rerank=rerank).status_code == 200


def test_an_app_may_allow_rerankers_of_its_own(tmp_path):
    register_reranker("of the app", lambda _: Unranked())
    with service(tmp_path / "photos", rerankers=("stored", "of the app")) as web:
        assert search(web, png(shelf(RED, RED)), rerank="of the app").status_code == 200
        assert search(web, png(shelf(RED, RED)), rerank="codes").status_code == 422


def test_methods_that_nobody_knows_are_one_series_of_the_metrics(planted):
    _, web, _ = planted
    for number in range(20):
        assert web.request(f"X{number}", "/v1").status_code in (403, 405)
    text = web.get("/metrics").text
    methods = {line.split('method="')[1].split('"')[0] for line in text.splitlines() if "method=" in line}
    assert methods == {"other"}


class Pausing(ColourPipeline):
    """Stops at a query until it may go on."""

    def __init__(self):
        super().__init__()
        self.runs, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def query(self, *arguments, **options):
        self.runs.set()
        self.go_on.wait(60)
        return super().query(*arguments, **options)


def test_a_search_whose_client_goes_leaves_the_queue(tmp_path):
    client, pipeline = QdrantClient(":memory:"), Pausing()
    fill(client, tmp_path)
    (point, *_), _ = client.scroll("shelves")
    body = f'{{"query": {{"id": "{point.id}", "object": 0}}}}'.encode()
    head = b"POST /v1/collections/shelves/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    sent = head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with running(client, pipeline=pipeline) as origin:
        place = ("127.0.0.1", int(origin.rpartition(":")[2]))
        wait_until(lambda: httpx.get(f"{origin}/readyz").status_code == 200)
        pipeline.runs.clear()
        pipeline.go_on.clear()

        def waiting():
            return "soir_queue_waiting 1.0" in httpx.get(f"{origin}/metrics").text

        with socket.create_connection(place, timeout=60) as first:
            first.sendall(sent)
            assert pipeline.runs.wait(20)
            with socket.create_connection(place) as second:
                second.sendall(sent)
                wait_until(waiting)
            wait_until(lambda: not waiting())
            pipeline.go_on.set()
            assert b"200 OK" in first.recv(100)
