import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ColourPipeline, painted, picture
from PIL import Image
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException
from test_images import BAD, png_header

from soir_qdrant import batches
from soir_qdrant.errors import CollectionError, ConfigError, ImageError, ServerError, WeightsError
from soir_qdrant.ingest import IngestStopped, SoirIngestor, summary
from soir_qdrant.payload import point_id
from soir_qdrant.transport import Retry
from soir_qdrant.types import SceneObject

QUICK = Retry(attempts=2, first=0.001, most=0.001)


def ingestor(client, pipeline=None, **options) -> SoirIngestor:
    return SoirIngestor(client, pipeline=pipeline or ColourPipeline(), retry=QUICK, **options)


def counts(report) -> tuple[int, int, int]:
    return report.added, report.skipped, len(report.failed)


def stored(client) -> dict:
    points, _ = client.scroll("images", limit=1000)
    return {point.id: point.payload for point in points}


# -- what is stored ----------------------------------------------------------------------------------------


def test_a_folder_twice(client, folder, pipeline):
    report = ingestor(client, pipeline).add(folder, batch_size=4)
    assert counts(report) == (6, 0, 0)
    assert {"load", "encode", "store"} <= set(report.seconds)
    assert sorted(pipeline.calls) == [["0.png", "2.png", "4.png", "sub/1.png"], ["sub/3.png", "sub/5.png"]]
    held = stored(client)
    paths = {str(folder / name): (folder / name).read_bytes() for call in pipeline.calls for name in call}
    assert {payload["soir"]["uri"] for payload in held.values()} == set(paths)
    for id_, payload in held.items():
        digest = hashlib.sha256(paths[payload["soir"]["uri"]]).hexdigest()
        assert payload["soir"]["sha256"] == digest
        assert id_ == point_id(digest)
    again = ingestor(client, pipeline).add(folder)
    assert counts(again) == (0, 6, 0)
    assert stored(client) == held
    assert len(pipeline.calls) == 2  # nothing was encoded a second time


def test_skipped_images_are_not_decoded(folder, pipeline, monkeypatch):
    client = QdrantClient(":memory:")
    ingestor(client, pipeline).add(folder)
    Image.fromarray(picture(99)).save(folder / "new.png")
    decoded = []
    decode = batches.decode
    monkeypatch.setattr(batches, "decode", lambda raw, **o: decoded.append(raw.name) or decode(raw, **o))
    assert counts(ingestor(client, pipeline).add(folder)) == (1, 6, 0)
    assert decoded == ["new.png"]


def test_replace(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    adder.add(folder, payloads=[{"turn": 1}] * 6)
    assert counts(adder.add(folder, payloads=[{"turn": 2}] * 6)) == (0, 6, 0)
    assert {payload["turn"] for payload in stored(client).values()} == {1}
    assert counts(adder.add(folder, payloads=[{"turn": 3}] * 6, on_exists="replace")) == (6, 0, 0)
    assert {payload["turn"] for payload in stored(client).values()} == {3}
    assert client.count("images").count == 6


def test_the_same_image_twice_in_one_call(pipeline):
    images = [picture(1), picture(2), picture(1), picture(3), picture(1)]
    for on_exists in ("skip", "replace"):
        client = QdrantClient(":memory:")
        report = ingestor(client, pipeline).add(images, batch_size=2, on_exists=on_exists)
        assert counts(report) == (3, 2, 0)
        assert client.count("images").count == 3


def test_ids_payloads_and_objects_go_with_their_images(client):
    some = uuid.uuid4()
    objects = [SceneObject((1, 2, 11, 12), label="mug"), SceneObject((-5, 0, 5, 5), label="cup", score=0.5)]
    report = ingestor(client).add(
        (picture(i) for i in range(4)),
        ids=iter([1, None, some, np.int64(4)]),
        payloads=({"n": i} if i else None for i in range(4)),
        objects=[objects, None, [], None],
        batch_size=3,
    )
    assert counts(report) == (4, 0, 0)
    held = stored(client)
    (own,) = set(held) - {1, str(some), 4}
    assert uuid.UUID(own).version == 5
    assert {id_: payload.get("n") for id_, payload in held.items()} == {1: None, own: 1, str(some): 2, 4: 3}
    soir = held[1]["soir"]
    assert soir["labels"] == ["cup", "mug"]
    assert [item["box"] for item in soir["objects"]] == [
        [1, 2, 11, 12],
        [0, 0, 5, 5],
    ]  # the second is clipped
    assert soir["objects"][1]["score"] == 0.5
    assert held[own]["soir"]["objects"][0]["box"] == [0, 0, 40, 30]


def test_dicts_by_name(folder, pipeline):
    client = QdrantClient(":memory:")
    mine = {"sub/1.png": {"n": 1}, "0.png": {"n": 0}}
    ingestor(client, pipeline).add(folder, payloads=mine, ids={"0.png": 7})
    assert {payload["n"] for payload in stored(client).values() if "n" in payload} == {0, 1}
    assert stored(client)[7]["n"] == 0


def test_codes_follow_the_setting(pipeline):
    for count, length in ((0, None), (4, 8), (64, 16)):
        client = QdrantClient(":memory:")
        ingestor(client, pipeline, object_codes=count).add([picture(1)])
        (payload,) = stored(client).values()
        code = payload["soir"]["objects"][0].get("code")
        assert (code and len(code)) == length
    with pytest.raises(ConfigError):
        ingestor(client, object_codes=-1)


# -- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [1, 4, 64])
def test_bad_images_stop_no_other(client, size):
    """Every bad form among good ones: the good ones are stored, each bad one comes back with its reason."""
    images = [source for source, _ in BAD.values()]
    mixed = [item for pair in zip(images, map(picture, range(len(images))), strict=True) for item in pair]
    report = ingestor(client).add(iter(mixed), batch_size=size)
    assert counts(report) == (len(images), 0, len(images))
    assert client.count("images").count == len(images)
    assert {failure.name for failure in report.failed} == {f"image {2 * i + 1}" for i in range(len(images))}
    assert all(failure.reason.startswith(failure.name) for failure in report.failed)


def test_bad_companions_stop_no_other(client):
    nan = float("nan")
    cases = {
        "outside": ({"objects": [SceneObject((50, 0, 60, 9))]}, "outside the 40x30 image"),
        "NaN box": ({"objects": [SceneObject((nan, 0, 60, 9))]}, "NaN"),
        "inverted": ({"objects": [SceneObject((9, 9, 3, 3))]}, "inverted"),
        "mask": ({"objects": [SceneObject((0, 0, 9, 9), np.ones((3, 3), bool))]}, "mask of shape"),
        "no object": ({"objects": [(0, 0, 9, 9)]}, "is a tuple"),
        "not a list": ({"objects": 7}, "not iterable"),
        "id": ({"id": "a name"}, "UUID"),
        "taken key": ({"payload": {"soir": 1}}, "kept for this package"),
        "payload": ({"payload": {"x": nan}}, "JSON"),
    }
    given = [case for case, _ in cases.values()]
    good = [{} for _ in cases]
    both = [item for pair in zip(given, good, strict=True) for item in pair]
    report = ingestor(client).add(
        [picture(i) for i in range(len(both))],
        ids=[item.get("id") for item in both],
        payloads=[item.get("payload") for item in both],
        objects=[item.get("objects") for item in both],
        batch_size=5,
    )
    assert counts(report) == (len(good), 0, len(cases))
    reasons = {failure.name: failure.reason for failure in report.failed}
    for i, (case, message) in enumerate(cases.values()):
        assert message in reasons[f"image {2 * i + 1}"], case


def test_an_image_that_chokes_the_model_stops_no_other(pipeline):
    client = QdrantClient(":memory:")
    odd = picture(5)
    odd[0, 0] = (1, 2, 3)
    report = ingestor(client, pipeline).add([picture(1), odd, picture(2)])
    assert counts(report) == (2, 0, 1)
    assert report.failed[0].name == "image 2"
    assert report.failed[0].reason == "RuntimeError: the model choked"


def test_missing_weights_stop_everything(pipeline, monkeypatch):
    def scenes(*args):
        raise WeightsError("no weights")

    monkeypatch.setattr(pipeline, "scenes", scenes)
    with pytest.raises(WeightsError):
        ingestor(QdrantClient(":memory:"), pipeline).add([picture(1)])


def test_one_id_for_two_images(pipeline):
    client = QdrantClient(":memory:")
    report = ingestor(client, pipeline).add([picture(1), picture(2), picture(1)], ids=[5, 5, 5])
    assert counts(report) == (1, 1, 1)
    assert "id 5 was given to another image" in report.failed[0].reason


def test_nothing_and_nothing_good(tmp_path):
    client = QdrantClient(":memory:")
    report = ingestor(client).add([])
    assert counts(report) == (0, 0, 0)
    report = ingestor(client).add([b"no picture", tmp_path / "none.png"])
    assert counts(report) == (0, 0, 2)
    assert summary(report).splitlines()[0].startswith("0 added, 0 skipped, 2 failed")
    assert "none.png: no such file" in summary(report)
    assert summary(report, most=1).endswith("and 1 more")
    with pytest.raises(ImageError, match="no such file or folder"):
        ingestor(client).add(tmp_path / "none")
    with pytest.raises(ImageError, match="no image in this folder"):
        ingestor(client).add(tmp_path)


def test_wrong_settings(folder):
    client = QdrantClient(":memory:")
    for wrong, message in [
        ({"on_exists": "overwrite"}, '"skip" or "replace"'),
        ({"batch_size": 0}, "at least 1"),
        ({"ids": [1, 2]}, "2 id values for 6 images"),
        ({"payloads": "abc"}, "one per image"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ingestor(client).add(folder, **wrong)
    report = ingestor(client).add((picture(i) for i in range(3)), ids=iter([1]))
    assert counts(report) == (1, 0, 2)
    assert "no id given for it" in report.failed[0].reason


def test_another_encoder_is_refused(client):
    ingestor(client, ColourPipeline("1")).add([picture(1)])
    with pytest.raises(CollectionError, match="filled with another encoder"):
        ingestor(client, ColourPipeline("2")).add([picture(2)])
    assert client.count("images").count == 1


def test_a_dead_server_stops_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = QdrantClient(url=f"http://127.0.0.1:{port}", check_compatibility=False)
    start = time.perf_counter()
    with pytest.raises(IngestStopped, match="did not answer in 2 attempts") as caught:
        ingestor(client).add(picture(i) for i in range(100))
    assert time.perf_counter() - start < 5
    assert caught.value.report.added == 0


def test_a_lost_server_stops_and_says_what_is_in(pipeline, monkeypatch):
    client = QdrantClient(":memory:")
    upsert, calls = client.upsert, []

    def dying(collection_name, points, wait, timeout=None):
        calls.append(len(points))
        if len(calls) > 2:
            raise ResponseHandlingException(httpx.ConnectError("gone"))
        return upsert(collection_name, points)

    monkeypatch.setattr(client, "upsert", dying)
    images = [picture(i) for i in range(20)]
    with pytest.raises(ServerError, match="by then: 8 images, 0 skipped") as caught:
        ingestor(client, pipeline).add(images, batch_size=4)
    assert caught.value.report.added == 8 == client.count("images").count
    monkeypatch.undo()
    assert counts(ingestor(client, pipeline).add(images)) == (12, 8, 0)


def test_an_interrupt_leaves_a_sound_collection(pipeline, monkeypatch):
    client = QdrantClient(":memory:")
    scenes = pipeline.scenes

    def interrupted(*args):
        if len(pipeline.calls) == 2:
            raise KeyboardInterrupt
        return scenes(*args)

    monkeypatch.setattr(pipeline, "scenes", interrupted)
    images = [picture(i) for i in range(20)]
    with pytest.raises(KeyboardInterrupt):
        ingestor(client, pipeline).add(images, batch_size=4)
    assert client.count("images").count == 8
    monkeypatch.undo()
    assert counts(ingestor(client, pipeline).add(images, batch_size=4)) == (12, 8, 0)


# -- how it goes -------------------------------------------------------------------------------------------


def test_generators_are_taken_a_few_batches_ahead(pipeline, monkeypatch):
    taken, ahead = [], []
    scenes = pipeline.scenes

    def watched(images, objects, seconds):
        ahead.append(len(taken) - 2 * len(pipeline.calls))
        return scenes(images, objects, seconds)

    def endless():
        for i in range(40):
            taken.append(i)
            yield picture(i)

    monkeypatch.setattr(pipeline, "scenes", watched)
    assert counts(ingestor(QdrantClient(":memory:"), pipeline).add(endless(), batch_size=2)) == (40, 0, 0)
    assert max(ahead) <= 6  # three batches of two


def test_quiet_unless_on_a_terminal(capfd, monkeypatch, pipeline):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    ingestor(QdrantClient(":memory:"), pipeline).add([picture(1)])
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    ingestor(QdrantClient(":memory:"), pipeline).add([picture(1)], progress=False)
    assert capfd.readouterr() == ("", "")
    ingestor(QdrantClient(":memory:"), pipeline).add([picture(1), b"bad"])
    out, err = capfd.readouterr()
    assert out == ""
    assert "2/2" in err


def test_importing_loads_no_torch():
    imports = "import sys, soir_qdrant.ingest, soir_qdrant.search, soir_qdrant.filters"
    code = f"{imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KILLED = """
import sys
from pathlib import Path
from qdrant_client import QdrantClient
from conftest import ColourPipeline
from soir_qdrant.ingest import SoirIngestor

where, pictures = sys.argv[1:]
print("ready", flush=True)
client = QdrantClient(url=where) if "://" in where else QdrantClient(path=where)
report = SoirIngestor(client, pipeline=ColourPipeline(pause=0.03)).add(pictures, batch_size=3)
print(report.added, report.skipped, len(report.failed), flush=True)
client.close()
"""


def start(where: str, pictures: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    arguments = [sys.executable, "-c", KILLED, where, str(pictures)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", pytest.param("server", marks=pytest.mark.server)])
def test_killed_at_any_moment_nothing_is_lost(kind, tmp_path, request):
    """SIGKILL, again and again; then one run to the end: every image is in once."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(120):
        Image.fromarray(picture(i, 200, 150)).save(pictures / f"{i:03}.png")
    where = str(tmp_path / "db") if kind == "path" else request.getfixturevalue("server_url")
    if kind == "server":
        QdrantClient(url=where).delete_collection("images")
    expected = {point_id(hashlib.sha256(path.read_bytes()).hexdigest()) for path in pictures.iterdir()}
    moments = random.Random(0)
    seen: set = set()
    kills = 0
    while kills < 5 or (not seen and kills < 20):
        kills += 1
        process = start(where, pictures)
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        client = QdrantClient(url=where) if kind == "server" else QdrantClient(path=where)
        if client.collection_exists("images"):
            now = stored(client)
            assert seen <= set(now) <= expected
            assert all(payload["soir"]["count"] == 1 for payload in now.values())
            seen = set(now)
        client.close()
    last = start(where, pictures)
    out, _ = last.communicate(timeout=120)
    assert out.split() == ["ready", str(120 - len(seen)), str(len(seen)), "0"]
    assert 0 < len(seen) < 120  # else the kills came too early or too late to mean anything
    client = QdrantClient(url=where) if kind == "server" else QdrantClient(path=where)
    assert set(stored(client)) == expected
    assert client.count("images", exact=True).count == 120
    client.close()


def test_painted_and_bombs_are_what_they_seem():
    assert painted(((0, 0, 5, 5), (1, 1, 1))).shape == (60, 80, 3)
    assert len(png_header(20_000, 10_000)) < 200
