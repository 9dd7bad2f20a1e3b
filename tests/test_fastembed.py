"""Our models under qdrant-client's own calls, by way of fastembed's registry: the real packages."""

import asyncio

import numpy as np
import pytest
from conftest import ColourPipeline, painted, picture
from PIL import Image
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from soir_qdrant import SoirIngestor
from soir_qdrant.errors import ConfigError, ImageError

pytest.importorskip("fastembed", reason="fastembed is not installed: `make install` has it")
from fastembed import ImageEmbedding

from soir_qdrant.fastembed import register

MODEL = "soir/colours"
RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
TOP = (5.0, 5.0, 25.0, 25.0)


class Seeing(ColourPipeline):
    """As ColourPipeline, and a query is told from an image: its last number is 1."""

    def query(self, image, **of):
        vector = np.append(super().query(image, **of)[:11], np.float32(1))
        return vector / np.linalg.norm(vector)

    def _scene(self, image, labelled):
        scene = super()._scene(image, labelled)
        scene.vector[11] = 0
        return scene


@pytest.fixture
def pipeline():
    colours = ColourPipeline()
    register(MODEL, pipeline=colours)
    return colours


def image(source, **options):
    return models.Image(image=source, model=MODEL, options=options or None)


def test_the_client_uploads_and_queries_images_by_name(pipeline, tmp_path):
    client = QdrantClient(":memory:")
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        Image.fromarray(picture(i)).save(file)
    size = client.get_embedding_size(MODEL)
    client.create_collection("shelves", models.VectorParams(size=size, distance=models.Distance.COSINE))
    client.upload_points(
        "shelves",
        [models.PointStruct(id=i, vector=image(str(file))) for i, file in enumerate(files)],
        wait=True,
    )
    assert client.count("shelves").count == 5
    for i in range(5):
        (hit,) = client.query_points("shelves", query=image(str(files[i])), limit=1).points
        assert (hit.id, round(hit.score, 4)) == (i, 1)


def test_what_is_searched_for_is_looked_at_as_one_thing_and_what_is_stored_as_a_scene():
    pipeline = Seeing()
    register(MODEL, pipeline=pipeline)
    client = QdrantClient(":memory:")
    client.create_collection("shelves", models.VectorParams(size=12, distance=models.Distance.COSINE))
    client.upsert("shelves", [models.PointStruct(id=1, vector=image(Image.fromarray(picture(0))))])
    (stored,) = client.retrieve("shelves", [1], with_vectors=True)
    assert stored.vector[11] == 0
    by_query = client.query_points("shelves", query=image(picture(0)), limit=1).points[0].score
    as_image = client.query_points("shelves", query=image(picture(0), query=False), limit=1).points[0].score
    assert by_query < 0.95 < as_image


def test_a_box_names_the_thing_in_a_query_image(pipeline):
    client = QdrantClient(":memory:")
    shelf = painted((TOP, RED), ((50.0, 30.0, 75.0, 55.0), GREEN))
    SoirIngestor(client, "shelves", pipeline=pipeline).add([painted(size=(20, 20)), picture(3)], ids=[1, 2])
    client.upsert("shelves", [models.PointStruct(id=3, vector=image(np.full((20, 20, 3), RED, np.uint8)))])
    answer = client.query_points("shelves", query=image(shelf, box=TOP), limit=1)
    assert [hit.id for hit in answer.points] == [3]


def test_a_collection_that_was_ingested_is_queried_by_the_client_too(pipeline):
    client = QdrantClient(":memory:")
    images = [picture(i) for i in range(4)]
    SoirIngestor(client, "shelves", pipeline=pipeline).add(images, ids=range(4))
    batch = client.query_batch_points(
        "shelves", [models.QueryRequest(query=image(i), limit=1) for i in images]
    )
    assert [answer.points[0].id for answer in batch] == [0, 1, 2, 3]


def test_the_asynchronous_client_knows_it_too(pipeline):
    async def scenario():
        client = AsyncQdrantClient(":memory:")
        await client.create_collection(
            "shelves", models.VectorParams(size=12, distance=models.Distance.COSINE)
        )
        await client.upsert("shelves", [models.PointStruct(id=1, vector=image(picture(1)))])
        return (await client.query_points("shelves", query=image(picture(1)))).points[0].score

    assert asyncio.run(scenario()) > 0.999


def test_fastembed_itself_lists_and_runs_it_in_batches(pipeline):
    assert {"model": MODEL, "dim": 12}.items() <= next(
        known for known in ImageEmbedding.list_supported_models() if known["model"] == MODEL
    ).items()
    vectors = list(ImageEmbedding(MODEL).embed([picture(i) for i in range(5)], batch_size=2))
    assert [len(call) for call in pipeline.calls] == [2, 2, 1]
    assert np.allclose(vectors[3], next(iter(ImageEmbedding(MODEL).embed(picture(3)))))


def test_registered_again_it_is_the_new_one():
    register(MODEL, pipeline=ColourPipeline())
    pipeline = ColourPipeline()
    register(MODEL, pipeline=pipeline)
    list(ImageEmbedding(MODEL).embed(picture(0)))
    assert len(pipeline.calls) == 1
    assert sum(known["model"] == MODEL for known in ImageEmbedding.list_supported_models()) == 1


def test_a_file_of_settings_does_not_take_the_name_of_what_it_changes(monkeypatch):
    monkeypatch.setattr("soir_qdrant.assembly.make_pipeline", lambda profile: ColourPipeline())
    assert register(profile="settings/mine.json") == "soir/mine"
    assert register(profile="fast") == "soir/fast"
    assert register("soir/own", profile="settings/mine.json") == "soir/own"


def test_errors_say_which_image_and_which_option(pipeline, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png"):
        list(ImageEmbedding(MODEL).embed(str(tmp_path / "gone.png")))
    with pytest.raises(ConfigError, match="no option bocks: its options are query and box"):
        ImageEmbedding(MODEL, bocks=1)
    with pytest.raises(ConfigError, match="parallel=4"):
        list(ImageEmbedding(MODEL).embed([picture(0)], parallel=4))
