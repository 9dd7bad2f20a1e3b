"""An evaluation that is killed goes on; what it keeps is never taken for another setting's."""

import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import painted
from PIL import Image
from typer.testing import CliRunner

from soir_qdrant.cli import main as cli
from soir_qdrant.cli.console import LineProgress
from soir_qdrant.errors import ConfigError
from soir_qdrant.lab.evaluate.cache import ArrayCache, code_digest
from soir_qdrant.lab.evaluate.compare import DEFAULT_ROWS, ROWS, evaluate, rows_of
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.report import cache_folder
from soir_qdrant.models.detectors.owlv2 import Owlv2Detector

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]
CHEAP = ("global", "global-untuned", "mean", "default", "rerank-codes", "rerank-objects", "chance")


@pytest.fixture
def bench(tmp_path):
    """Twelve images with two coloured things each, no two alike; three queries."""
    folder = tmp_path / "bench"
    (folder / "gallery").mkdir(parents=True)
    (folder / "queries").mkdir()
    gallery = []
    for i in range(12):
        first, second = i % 6, (i + 1 + i // 6) % 6
        boxes = [(5 + i, 5, 25 + i, 25), (50, 30, 60, 40 + i % 3)]
        scene = painted(*zip(boxes, (COLOURS[first], COLOURS[second]), strict=True))
        Image.fromarray(scene).save(folder / f"gallery/{i:02}.png")
        objects = [{"instance": str(n), "box": list(b)} for n, b in zip((first, second), boxes, strict=True)]
        gallery.append({"file": f"gallery/{i:02}.png", "mask": None, "objects": objects})
    for n in range(3):
        Image.fromarray(painted(((8, 8, 32, 32), COLOURS[n]), size=(40, 40))).save(
            folder / f"queries/{n}.png"
        )
    queries = [{"file": f"queries/{n}.png", "instance": str(n)} for n in range(3)]
    (folder / "annotations.json").write_text(json.dumps({"gallery": gallery, "queries": queries}))
    return folder


@pytest.fixture
def detector(monkeypatch):
    """Counts the images that the real detector sees; from `stop` on, it is interrupted."""

    class Counter:
        seen, stop = 0, 10**6

    real = Owlv2Detector.detect

    def detect(self, images):
        if Counter.seen + len(images) > Counter.stop:
            raise KeyboardInterrupt
        Counter.seen += len(images)
        return real(self, images)

    monkeypatch.setattr(Owlv2Detector, "detect", detect)
    return Counter


def figures(results):
    """Without what is measured with a clock."""
    return {
        name: {k: v for k, v in row.items() if k not in ("ms_per_candidate", "core_seconds")}
        for name, row in results.items()
    }


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_gives_the_same_table(bench, detector, tiny_settings, tmp_path):
    options = {"objects": "detected", "rows": CHEAP, "settings": tiny_settings}
    whole = evaluate(load(bench), **options)
    assert detector.seen == 12

    detector.seen, detector.stop = 0, 8
    with pytest.raises(KeyboardInterrupt):
        evaluate(load(bench), cache=tmp_path / "cache", **options)
    assert detector.seen == 8

    detector.seen, detector.stop = 0, 10**6
    resumed = evaluate(load(bench), cache=tmp_path / "cache", **options)
    assert detector.seen == 4
    assert figures(resumed) == figures(whole)
    assert resumed["ingest"]["core_seconds"] > 0

    detector.seen = 0
    more = evaluate(load(bench), cache=tmp_path / "cache", **(options | {"rows": (*CHEAP, "paper")}))
    assert detector.seen == 0  # another row alone is computed
    assert more["paper"]["mAP"] > 0
    assert figures(more)["default"] == figures(whole)["default"]


@pytest.mark.slow
def test_exported_models_find_what_those_here_find(bench, detector, tiny_settings, tiny_models, tmp_path):
    from soir_qdrant.serving.onnx import OnnxRuntime

    options = {"objects": "detected", "rows": ("default", "search"), "settings": tiny_settings}
    here = evaluate(load(bench), cache=tmp_path / "cache", **options)
    assert detector.seen == 12
    runtime = OnnxRuntime(tiny_models, tiny_settings)
    there = evaluate(load(bench), cache=tmp_path / "cache", runtime=runtime, **options)
    assert detector.seen == 12
    assert len(list((tmp_path / "cache").iterdir())) == 2  # neither reads what the other kept
    for row in ("default", "search"):
        assert there[row]["mAP"] == pytest.approx(here[row]["mAP"], abs=1)


@pytest.mark.slow
def test_another_setting_file_label_or_picture_does_not_read_what_was_kept(
    bench, detector, tiny_settings, tmp_path
):
    def detected(settings=tiny_settings, objects="detected"):
        detector.seen = 0
        options = {"objects": objects, "rows": ("default",), "settings": settings}
        evaluate(load(bench), cache=tmp_path / "cache", **options)
        return detector.seen

    assert detected() == 12
    assert detected() == 0
    assert detected(tiny_settings.but(detector={"max_objects": 2})) == 12
    assert detected(tiny_settings.but(crop={"margin": 0.2})) == 12

    weights = shutil.copytree(tiny_settings.detector.weights, tmp_path / "owlv2")
    trained = tiny_settings.but(detector={"weights": str(weights)})
    assert detected(trained) == 12
    os.utime(weights / "model.safetensors", (1, 1))
    assert detected(trained) == 12

    entries = set((tmp_path / "cache").rglob("*.npz"))
    assert detected(objects="given") == 0  # labelled boxes: nothing to detect, and files of their own
    given = set((tmp_path / "cache").rglob("*.npz")) - entries
    assert len(given) == 12
    labels = json.loads((bench / "annotations.json").read_text())
    labels["gallery"][0]["objects"][0]["box"][2] += 3
    (bench / "annotations.json").write_text(json.dumps(labels))
    detected(objects="given")
    assert len(set((tmp_path / "cache").rglob("*.npz")) - entries - given) == 1

    Image.fromarray(painted(((1, 1, 30, 30), COLOURS[0]))).save(bench / "gallery/00.png")
    assert detected() == 1


def test_a_damaged_file_of_the_cache_is_made_anew(tmp_path):
    cache = ArrayCache(tmp_path, {"any": "recipe"})
    cache.save("a", {"x": np.arange(3)})
    (file,) = tmp_path.rglob("*.npz")
    assert np.array_equal(ArrayCache(tmp_path, {"any": "recipe"}).load("a")["x"], np.arange(3))
    assert ArrayCache(tmp_path, {"any": "other"}).load("a") is None
    file.write_bytes(file.read_bytes()[:40])
    assert cache.load("a") is None
    assert not list(tmp_path.rglob("*.part"))
    assert code_digest() == code_digest()


def test_without_a_folder_of_its_own_the_cache_goes_when_the_result_is_there(tmp_path):
    file = tmp_path / "result.json"
    cache = tmp_path / "result.json.cache"
    cache.mkdir()
    with pytest.raises(ZeroDivisionError), cache_folder(None, file):
        _ = 1 / 0
    assert cache.is_dir()
    with cache_folder(None, file) as again:
        assert again == cache
    assert not cache.exists()
    (tmp_path / "mine").mkdir()
    with cache_folder(tmp_path / "mine", file) as mine:
        pass
    assert mine == tmp_path / "mine"
    assert mine.is_dir()


def test_the_command_takes_rows_and_leaves_the_slow_one_out(bench, tiny_settings, tmp_path):
    assert "q-perturbation" not in DEFAULT_ROWS
    assert "q-perturbation" in ROWS
    profile, file = tmp_path / "tiny.json", tmp_path / "result.json"
    profile.write_text(tiny_settings.model_dump_json())
    options = ["evaluate", bench, "--profile", profile, "--objects", "detected", "--json", file]
    done = CliRunner().invoke(cli.app, [*map(str, options), "--rows", "default,search,chance"])
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text())
    assert list(results) == ["default", "search", "chance", "ingest", "detector"]
    assert list(results["detector"]["by_size"]) == ["<0.5%", "0.5-1%", "1-3%", "3-10%", ">10%"]
    assert results["ingest"]["boxes"] == results["detector"]["boxes"]
    assert "search()" in done.output
    assert "core-seconds" in done.output
    assert list(file.parent.glob("result*")) == [file]
    with pytest.raises(ConfigError, match="no row nothing: choose rows"):
        evaluate(load(bench), rows=["nothing"])


def test_rows_that_the_settings_do_not_have_are_refused_before_anything_is_computed(bench, tiny_settings):
    refined = tiny_settings.but(vector={"pooling": "mao"})
    loaded = load(bench)

    def computed():
        raise AssertionError("an image was computed")

    with pytest.raises(ConfigError, match="row 'calibrated' needs pooling"):
        evaluate(loaded, rows=["default", "calibrated"], settings=refined, advance=computed)
    assert "calibrated" in rows_of(None, tiny_settings)
    assert list(rows_of(None, refined)) == [row for row in DEFAULT_ROWS if row != "calibrated"]


def test_a_log_gets_a_line_now_and_then():
    lines, now = [], [0.0]
    progress = LineProgress("evaluate x", 10, write=lines.append, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 20
        progress.advance()
    assert lines[0] == "evaluate x: 2/10, 0.05 a second, 0:02:40 left"
    assert [line.split(",")[0].split()[-1] for line in lines] == ["2/10", "4/10", "6/10", "8/10", "10/10"]


@pytest.mark.slow
def test_the_benchmark_of_photographs_writes_one_file_and_goes_on(
    bench, detector, tiny_settings, tmp_path, monkeypatch, capsys
):
    photos, check, profile = tmp_path / "photos", tmp_path / "photos/check", tmp_path / "tiny.json"
    profile.write_text(tiny_settings.model_dump_json())
    check.mkdir(parents=True)
    bench.rename(photos / "dev-things")
    Image.fromarray(painted(((5, 5, 25, 25), COLOURS[0]))).save(check / "0.png")
    labels = {
        "images": [{"id": 0, "file_name": "0.png"}],
        "annotations": [{"image_id": 0, "bbox": [5, 5, 20, 20]}],
    }
    (check / "coco.json").write_text(json.dumps(labels))
    out = tmp_path / "build/real.json"
    arguments = ["real", photos, "--profile", profile, "--rows", "default,chance", "--out", out]
    monkeypatch.setattr("sys.argv", [*map(str, arguments), "--cache", str(tmp_path / "cache")])
    real = Path(__file__).parent.parent / "benchmarks/real.py"
    runpy.run_path(str(real), run_name="__main__")
    results, text = json.loads(out.read_text()), out.with_suffix(".md").read_text()
    assert [(one["set"], one["objects"]) for one in results["retrieval"]] == [
        ("dev-things", "detected"),
        ("dev-things", "given"),
    ]
    assert [one["set"] for one in results["detection"]] == ["check"]
    assert text.count("| dev-things | detected | tiny | one vector") == 1
    assert text.count("| check | tiny | 1 | 1 |") == 1
    assert len({line.count("|") for line in text.splitlines()[:6]}) == 1  # every line has all columns
    assert text in capsys.readouterr().out

    detector.seen = 0
    runpy.run_path(str(real), run_name="__main__")
    assert detector.seen == 0
