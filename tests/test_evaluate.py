"""Evaluation, calibration and the command line on a small real benchmark with the real pipeline."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from soir_qdrant.calibrate import Moments
from soir_qdrant.cli import app
from soir_qdrant.errors import DatasetError
from soir_qdrant.evaluate.compare import METHODS
from soir_qdrant.evaluate.datasets import load
from soir_qdrant.evaluate.needle import generate
from soir_qdrant.evaluate.sources import Sources


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "small"
    return generate(
        folder, split="test", track="2d", scenes=12, targets=4, sources=Sources.shipped(), progress=False
    )


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_given_their_objects_small_things_are_found_better_than_by_the_whole_picture(bench, tmp_path):
    file = tmp_path / "result.json"
    output = run("evaluate", bench, "--json", file)
    found = json.loads(file.read_text())
    assert list(found) == list(METHODS)
    assert all(set(row) >= {"mAP", "R@1", "R@10"} for row in found.values())
    assert found["default"]["mAP"] > found["global"]["mAP"] + 10
    assert found["objects"]["mAP"] >= 70
    assert "calibrated" in output


@pytest.mark.slow
def test_detected_objects_a_refitted_whitening_and_a_search_by_the_command(bench, tmp_path):
    file, white, db = tmp_path / "result.json", tmp_path / "white.safetensors", tmp_path / "db"
    run("evaluate", bench, "--objects", "detected", "--methods", "default,chance", "--json", file)
    found = json.loads(file.read_text())
    assert 0.3 < found["detector"]["recall@0.5"] <= 1
    assert found["detector"]["boxes"] <= 25
    assert found["default"]["mAP"] > found["chance"]["mAP"]

    done = CliRunner().invoke(app, ["calibrate", str(bench), "--out", str(white)])
    assert "at least 200" in str(done.exception)  # about 100 objects are too few for a whitening

    run("ingest", bench / "gallery", "--path", db)
    query = sorted((bench / "queries").glob("*.png"))[0]
    hits = json.loads(run("search", query, "--path", db, "--limit", 3, "--json"))
    assert len(hits) == 3
    assert hits[0]["box"] is not None
    told = json.loads(run("info", "--path", db, "--json"))
    assert told["collections"]["images"]["points"] == 12


def test_running_moments_are_those_of_all_rows():
    x = np.random.default_rng(0).normal(size=(50, 6)) + 3
    moments = Moments()
    for part in np.split(x, [7, 30]):
        moments.add(part)
    assert np.allclose(moments.mean, x.mean(0))
    assert np.allclose(moments.covariance, np.cov(x, rowvar=False))


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(file)


def test_the_published_layouts_are_read(tmp_path):
    for name in ("scene.jpg", "query.jpg"):
        picture(tmp_path / "set" / name)
    entry = {"instance": "mug", "bbox": [1, 2, 10, 20]}
    held = {"gallery": {"scene.jpg": [entry]}, "queries": [{"file": "query.jpg", "instance": "mug"}]}
    torch.save(held, tmp_path / "set" / "anns.pt")
    (tmp_path / "set" / "permir.json").write_text(json.dumps(held))
    for part in ("gallery", "queries"):
        picture(tmp_path / "set" / part / "a.jpg")
        (tmp_path / "set" / part / "a.txt").write_text("mug 1 2 10 20\n")
    for layout in ("voxdet", "permir", "instre"):
        bench = load(tmp_path / "set", layout)
        assert bench.gallery[0].objects[0].box == (1, 2, 11, 22)
        assert bench.relevant(bench.queries[0]) == [0]


@pytest.mark.parametrize("layout", ["needle", "voxdet", "permir", "instre", "none"])
def test_a_missing_set_says_what_is_missing(layout, tmp_path):
    with pytest.raises(DatasetError, match=r"missing|annotations\.json|choose one"):
        load(tmp_path, layout)


def test_annotations_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "anns.pt").write_bytes(b"not torch")
    (tmp_path / "permir.json").write_text('{"gallery": [], "queries": []}')
    for layout in ("voxdet", "permir"):
        with pytest.raises(DatasetError, match=r"anns\.pt|permir\.json"):
            load(tmp_path, layout)
