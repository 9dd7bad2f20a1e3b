"""Many actors, one collection: nothing lost and nothing doubled, whoever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, picture
from models import tiny_encoder
from PIL import Image
from qdrant_client import QdrantClient

import soir_qdrant
from soir_qdrant import SoirIngestor
from soir_qdrant.config import Settings
from soir_qdrant.errors import ServerError
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.last_ingest import recall

pytest.importorskip("ray", reason="ray is not installed: the extra ray has it, 500 MB")
pytestmark = pytest.mark.slow
PLACES = os.pathsep.join([str(Path(soir_qdrant.__file__).parents[1]), str(Path(__file__).parent)])
COUNT = 24
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # on a busy machine it takes longer than 30


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """A tiny encoder; the image is the one object."""
    weights = str(tiny_encoder(tmp_path_factory.mktemp("weights") / "vit"))
    return Settings().but(
        encoder={"weights": weights, "adapter": None, "input_size": 32, "dtype": "float32", "device": "cpu"},
        detector={"kind": "none"},
        segmenter={"kind": "box"},
        vector={"whitening": None},
    )


@pytest.fixture
def images(tmp_path) -> Path:
    """COUNT of them, one twice, and one that is damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(COUNT):
        Image.fromarray(picture(i)).save(folder / f"{i:02}.png")
    (folder / "twice.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "damaged.png").write_bytes((folder / "01.png").read_bytes()[:200])
    return folder


@pytest.fixture
def target(stand_in, settings):
    from soir_qdrant.scale import Target

    return Target(stand_in.url, settings=settings.model_dump(mode="json"), retry=QUICK)


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    """Two cores, whatever there are. Workers find this checkout and these tests."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": PLACES}},
    )
    yield
    ray.shutdown()


def vectors(client: QdrantClient) -> dict:
    points, _ = client.scroll("images", limit=1000, with_vectors=True)
    return {point.id: point.vector for point in points}


def test_two_actors_store_what_one_process_stores(stand_in, target, settings, images):
    from soir_qdrant.scale import ingest

    local = QdrantClient(":memory:")
    SoirIngestor(local, pipeline=Pipeline(settings)).add(images)
    steps = []
    report = ingest(
        images, target, actors=2, batch_size=4, progress=lambda done, total: steps.append((done, total))
    )
    assert [Path(f.name).name for f in report.failed] == ["damaged.png"], report.failed[:2]
    assert steps == sorted(steps)
    assert steps[-1] == (COUNT + 2, COUNT + 2)
    one, other = vectors(stand_in.memory), vectors(local)
    assert one.keys() == other.keys()
    for id_, vector in one.items():
        np.testing.assert_allclose(vector, other[id_], atol=1e-5)
    assert report.added + report.skipped == COUNT + 1
    assert [Path(failure.name).name for failure in report.failed] == ["damaged.png"]
    record = recall(stand_in.memory, "images", None)
    assert (record["counts"]["added"], record["failures"]) == (report.added, 1)
    (point,) = stand_in.memory.scroll("images", limit=1)[0]
    assert Path(point.payload["soir"]["uri"]).parent == images

    again = ingest(images, target, actors=2, batch_size=4)
    assert (again.added, again.skipped, len(again.failed)) == (0, COUNT + 1, 1)


def test_an_actor_that_dies_is_replaced(stand_in, target, images, tmp_path):
    from scale_actors import DyingEmbed

    from soir_qdrant.scale import ingest

    report = ingest(images, target, actors=2, batch_size=4, embed=DyingEmbed.once(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert report.added + report.skipped == COUNT + 1
    assert stand_in.memory.count("images").count == COUNT


def test_a_parquet_file_brings_addresses_payload_and_objects(stand_in, target, images, tmp_path):
    import pyarrow.parquet
    from scale_actors import LightEmbed

    from soir_qdrant.scale import ingest

    uris = sorted(map(str, images.glob("0*.png")))
    table = pyarrow.table({"uri": uris, "payload": [json.dumps({"row": i}) for i in range(len(uris))]})
    pyarrow.parquet.write_table(table, tmp_path / "uris.parquet")
    report = ingest(tmp_path / "uris.parquet", target, actors=1, batch_size=4, embed=LightEmbed)
    assert (report.added, report.failed) == (len(uris), [])
    points, _ = stand_in.memory.scroll("images", limit=100)
    assert {point.payload["soir"]["uri"]: point.payload["row"] for point in points} == {
        uri: row for row, uri in enumerate(uris)
    }


def test_rows_kept_in_a_file_fill_a_collection_that_is_not_there_yet(stand_in, target, images, tmp_path):
    import ray

    from soir_qdrant.scale import Embed, QdrantSink

    rows = ray.data.from_items([{"uri": str(file)} for file in sorted(images.glob("0*.png"))])
    described = rows.map_batches(Embed, fn_constructor_args=(target,), batch_format="pyarrow", concurrency=1)
    described.write_parquet(str(tmp_path / "rows"))
    sink = QdrantSink(replace(target, collection="copy", keep_objects=True))
    ray.data.read_parquet(str(tmp_path / "rows")).write_datasink(sink, ray_remote_args={"num_cpus": 0})
    made, copy = (stand_in.memory.get_collection(name) for name in ("images", "copy"))
    assert (made.points_count, copy.points_count) == (0, 10)
    assert sink.report.added == 10
    assert copy.config.metadata == made.config.metadata
    assert copy.payload_schema.keys() == made.payload_schema.keys()


def test_what_stops_the_actors_is_said(stand_in, target, images):
    from scale_actors import LightEmbed, MeanColour

    from soir_qdrant.scale import ingest

    with pytest.raises(ServerError, match=r"cannot go on: could not look for collection .*refused.*the same"):
        ingest(images, replace(target, url="http://127.0.0.1:1"), actors=1, embed=LightEmbed)
    other = MeanColour()
    other.fingerprint = {"encoder": "another", "dim": 3}
    SoirIngestor(stand_in.client(), pipeline=other).add(picture(0))
    with pytest.raises(ServerError, match=r"another encoder or other settings(.*\n)+.*into a new collection"):
        ingest(images, target, actors=1, embed=LightEmbed)


def test_a_driver_that_dies_is_started_again(stand_in, target, images):
    """Killed when some points are in; the same call ends what it began."""
    code = f"""
import json, sys
from scale_actors import LightEmbed
from soir_qdrant.images import ReadOptions
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.scale import Target, ingest
values = json.loads(sys.argv[1])
values["retry"], values["reading"] = Retry(**values["retry"]), ReadOptions(**values["reading"])
print(ingest({str(images)!r}, Target(**values), actors=1, batch_size=1, embed=LightEmbed).added)
"""
    command = [sys.executable, "-c", code, json.dumps(asdict(target))]
    env = {**os.environ, "PYTHONPATH": PLACES}
    driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    while not stand_in.writes:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = stand_in.memory.count("images").count
    assert before > 0
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert stand_in.memory.count("images").count == COUNT
    assert int(done.stdout.split()[-1]) <= COUNT + 1 - before
