"""Adding and deleting images over HTTP: jobs, their progress, and who may."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ColourPipeline, picture
from PIL import Image
from qdrant_client import QdrantClient
from service_app import BLUE, GREEN, RED, ids, names, png, search, service, shelf

from soir_qdrant import SoirIngestor

NEW = "/v1/collections/new/images"


@pytest.fixture
def folders(tmp_path):
    """A folder with three pictures and a damaged one; another for uploads; one outside."""
    for name in ("root/day", "uploads", "outside"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(picture(i)).save(tmp_path / "root" / "day" / f"{i}.png")
    (tmp_path / "root" / "day" / "broken.jpg").write_bytes(b"no picture")
    Image.fromarray(picture(9)).save(tmp_path / "outside" / "secret.png")
    (tmp_path / "root" / "day" / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    return tmp_path


@pytest.fixture
def web(folders):
    options = {"roots": (folders / "root",), "uploads": folders / "uploads", "writable": True}
    with service(folders / "photos", **options) as made:
        yield made


def finished(web, answer):
    """The job of an answer, once it is over."""
    assert answer.status_code == 202, answer.text
    for _ in range(200):
        job = web.get(f"/v1/jobs/{answer.json()['id']}").json()
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.05)
    raise AssertionError(f"still running: {job}")


def test_a_folder_is_added_and_what_fails_is_named(web):
    job = finished(web, web.post(NEW, json={"paths": ["day"], "payload": {"shop": "east"}}))
    assert (job["state"], job["total"], job["added"]) == ("done", 4, 3)
    assert [failure["name"] for failure in job["failed"]] == ["broken.jpg"]
    assert "/root/" not in job["failed"][0]["reason"]
    listed = web.get(NEW).json()["images"]
    assert sorted(image["name"] for image in listed) == ["day/0.png", "day/1.png", "day/2.png"]
    assert {image["payload"]["shop"] for image in listed} == {"east"}
    again = finished(web, web.post(NEW, json={"paths": ["day/1.png"]}))
    assert (again["added"], again["skipped"], again["stale"]) == (0, 1, 0)
    anew = finished(web, web.post(NEW, json={"paths": ["day/1.png"], "on_exists": "replace"}))
    assert (anew["added"], anew["updated"]) == (0, 1)


def test_progress_comes_as_events_until_the_end(web):
    job = web.post(NEW, json={"paths": ["day"]}).json()
    with web.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = list(answer.iter_lines())
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event")]
    assert events[-1] == "end"
    last = json.loads([line for line in lines if line.startswith("data")][-1].removeprefix("data: "))
    assert (last["done"], last["state"]) == (4, "done")


def test_files_that_are_sent_are_kept_under_names_of_their_own_and_their_content_and_found(web, folders):
    files = [
        ("images", ("../../evil.png", png(shelf(RED, BLUE)))),
        ("images", ("Küche 2.png", png(shelf(GREEN, BLUE)))),
        ("images", ("...", png(shelf(GREEN, RED)))),
        ("images", (f"{'ß' * 300}.exe", png(shelf(RED, RED)))),
    ]
    job = finished(web, web.post(NEW, files=files))
    assert job["added"] == 4
    stored = sorted(file.name for file in (folders / "uploads").iterdir())
    assert [name[: -len("0123456789abcdef.png")] for name in stored] == [
        "Küche-2-",
        "evil-",
        "image-",
        "ß" * 40 + "-",
    ]
    assert all(name.endswith(".png") for name in stored)
    answer = search(web, png(shelf(RED, BLUE)), collection="new")
    address = f"{NEW}/{answer.json()['hits'][0]['id']}/thumbnail"
    assert web.get(address).status_code == 200
    refused = web.post(NEW, files=[("images", ("x.png", b"no picture"))])
    assert refused.status_code == 422
    assert "x.png" in refused.json()["detail"]


def test_of_a_request_that_is_refused_no_file_stays(web, folders, monkeypatch):
    good, bad = ("images", ("a.png", png(shelf(RED, BLUE)))), ("images", ("b.png", b"no picture"))
    assert web.post(NEW, files=[good, bad]).status_code == 422
    monkeypatch.setattr("soir_qdrant.service.jobs.MAX_WAITING", 0)
    assert web.post(NEW, files=[good]).status_code == 503
    assert list((folders / "uploads").iterdir()) == []


def test_one_file_may_be_sent_twice_at_once(web, folders, monkeypatch):
    written, write = threading.Barrier(2, timeout=20), Path.write_bytes

    def write_with_the_other(path, data):
        write(path, data)
        written.wait()

    monkeypatch.setattr(Path, "write_bytes", write_with_the_other)
    files = [("images", ("a.png", png(shelf(RED, BLUE))))]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: web.post(NEW, files=files).status_code, range(2)))
    assert answers == [202, 202]
    assert [file.suffix for file in (folders / "uploads").iterdir()] == [".png"]


def test_all_that_failed_are_counted_though_the_first_alone_are_named(web, folders, monkeypatch):
    monkeypatch.setattr("soir_qdrant.service.jobs.MAX_FAILURES", 1)
    (folders / "root" / "day" / "broken too.jpg").write_bytes(b"no picture")
    assert len(finished(web, web.post(NEW, json={"paths": ["day"]}))["failed"]) == 1
    last = web.get("/v1/collections/new/ingest").json()
    assert (last["failures"], len(last["failed"])) == (2, 1)


def test_nothing_outside_the_folders_can_be_added(web, folders):
    for path in (
        "../outside",
        "../outside/secret.png",
        str(folders / "outside"),
        "day/link.png",
        "/etc",
        "a\0b",
    ):
        answer = web.post(NEW, json={"paths": [path]})
        assert answer.status_code in (403, 422), path
    assert finished(web, web.post(NEW, json={"paths": ["."]}))["total"] == 4  # without the link


def test_deleted_images_are_found_no_longer(web):
    known = ids(web)
    answer = web.request(
        "DELETE", "/v1/collections/shelves/images", json={"ids": [known["red-green.png"], 12345]}
    )
    assert answer.json() == {"deleted": 1}
    assert "red-green.png" not in names(search(web, png(shelf(RED, GREEN))))


def test_images_of_every_namespace_that_is_shown_can_be_deleted(folders):
    client = QdrantClient(":memory:")
    for namespace in (None, "us"):
        ingestor = SoirIngestor(client, "shelves", pipeline=ColourPipeline(), namespace=namespace)
        ingestor.add(folders / "root" / "day" / "0.png", progress=False)
    address = "/v1/collections/shelves/images"
    with service(folders, client=client, filled=False, writable=True, namespace="us") as web:
        shown = [image["id"] for image in web.get(address).json()["images"]]
    with service(folders, client=client, filled=False, writable=True) as web:
        every = [image["id"] for image in web.get(address).json()["images"]]
        assert len(every) == 2
        assert web.request("DELETE", address, json={"ids": shown}).json() == {"deleted": 1}
        assert [image["id"] for image in web.get(address).json()["images"]] == [
            id_ for id_ in every if id_ not in shown
        ]
        assert web.request("DELETE", address, json={"ids": every}).json() == {"deleted": 1}
    assert client.count("shelves").count == 0


def test_a_service_that_only_searches_refuses_all_changes(folders):
    with service(folders / "photos", roots=(folders / "root",)) as web:
        refused = [
            web.post(NEW, json={"paths": ["day"]}),
            web.request("DELETE", "/v1/collections/shelves/images", json={"ids": [1]}),
        ]
    assert [answer.status_code for answer in refused] == [403, 403]
    assert "--writable" in refused[0].json()["detail"]


class Careful(ColourPipeline):
    """Takes its time for an image."""

    def scenes(self, *arguments, **options):
        time.sleep(0.3)
        return super().scenes(*arguments, **options)


@pytest.mark.slow
def test_searches_go_between_the_images_of_a_job_which_can_be_cancelled(folders):
    options = {"roots": (folders / "root",), "writable": True, "pipeline": Careful()}
    with service(folders / "photos", **options) as web:
        job = web.post(NEW, json={"paths": ["day"]}).json()
        start = time.monotonic()
        assert names(search(web, png(shelf(RED, BLUE))))
        assert time.monotonic() - start < 1.0  # not after all four
        web.delete(f"/v1/jobs/{job['id']}")
        for _ in range(100):
            state = web.get(f"/v1/jobs/{job['id']}").json()
            if state["state"] == "cancelled":
                break
            time.sleep(0.05)
        assert state["state"] == "cancelled"
        assert state["done"] < 4
