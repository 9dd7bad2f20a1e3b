import socket
import time

import httpx
import numpy as np
import pytest
from conftest import ColourPipeline, counts, ingestor, picture
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException
from test_images import BAD

from soir_qdrant.errors import CollectionError, ConfigError, ImageError, ServerError, WeightsError
from soir_qdrant.ingest.ingestor import IngestStopped, summary
from soir_qdrant.types import SceneObject


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


def test_copies_share_the_fate_of_the_first(pipeline):
    bad, good = picture(1), picture(2)
    bad[0, 0] = (1, 2, 3)
    report = ingestor(QdrantClient(":memory:"), pipeline).add([bad, good, bad, b"broken", b"broken", good])
    assert counts(report) == (1, 1, 4)
    again = [failure.reason for failure in report.failed if "the same image as one before" in failure.reason]
    assert any("the model choked" in reason for reason in again)


def test_nothing_and_nothing_good(tmp_path):
    client = QdrantClient(":memory:")
    report = ingestor(client).add([])
    assert counts(report) == (0, 0, 0)
    report = ingestor(client).add([b"no picture", tmp_path / "none.png"])
    assert counts(report) == (0, 0, 2)
    assert summary(report).splitlines()[0].startswith("0 added, 0 skipped, 2 failed")
    assert "none.png: no such file" in summary(report)
    assert summary(report, max_failures=1).endswith("and 1 more")
    with pytest.raises(ImageError, match="no such file or folder"):
        ingestor(client).add(tmp_path / "none")
    with pytest.raises(ImageError, match="no image in this folder"):
        ingestor(client).add(tmp_path)


def test_wrong_settings(folder):
    client = QdrantClient(":memory:")
    for wrong, message in [
        ({"on_exists": "overwrite"}, '"skip", "update" or "replace"'),
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
    with pytest.raises(IngestStopped, match="did not answer in 3 attempts") as caught:
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
