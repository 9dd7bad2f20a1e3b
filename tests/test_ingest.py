import hashlib
import subprocess
import sys
import uuid

import numpy as np
import pytest
from conftest import counts, ingestor, picture, stored
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest import outcome
from soir_qdrant.ingest import reading as batches
from soir_qdrant.qdrant.codes import decode
from soir_qdrant.qdrant.identity import point_id
from soir_qdrant.types import SceneObject


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
    assert counts(adder.add(folder, payloads=[{"turn": 3}] * 6, on_exists="replace")) == (0, 0, 0)
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


def test_names_may_be_paths_and_those_of_no_image_are_told(folder, pipeline, caplog):
    client = QdrantClient(":memory:")
    file = folder / "0.png"
    ingestor(client, pipeline).add([file], payloads={file: {"n": 0}})
    assert [payload["n"] for payload in stored(client).values()] == [0]
    assert not caplog.messages
    ingestor(client, pipeline).add(folder, payloads={file: {"n": 0}})  # of a folder: "0.png"
    (said,) = caplog.messages
    assert "payload: given for 1 names that no image has" in said
    assert str(file) in said


def test_frames_may_be_read_into_one_array(pipeline):
    def frames():
        buffer = np.empty_like(picture(0))
        for i in range(20):
            buffer[:] = picture(i)
            yield buffer

    assert counts(ingestor(QdrantClient(":memory:"), pipeline).add(frames())) == (20, 0, 0)


def test_codes_follow_the_setting(pipeline):
    for count, length in ((0, None), (4, 4), (64, 12)):
        client = QdrantClient(":memory:")
        ingestor(client, pipeline, object_codes=count).add([picture(1)])
        (payload,) = stored(client).values()
        code = payload["soir"]["objects"][0].get("code")
        assert (code and len(decode(code))) == length
    with pytest.raises(ConfigError):
        ingestor(client, object_codes=-1)


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


@pytest.mark.slow
def test_importing_loads_no_torch():
    imports = (
        "import sys, soir_qdrant.ingest.ingestor, soir_qdrant.search.searcher, soir_qdrant.qdrant.filters"
    )
    code = f"{imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_log_says_that_the_first_batch_is_at_work(caplog, monkeypatch):
    caplog.set_level("INFO", "soir_qdrant")
    now = iter([0.0, 31.0, 40.0])
    monkeypatch.setattr(outcome.time, "monotonic", lambda: next(now))
    lines = outcome._Lines(24)
    lines.add(0, 30)
    lines.add(8, 5)
    assert caplog.messages == ["0 of 24 images: the first batch is at work", "8 of 24 images, 0.2 a second"]
