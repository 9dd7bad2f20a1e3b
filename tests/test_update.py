"""Adding again: what is as it was stays, and what is not can be made anew."""

import numpy as np
import pytest
import torch
from conftest import ColourPipeline, counts, ingestor, picture, stored
from PIL import Image
from qdrant_client import QdrantClient, models

from soir_qdrant.ingest.ingestor import summary
from soir_qdrant.models.compatibility import trunk
from soir_qdrant.models.heads.boxes import Head
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import SceneObject


def with_recipe(detector):
    pipeline = ColourPipeline()
    pipeline.recipe = {"detector": detector}
    return pipeline


def renewed(report):
    return report.updated, report.stale, report.changed


def test_after_another_head_was_trained_a_second_add_says_so_and_renews(client, folder):
    ingestor(client, with_recipe("first head")).add(folder)
    before = stored(client)
    again = ingestor(client, with_recipe("second head")).add(folder)
    assert counts(again) == (0, 6, 0)
    assert renewed(again) == (0, 6, 0)
    assert "6 stored by another recipe: on_exists='update' renews them" in summary(again)
    assert stored(client) == before
    pipeline = with_recipe("second head")
    update = ingestor(client, pipeline).add(folder, on_exists="update")
    assert counts(update) == (0, 0, 0)
    assert renewed(update) == (6, 0, 0)
    assert "6 updated" in summary(update)
    assert sum(map(len, pipeline.calls)) == 6
    after = stored(client)
    assert set(after) == set(before)
    assert all(after[i]["soir"]["recipe"] != before[i]["soir"]["recipe"] for i in before)
    done = ingestor(client, pipeline).add(folder, on_exists="update")
    assert counts(done) == (0, 6, 0)
    assert renewed(done) == (0, 0, 0)
    assert "renews" not in summary(done)


def test_a_head_in_a_file_that_is_trained_anew(tiny_settings, folder, tmp_path):
    """With the models themselves: what `soir train detector` writes, and a profile that names it."""
    head = tmp_path / "detector.safetensors"
    settings = tiny_settings.but(
        detector={"kind": "embedded", "head": str(head)}, segmenter={"kind": "box"}, vector={"pooling": "gmp"}
    )
    client, encoder = QdrantClient(":memory:"), trunk(Pipeline(settings).encoder.fingerprint)

    def trained(seed):
        torch.manual_seed(seed)
        Head(24, (8, 8, 8)).save(head, encoder)
        return ingestor(client, Pipeline(settings))

    assert counts(trained(0).add(folder)) == (6, 0, 0)
    assert renewed(trained(0).add(folder, on_exists="update")) == (0, 0, 0)  # the same head
    assert renewed(trained(1).add(folder)) == (0, 6, 0)
    assert renewed(trained(1).add(folder, on_exists="update")) == (6, 0, 0)
    assert renewed(trained(1).add(folder)) == (0, 0, 0)


def test_points_of_version_0_1_have_no_recipe_and_count_as_stale(client):
    adder = ingestor(client)
    adder.add([picture(1)])
    ((id_, payload),) = stored(client).items()
    del payload["soir"]["recipe"]
    client.set_payload("images", {"soir": payload["soir"]}, [id_])
    assert renewed(adder.add([picture(1)])) == (0, 1, 0)
    assert renewed(adder.add([picture(1)], on_exists="update")) == (1, 0, 0)
    assert renewed(adder.add([picture(1)])) == (0, 0, 0)


def test_a_changed_picture_under_an_id_of_ones_own(client):
    adder = ingestor(client)
    adder.add([picture(1)], ids=[7])
    again = adder.add([picture(2)], ids=[7])
    assert counts(again) == (0, 1, 0)
    assert renewed(again) == (0, 0, 1)
    assert "1 changed since: on_exists='update' renews them" in summary(again)
    old = stored(client)[7]["soir"]["sha256"]
    assert renewed(adder.add([picture(2)], ids=[7], on_exists="update")) == (1, 0, 0)
    assert stored(client)[7]["soir"]["sha256"] != old


def test_corrected_boxes_are_another_recipe():
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.add([picture(1)], objects=[[SceneObject((0, 0, 20, 20), label="cup")]])
    same = adder.add([picture(1)], objects=[[SceneObject((0, 0, 20, 20), label="cup")]], on_exists="update")
    assert renewed(same) == (0, 0, 0)
    other = adder.add([picture(1)], objects=[[SceneObject((0, 0, 20, 20), label="mug")]], on_exists="update")
    assert renewed(other) == (1, 0, 0)
    (payload,) = stored(client).values()
    assert payload["soir"]["labels"] == ["mug"]


@pytest.mark.parametrize("on_exists", ["update", "replace"])
def test_vectors_and_payload_of_others_survive(client, on_exists):
    """As where a second program keeps its own vector and its own keys on the same points."""
    dense = models.VectorParams(size=12, distance=models.Distance.COSINE)
    theirs = models.VectorParams(size=2, distance=models.Distance.DOT)
    client.create_collection("images", {"picture": dense, "theirs": theirs})
    ingestor(client, vector_name="picture").add([picture(1), picture(2)], payloads=[{"n": 1}, {"n": 2}])
    for id_ in stored(client):
        client.update_vectors("images", [models.PointVectors(id=id_, vector={"theirs": [3.0, 4.0]})])
        client.set_payload("images", {"reviewed": "yes"}, [id_])
    adder = ingestor(client, with_recipe("other"), vector_name="picture")
    report = adder.add([picture(1), picture(2)], payloads=[{"n": 3}, None], on_exists=on_exists)
    assert renewed(report) == (2, 0, 0)
    records, _ = client.scroll("images", with_vectors=True)
    for record in records:
        assert record.vector["theirs"] == [3.0, 4.0]
        assert np.isclose(np.linalg.norm(record.vector["picture"]), 1, atol=1e-5)
        assert record.payload["reviewed"] == "yes"
    assert {record.payload["n"] for record in records} == {2, 3}


def test_a_lost_write_of_an_update_is_made_up_for(stand_in):
    client = stand_in.client()
    ingestor(client).add([picture(i) for i in range(3)])
    stand_in.faults = [503, "late", None]
    report = ingestor(client, with_recipe("other")).add([picture(i) for i in range(3)], on_exists="update")
    assert renewed(report) == (3, 0, 0)
    assert counts(report) == (0, 0, 0)


def test_a_bad_list_of_objects_fails_its_image_alone(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(picture(1)).save(file)
    report = ingestor(QdrantClient(":memory:")).add([picture(2), file], objects=[7, None])
    assert counts(report) == (1, 0, 1)
