"""Images that are no plain files: frames of videos, pages, and objects of a store, shown and searched with."""

import io
import socket

import numpy as np
import pytest
from conftest import ColourPipeline, video
from PIL import Image
from qdrant_client import QdrantClient
from service_app import BLUE, GREEN, RED, TOP, ids, names, png, search, service, shelf

from soir_qdrant import SoirIngestor
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import ReadOptions
from soir_qdrant.types import SceneObject

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


def ingested(images, **options):
    client = QdrantClient(":memory:")
    report = SoirIngestor(client, "shelves", pipeline=ColourPipeline(), **options).add(images, progress=False)
    assert not report.failed
    return client


def thumbnail(web, name, **parameters):
    return web.get(f"/v1/collections/shelves/images/{ids(web)[name]}/thumbnail", params=parameters)


def shown(answer):
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


@pytest.fixture
def clip(tmp_path):
    """Three seconds at four frames a second, of 64 x 48: a colour a second."""
    return video(tmp_path / "videos" / "clip.mp4", COLOURS)


def test_frames_of_videos_are_shown_and_searched_with(clip):
    client = ingested(clip.parent, reading=ReadOptions(every=1.0))
    with service(clip.parent, client=client, filled=False, roots=(clip.parent,)) as web:
        for second, colour in enumerate(COLOURS):
            image = shown(thumbnail(web, f"clip.mp4#t={second}"))
            assert image.shape == (48, 64, 3)
            assert np.abs(image.mean((0, 1)) - colour).max() < 15
        box = [0, 0, 32, 24]
        assert names(search(web, query={"id": ids(web)["clip.mp4#t=1"], "box": box}))[0] == "clip.mp4#t=1"
        clip.write_bytes(clip.read_bytes()[:500])  # cut off; what was shown is remembered
        assert thumbnail(web, "clip.mp4#t=1").status_code == 200
    with service(clip.parent, client=client, filled=False, roots=(clip.parent,)) as web:
        damaged = thumbnail(web, "clip.mp4#t=1")
    assert damaged.status_code == 404
    assert str(clip.parent) not in damaged.text


def test_a_video_outside_the_root_is_not_opened_nor_read_without_end(clip, tmp_path):
    client = ingested(clip.parent, reading=ReadOptions(every=1.0))
    (tmp_path / "other").mkdir()
    with service(tmp_path, client=client, filled=False, roots=(tmp_path / "other",)) as web:
        assert "outside the folders" in thumbnail(web, "clip.mp4#t=1").json()["detail"]
    with service(tmp_path, client=client, filled=False, max_bytes=300) as web:
        assert "deeper than the 300 bytes" in thumbnail(web, "clip.mp4#t=1").json()["detail"]
    with service(tmp_path, client=client, filled=False, max_pixels=1000) as web:
        assert "64x48 pixels" in thumbnail(web, "clip.mp4#t=1").json()["detail"]


def test_pages_are_shown_each_by_itself_and_only_while_they_are_the_same(tmp_path):
    pages = [Image.fromarray(shelf(RED, BLUE)), Image.fromarray(shelf(GREEN, BLUE))]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    client = ingested(tmp_path, reading=ReadOptions(pages=True))
    with service(tmp_path, client=client, filled=False, roots=(tmp_path,)) as web:
        first, second = shown(thumbnail(web, "scan.tif")), shown(thumbnail(web, "scan.tif#page=2"))
        assert np.abs(first[15, 15].astype(int) - RED).max() < 20
        assert np.abs(second[15, 15].astype(int) - GREEN).max() < 20
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=[Image.fromarray(shelf(RED, RED))])
    with service(tmp_path, client=client, filled=False, roots=(tmp_path,)) as web:
        assert "another image" in thumbnail(web, "scan.tif#page=2").json()["detail"]


@pytest.fixture
def bucket():
    """Three images in an object store, one of them outside photos/."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pipe({"/photos/a.png": png(shelf(RED, BLUE)), "/photos/deep/b.png": png(shelf(GREEN, BLUE)),
                "/private/c.png": png(shelf(RED, RED))})  # fmt: skip
    yield store
    store.store.clear()


def test_an_object_store_is_opened_only_where_it_is_allowed(bucket, tmp_path):
    client = ingested(["memory://photos", "memory://private"])
    with service(tmp_path, client=client, filled=False) as web:
        refused = thumbnail(web, "a.png")
        assert refused.status_code == 404
        assert "--store" in refused.json()["detail"]
    with service(tmp_path, client=client, filled=False, stores=("memory://photos",)) as web:
        assert shown(thumbnail(web, "deep/b.png")).shape == (60, 80, 3)
        found = search(web, query={"id": ids(web)["a.png"], "box": list(TOP)})
        assert names(found)[0] in ("a.png", "c.png")
        assert thumbnail(web, "c.png").status_code == 404
        id_ = ids(web)["a.png"]
        for uri in ("memory://photos/../private/c.png", "memory://photosynthesis/c.png", "file:///etc/passwd",
                    "simplecache::memory://photos/a.png"):  # fmt: skip
            client.set_payload("shelves", {"uri": uri, "uris": [uri]}, points=[id_], key="soir")
            answer = web.get(f"/v1/collections/shelves/images/{id_}/thumbnail", params={"side": 99})
            assert (answer.status_code, "--store" in answer.text) == (404, True)
        bucket.pipe("/photos/deep/b.png", png(shelf(BLUE, BLUE)))
    with service(tmp_path, client=client, filled=False, stores=("memory://photos",), max_bytes=100) as web:
        assert "more than the 100 bytes" in thumbnail(web, "deep/b.png").json()["detail"]
    with service(tmp_path, client=client, filled=False, stores=("memory://photos",)) as web:
        assert "another image" in thumbnail(web, "deep/b.png").json()["detail"]
        bucket.rm("/photos/deep/b.png")
        assert "no such file" in thumbnail(web, "deep/b.png").json()["detail"]


def test_http_is_never_opened(tmp_path):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from soir_qdrant.service.errors import NotServed
    from soir_qdrant.service.originals import Originals
    from soir_qdrant.service.settings import ServiceSettings

    for store in ("http://photos.example", "file:///photos", "simplecache::s3://bucket", "photos"):
        with pytest.raises(ConfigError, match="no address of an object store"):
            ServiceSettings(stores=(store,))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        with pytest.raises(NotServed, match="--store"):
            Originals(ServiceSettings(stores=("s3://bucket",))).open({"uri": uri, "sha256": "0" * 64})
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


def test_deep_and_coloured_images_look_on_the_page_as_they_were_read(tmp_path):
    levels = np.full((60, 80), 3000, np.uint16)  # of 12 bits: light
    Image.fromarray(levels).save(tmp_path / "deep.png")
    client = ingested(tmp_path)
    with service(tmp_path, client=client, filled=False) as web:
        assert shown(thumbnail(web, "deep.png")).mean() > 100


def test_the_mask_of_an_object_in_a_frame_is_laid_over_it(clip):
    client = QdrantClient(":memory:")
    objects = {"clip.mp4#t=1": [SceneObject((4.0, 4.0, 40.0, 40.0))]}
    SoirIngestor(client, "shelves", pipeline=ColourPipeline(), reading=ReadOptions(every=1.0)).add(
        clip.parent, objects=objects, progress=False
    )
    with service(clip.parent, client=client, filled=False) as web:
        address = f"/v1/images/{ids(web)['clip.mp4#t=1']}"
        for part in ("crop?object=0", "mask?object=0"):
            answer = web.get(f"{address}/{part}")
            assert answer.status_code == 200, answer.text
            assert Image.open(io.BytesIO(answer.content)).size[0] in (36, 64)
