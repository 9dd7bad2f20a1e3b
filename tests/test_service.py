"""Searching over HTTP, as a page or a program does."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from browser import running
from conftest import ColourPipeline, painted
from PIL import Image
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct
from service_app import (
    BLUE,
    BOTTOM,
    GREEN,
    RED,
    TOP,
    fill,
    ids,
    names,
    png,
    search,
    service,
    shelf,
    wait_until,
)

from soir_qdrant import Pipeline, SoirIngestor
from soir_qdrant.errors import ServerError
from soir_qdrant.service import pictures


@pytest.fixture
def web(tmp_path):
    with service(tmp_path / "photos") as made:
        yield made


def test_a_box_in_an_uploaded_image_finds_the_images_that_hold_the_thing_and_where(web):
    upload = png(painted(((30, 20, 60, 50), GREEN)))
    answer = search(web, upload, box=[30, 20, 60, 50])
    assert set(names(answer)[:2]) == {"red-green.png", "green-blue.png"}
    for hit in answer.json()["hits"][:2]:
        assert tuple(hit["box"]) == (BOTTOM if hit["name"] == "red-green.png" else TOP)
        assert hit["objects"][hit["object"]]["box"] == hit["box"]
        assert "code" not in json.dumps(hit)


def test_an_uploaded_image_can_be_searched_again_without_sending_it(web):
    upload = png(shelf(GREEN, BLUE))
    first = search(web, upload, box=list(TOP)).json()
    again = search(web, query={"upload": first["upload"], "box": list(BOTTOM)})
    assert set(names(again)[:2]) == {"red-blue.png", "green-blue.png"}
    assert search(web, query={"upload": "never-sent"}).status_code == 410


def test_an_object_of_a_stored_image_is_searched_for_in_one_click(web):
    answer = search(web, query={"id": ids(web)["red-green.png"], "object": 0})
    assert set(names(answer)[:2]) == {"red-green.png", "red-blue.png"}
    assert [hit["object"] for hit in answer.json()["hits"][:2]] == [0, 0]


def test_a_mask_says_which_pixels_are_the_thing(web):
    picture = painted(((0, 0, 80, 60), GREEN), ((30, 20, 60, 50), RED))
    mask = painted(((0, 0, 80, 60), (0, 0, 0)), ((30, 20, 60, 50), (255, 255, 255)))
    answer = web.post(
        "/v1/collections/shelves/search",
        files={"image": png(picture), "mask": png(mask)},
        data={"request": "{}"},
    )
    assert set(names(answer)[:2]) == {"red-green.png", "red-blue.png"}


def test_examples_negatives_filters_and_groups(web):
    known, red = ids(web), {"id": ids(web)["red-green.png"], "object": 0}
    green = {"id": known["green-blue.png"], "object": 0}
    both = search(web, query=red, examples=[green], negatives=[{"id": known["red-blue.png"], "object": 1}])
    assert names(both)[0] == "red-green.png"
    south = {"must": [{"key": "shop", "match": {"value": "south"}}]}
    assert "red-green.png" not in names(search(web, query=red, filter=south))
    groups = search(web, query=red, group_by="shop").json()["groups"]
    assert {group["key"]: group["hits"][0]["name"] for group in groups} == {
        "north": "red-green.png",
        "south": "red-blue.png",
    }


def test_pages_follow_one_another(web):
    query = {"id": ids(web)["red-green.png"], "object": 0}
    whole = names(search(web, query=query))
    first = search(web, query=query, limit=2)
    rest = search(web, query=query, limit=2, offset=first.json()["next_offset"])
    assert names(first) + names(rest) == whole
    assert [hit["rank"] for hit in rest.json()["hits"]] == [3]
    assert rest.json()["next_offset"] is None


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"query": {"object": 0}}, 422, "give the id of a stored image"),
        ({"query": {"id": 7, "object": 0}}, 404, "has no image 7"),
        ({"query": {"id": "a mug", "object": 0}}, 422, "UUIDs"),
        ({"query": {"text": "a red mug"}}, 422, "reads no text"),
        ({"query": {"id": "9" * 5000, "object": 0}}, 422, "ids are whole numbers"),
        ({"query": {"upload": "x"}}, 410, "send it again"),
        ({"query": {"upload": "x"}, "limit": 0}, 422, "limit"),
        ({"query": {"upload": "x"}, "filter": {"must": 3}}, 422, "no filter of Qdrant"),
        ({"query": {"upload": "x"}, "colour": "red"}, 422, "colour"),
    ],
)
def test_a_wrong_request_is_answered_by_a_sentence(web, request_, status, said):
    answer = search(web, **request_)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status), problem
    assert said in problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_what_is_wrong_with_an_image_or_a_name_is_said(web):
    assert "known kind" in search(web, b"%!PS-Adobe-3.0 EPSF-3.0").json()["detail"]
    red = png(shelf(RED, BLUE))
    assert "choose" in search(web, red, rerank="magic").json()["detail"]
    assert "box" in search(web, red, box=[500, 500, 600, 600]).json()["detail"]
    missing = search(web, red, collection="cars")
    assert missing.status_code == 404
    assert "soir ingest" in missing.json()["detail"]


def test_a_box_outside_names_the_image_that_it_is_in(web):
    upload = search(web, png(shelf(RED, BLUE))).json()["upload"]
    stored = search(web, query={"upload": upload}).json()["hits"][0]["id"]
    outside = {"box": [500, 500, 600, 600]}
    for query, name in [({"upload": upload}, "the uploaded image"), ({"id": stored}, "the stored image")]:
        said = search(web, query={**query, **outside}).json()["detail"]
        assert said.startswith(f"{name}: box (500, 500, 600, 600) lies outside the 80x60 image"), said


def test_the_page_learns_what_there_is_and_what_to_filter_by(web):
    about = web.get("/v1").json()
    assert about["collections"] == [{"name": "shelves", "count": 3}]
    assert not about["writable"]
    facets = web.get("/v1/collections/shelves/facets").json()
    assert facets["labels"] == ["blue", "green", "red"]
    assert {key["key"]: key for key in facets["keys"]}["shop"]["values"] == ["north", "south"]
    assert {key["key"]: (key["min"], key["max"]) for key in facets["keys"]}["price"] == (0, 20)
    page = web.get("/v1/collections/shelves/images", params={"limit": 2}).json()
    rest = web.get("/v1/collections/shelves/images", params={"limit": 2, "after": page["next"]}).json()
    assert len({image["id"] for image in page["images"] + rest["images"]}) == 3


def test_an_image_has_a_short_address_where_it_is_clear_which_collection_is_meant(web):
    known, short = ids(web)["red-green.png"], "/v1/images"
    long = f"/v1/collections/shelves/images/{known}"
    for part in ("", "/thumbnail", "/crop?object=1", "/crop?box=5,5,25,25", "/mask?object=0"):
        answer = web.get(f"{short}/{known}{part}")
        assert answer.status_code == 200, answer.text
        assert answer.content == web.get(f"{long}{part}").content
    unknown = web.get(f"{short}/{known}/heat?search=never")
    assert (unknown.status_code, unknown.json()["status"]) == (410, 410)
    web.service.client.create_collection(
        "other", web.service.client.get_collection("shelves").config.params.vectors
    )
    refused = web.get(f"{short}/{known}/thumbnail")
    assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
    assert "choose one of other, shelves" in refused.json()["detail"]
    assert web.get(f"{short}/{known}/thumbnail", params={"collection": "shelves"}).status_code == 200
    for wrong in ("other", "cars"):
        assert web.get(f"{short}/{known}/thumbnail", params={"collection": wrong}).status_code == 404


class Slow(ColourPipeline):
    """Waits in a query until it may go on, and counts them."""

    def __init__(self):
        super().__init__()
        self.go, self.began, self.seen = threading.Event(), threading.Event(), 0
        self.go.set()

    def query(self, image, *, box=None, mask=None):
        self.seen += 1
        self.began.set()
        assert self.go.wait(20)
        return super().query(image, box=box, mask=mask)


@pytest.fixture
def held(tmp_path):
    """A service with a queue of two, whose models hold until `release`."""
    pipeline = Slow()
    with service(tmp_path / "photos", pipeline=pipeline, queue=2) as made:
        pipeline.go.clear()
        pipeline.began.clear()
        made.pipeline = pipeline
        yield made
        pipeline.go.set()


def _in_background(call, count=1):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def test_a_full_queue_sends_the_next_one_away_for_a_while(held):
    query = png(shelf(RED, BLUE))
    running, first = _in_background(lambda: search(held, query))
    assert held.pipeline.began.wait(10)
    waiting, rest = _in_background(lambda: search(held, query), 2)
    while held.service.worker.waiting < 2:
        pass
    refused = search(held, query)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    held.pipeline.go.set()
    for thread in running + waiting:
        thread.join(20)
    assert [answer.status_code for answer in first + rest] == [200, 200, 200]


def test_searches_that_wait_run_together_and_a_bad_one_fails_alone(held, monkeypatch):
    batches = []
    searcher = held.service.searcher("shelves")
    many = searcher.search_many
    monkeypatch.setattr(
        searcher, "search_many", lambda queries, **o: batches.append(len(queries)) or many(queries, **o)
    )
    running, _ = _in_background(lambda: search(held, png(shelf(RED, BLUE))))
    assert held.pipeline.began.wait(10)
    good, found = _in_background(lambda: search(held, png(shelf(GREEN, BLUE)), box=list(TOP)))
    bad, refused = _in_background(lambda: search(held, png(shelf(GREEN, BLUE)), box=[900, 900, 901, 901]))
    while held.service.worker.waiting < 2:
        pass
    held.pipeline.go.set()
    for thread in running + good + bad:
        thread.join(20)
    assert batches[:2] == [1, 2]
    assert found[0].status_code == 200
    assert refused[0].status_code == 422


@pytest.mark.slow
def test_fifty_clients_lose_nothing(tmp_path):
    """Each searches three times, and comes back after 503 when it is told to."""
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    image, answers = png(shelf(RED, BLUE)), []

    def visit(origin):
        with httpx.Client(base_url=origin, timeout=60) as http:
            for _ in range(3):
                while (answer := search(http, image, box=list(TOP))).status_code == 503:
                    time.sleep(0.1)  # so that the test is over sooner than `Retry-After` says
                answers.append(answer)

    with running(client, rate=0, queue=16) as origin:
        threads = [threading.Thread(target=visit, args=(origin,)) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        busy = httpx.get(f"{origin}/metrics").text
    assert len(answers) == 150
    assert {answer.status_code for answer in answers} == {200}
    assert {names(answer)[0] for answer in answers} <= {"red-blue.png", "red-green.png"}
    assert "soir_batch_size" in busy


def test_probes_and_metrics(web):
    assert web.get("/healthz").status_code == 200
    assert web.get("/readyz").json()["status"] == "ok"
    search(web, png(shelf(RED, BLUE)))
    # A run is counted after its searches are answered.
    wait_until(lambda: 'soir_run_seconds_count{kind="search"}' in web.get("/metrics").text)
    told = web.get("/metrics").text
    route = 'route="/v1/collections/{collection}/search"'
    assert f'soir_requests_total{{method="POST",{route},status="200"}} 1.0' in told
    for stage in ("decode", "encode", "qdrant", "rerank"):
        assert f'soir_stage_seconds_count{{stage="{stage}"}} 1.0' in told
    assert 'soir_wait_seconds_count{kind="search"} 1.0' in told
    assert 'soir_run_seconds_count{kind="search"} 1.0' in told
    assert "soir_queue_waiting 0.0" in told


def test_a_search_leaves_spans_in_the_trace_of_who_sent_it(tmp_path):
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra telemetry is not installed")
    pytest.importorskip("fastapi.telemetry", reason="this FastAPI makes no spans of requests")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, spans = sdk.TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with service(tmp_path / "photos", tracer_provider=provider) as web:
        known = ids(web)["red-green.png"]
        body = {"query": {"id": known, "object": 0}}
        assert web.post("/v1/collections/shelves/search", json=body, headers=headers).status_code == 200
    own = {span.name: span for span in spans.get_finished_spans() if f"{span.context.trace_id:032x}" == trace}
    request = next(span for name, span in own.items() if name.startswith("POST"))
    for name in ("queue", "run"):
        assert own[name].parent.span_id == request.context.span_id
    assert own["run"].attributes["soir.stage"] == "search"


def test_openapi_is_complete_enough_to_make_a_client_of(web):
    schema = web.get("/openapi.json").json()
    content = schema["paths"]["/v1/collections/{collection}/search"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    refs = set(_refs(schema))
    assert refs
    for ref in refs:
        assert ref.rpartition("/")[2] in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["SearchRequest"]["examples"]


def _refs(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


class Reading(ColourPipeline):
    """Knows one word."""

    def text(self, words):
        return self.query(painted(((0, 0, 80, 60), {"red": RED}[words])))


def test_words_find_too_where_the_profile_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr("soir_qdrant.service.backend.WORDS", "red")
    with service(tmp_path / "photos", pipeline=Reading()) as web:
        assert web.get("/v1").json()["reads_text"]
        answer = search(web, query={"text": "red"})
        assert set(names(answer)[:2]) == {"red-green.png", "red-blue.png"}
        heat = web.get(
            f"/v1/collections/shelves/images/{answer.json()['hits'][0]['id']}/heat",
            params={"search": answer.json()["search"]},
        )
        assert "made with an image" in heat.json()["detail"]


@pytest.mark.slow
def test_heat_maps_and_masks_are_pictures_to_lay_over_the_hits(tmp_path, tiny_settings):
    pipeline = Pipeline(tiny_settings)
    client = QdrantClient(":memory:")
    (tmp_path / "photos").mkdir()
    Image.fromarray(shelf(RED, BLUE)).save(tmp_path / "photos" / "a.png")
    SoirIngestor(client, "shelves", pipeline=pipeline).add(tmp_path / "photos", progress=False)
    with service(tmp_path, pipeline=pipeline, client=client, filled=False) as web:
        found = search(web, png(shelf(RED, BLUE)), box=list(TOP)).json()
        hit = found["hits"][0]
        address = f"/v1/collections/shelves/images/{hit['id']}"
        heat = web.get(f"{address}/heat", params={"search": found["search"], "object": hit["object"]})
        mask = web.get(f"{address}/mask", params={"object": hit["object"]})
        for answer in (heat, mask):
            assert answer.status_code == 200, answer.text
            overlay = Image.open(io.BytesIO(answer.content))
            assert (overlay.mode, overlay.size) == ("RGBA", (80, 60))
        assert web.get(f"{address}/heat", params={"search": "gone"}).status_code == 410


@pytest.mark.slow
def test_a_heat_map_is_made_from_any_of_an_images_places(tmp_path, tiny_settings):
    pipeline, client = Pipeline(tiny_settings), QdrantClient(":memory:")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(shelf(RED, BLUE)).save(tmp_path / "photos" / name)
    SoirIngestor(client, "shelves", pipeline=pipeline).add(tmp_path / "photos", progress=False)
    with service(tmp_path, pipeline=pipeline, client=client, filled=False) as web:
        answer = search(web, png(shelf(RED, BLUE)), box=list(TOP)).json()
        (hit,) = answer["hits"]
        (tmp_path / "photos" / hit["name"]).unlink()
        heat = web.get(
            f"/v1/collections/shelves/images/{hit['id']}/heat", params={"search": answer["search"]}
        )
    assert heat.status_code == 200, heat.text


@pytest.mark.slow
def test_the_example_client_works(tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    Image.fromarray(shelf(RED, BLUE)).save(tmp_path / "query.png")
    example = Path(__file__).parents[1] / "examples" / "service_client.py"
    with running(client, roots=(tmp_path / "photos",), writable=True) as origin:
        env = {**os.environ, "SOIR_URL": origin, "SOIR_COLLECTION": "shelves"}
        command = [sys.executable, str(example), "query.png", "5,5,25,25", "--add", "."]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "3/3, 0 failed" in done.stdout
    assert "red-blue.png" in done.stdout
    assert Image.open(tmp_path / "best.jpg").size == (80, 60)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM there")
def test_soir_serve_starts_and_ends_in_order(tmp_path):
    QdrantClient(path=str(tmp_path / "db")).close()
    command = [sys.executable, "-m", "soir_qdrant", "serve", "--path", str(tmp_path / "db"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        address = process.stderr.readline().split()[0]
        for _ in range(300):
            try:
                if httpx.get(f"{address}readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        assert httpx.get(f"{address}v1/collections").json() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()


def test_ids_beyond_what_javascript_counts_to_are_texts(web):
    client, images = web.service.client, "/v1/collections/shelves/images"
    (point, *_), _ = client.scroll("shelves", with_vectors=True)
    large = [2**53, 2**53 + 1]
    client.upsert("shelves", [PointStruct(id=i, vector=point.vector, payload=point.payload) for i in large])
    first = web.get(images, params={"limit": 1}).json()
    rest = web.get(images, params={"limit": 1, "after": first["next"]}).json()
    assert [first["images"][0]["id"], rest["images"][0]["id"]] == [str(id_) for id_ in large]
    assert web.get(f"{images}/{large[1]}").json()["id"] == str(large[1])
    hits = search(web, query={"id": str(large[1]), "object": 0}).json()["hits"]
    assert {str(id_) for id_ in large} < {hit["id"] for hit in hits}


@pytest.mark.parametrize("error", [ServerError("Triton is away"), RuntimeError("CUDA is out of memory")])
def test_models_that_cannot_be_loaded_are_named_and_tried_again(tmp_path, monkeypatch, caplog, error):
    monkeypatch.setattr("soir_qdrant.service.backend.RELOAD_SECONDS", 0.01)
    works = threading.Event()

    def pipeline():
        if not works.is_set():
            raise error
        return ColourPipeline()

    def readiness():
        answer = web.get("/readyz")
        return answer.status_code, answer.json()["status"]

    with service(tmp_path / "photos", make_pipeline=pipeline, ready=False) as web:
        wait_until(lambda: "being loaded" not in readiness()[1], 10)
        assert readiness() == (503, f"the models cannot be loaded: {error}")
        assert str(error) in caplog.text
        works.set()
        wait_until(lambda: readiness() == (200, "ok"), 10)
    assert f"not ready: the models cannot be loaded: {error}" in caplog.messages


def test_a_probe_is_answered_while_qdrant_is_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("soir_qdrant.service.system_api.READY_WITHIN", 0.1)
    answers = threading.Event()
    client = QdrantClient(":memory:")
    with service(tmp_path / "photos", client=client) as web:
        collections = client.get_collections
        monkeypatch.setattr(client, "get_collections", lambda: answers.wait(30) and collections())
        for _ in range(3):
            assert web.get("/readyz").status_code == 503
            assert web.get("/readyz").json()["status"] == "Qdrant has not answered within 0.1 s"
        answers.set()
        wait_until(lambda: web.get("/readyz").status_code == 200, 10)
    assert len([line for line in caplog.messages if "not answered" in line]) == 1  # not at every probe


def test_a_mask_that_is_cut_off_is_named(web):
    files = {"image": png(shelf(RED, BLUE)), "mask": png(shelf(RED, BLUE))[:120]}
    answer = web.post("/v1/collections/shelves/search", files=files, data={"request": "{}"})
    assert (answer.status_code, "the mask" in answer.json()["detail"]) == (422, True)


def test_an_id_of_too_many_digits_is_no_id(web):
    answer = web.get(f"/v1/collections/shelves/images/{'9' * 5000}")
    assert (answer.status_code, "ids are whole numbers" in answer.json()["detail"]) == (422, True)


def test_words_that_were_read_on_an_object_are_shown_with_it(web):
    client = web.service.client
    (point, *_), _ = client.scroll("shelves")
    objects = [{**item, "text": "KETCHUP"} for item in point.payload["soir"]["objects"]]
    client.set_payload("shelves", {"objects": objects}, points=[point.id], key="soir")
    shown = web.get(f"/v1/collections/shelves/images/{point.id}").json()
    assert [item["text"] for item in shown["objects"]] == ["KETCHUP", "KETCHUP"]


def test_the_vector_may_have_a_name(tmp_path):
    client = QdrantClient(":memory:")
    ingestor = SoirIngestor(client, "shelves", pipeline=ColourPipeline(), vector_name="thing")
    ingestor.add([shelf(RED, GREEN), shelf(RED, BLUE)], progress=False)
    with service(tmp_path, client=client, filled=False, vector_name="thing") as web:
        assert len(names(search(web, png(shelf(RED, BLUE))))) == 2
        assert web.get("/v1/collections/shelves/duplicates").status_code == 200
    with service(tmp_path, client=client, filled=False) as web:
        assert "--vector-name" in search(web, png(shelf(RED, BLUE))).json()["detail"]


def test_a_few_images_are_decoded_for_the_page_at_once(monkeypatch):
    load, here, at_once = pictures.load, [], []

    def slow(*arguments, **options):
        here.append(1)
        at_once.append(len(here))
        time.sleep(0.02)
        here.pop()
        return load(*arguments, **options)

    monkeypatch.setattr(pictures, "load", slow)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: pictures.small_jpeg(png(shelf(RED, BLUE)), 32, 10_000), range(12)))
    assert max(at_once) == 4
