"""What is learnt from labelled folders."""

import json
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from soir_qdrant.cli.main import app
from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import load as read
from soir_qdrant.lab.evaluate.bench import load
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.needlebench.needle import generate
from soir_qdrant.lab.needlebench.sources import Sources
from soir_qdrant.lab.train.projection import Scatter
from soir_qdrant.models.heads.boxes import TrainedHead
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening, divided_further
from soir_qdrant.recipe import SHIPPED


def test_the_scatter_is_that_of_rows_about_the_mean_of_their_thing():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 5)).astype(np.float32)
    names = [f"thing{i % 7}" for i in range(30)]
    scatter = Scatter()
    for part in (slice(0, 11), slice(11, 30)):
        scatter.add(rows[part], names[part])
    means = {name: rows[[n == name for n in names]].mean(0) for name in names}
    rest = rows - np.stack([means[name] for name in names])
    assert np.allclose(scatter.within, rest.T @ rest / (30 - 7), atol=1e-6)
    assert np.allclose(scatter.all.covariance, np.cov(rows, rowvar=False), atol=1e-6)


def test_what_differs_elsewhere_is_divided_out_of_a_projection_too():
    """Noise in one direction, which the views of ten things share: a hundred new things are then told apart."""
    rng = np.random.default_rng(0)
    start = Whitening(np.zeros(8, np.float32), np.eye(8, dtype=np.float32), np.ones(8, np.float32), "here")

    def noisy(things):
        rows = np.repeat(rng.normal(size=(things, 8)), 5, axis=0)
        rows[:, 3] += 4 * rng.normal(size=len(rows))
        return start(rows), np.repeat(np.arange(things), 5)

    rows, names = noisy(10)
    scatter = Scatter()
    scatter.add(rows, [str(name) for name in names])
    further = divided_further(start, scatter.within, weight=3)
    assert (further.fitted_for, further.dim) == ("here", 8)
    assert np.allclose(divided_further(start, scatter.within, weight=0).matrix, start.matrix, atol=1e-3)

    lengths = np.array([1] * 6 + [0.5] * 2, np.float32)
    of_parts = divided_further(replace(start, lengths=lengths), scatter.within, weight=3)
    assert not of_parts.matrix[:6, 6:].any()  # what belongs to another part stays out of it
    assert np.abs(of_parts.matrix - np.eye(8)).max() > 0.1
    assert of_parts.lengths.tolist() == lengths.tolist()

    def right(project):
        rows, names = noisy(100)
        similarity = project(rows) @ project(rows).T - 9 * np.eye(len(rows))
        return np.mean(names[similarity.argmax(1)] == names)

    assert right(further) > right(start) + 0.1


def test_things_that_come_once_teach_nothing():
    scatter = Scatter()
    scatter.add(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    with pytest.raises(ConfigError, match="twice"):
        _ = scatter.within


@pytest.mark.slow
def test_plain_coco_teaches_what_an_object_is_but_not_which(tmp_path):
    folder, file = tmp_path / "coco", tmp_path / "mine.safetensors"
    folder.mkdir()
    for name in "ab":
        Image.effect_noise((160, 120), 60).convert("RGB").save(folder / f"{name}.png")
    told = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("ab")],
        "annotations": [{"image_id": i, "bbox": [40, 30, 50, 40]} for i in range(2)],
    }
    (folder / "instances.json").write_text(json.dumps(told))
    learn = [str(folder), "--format", "coco", "--out", str(file)]
    done = CliRunner().invoke(app, ["train", "detector", *learn, "--epochs", "1"])
    assert done.exit_code == 0, done.output
    assert TrainedHead.load(file).fitted_for
    again = [*learn[:-1], str(tmp_path / "again.safetensors"), "--start", "shipped", "--share", "0"]
    done = CliRunner().invoke(app, ["train", "detector", *again, "--epochs", "1"])
    assert done.exit_code == 0, done.output
    shipped = TrainedHead.load(SHIPPED / "detector.safetensors").network.state_dict()
    for name, weights in TrainedHead.load(tmp_path / "again.safetensors").network.state_dict().items():
        torch.testing.assert_close(weights, shipped[name])
    done = CliRunner().invoke(app, ["train", "projection", *learn])
    assert done.exit_code != 0
    assert "nothing to tell apart" in str(done.exception)


@pytest.mark.slow
def test_a_projection_learnt_from_other_things_tells_things_apart_better(tmp_path):
    folders = [
        generate(
            tmp_path / split,
            split=split,
            track="2d",
            scenes=10,
            targets=6,
            sources=Sources.shipped(),
            progress=False,
        )
        for split in ("dev", "test")
    ]
    file, profile = tmp_path / "projection.safetensors", tmp_path / "untuned.json"
    # untuned: the shipped tuning tells the few things of so small a set apart by itself
    profile.write_text('{"encoder": {"adapter": null}, "vector": {"whitening": null}}')
    learn = [
        "train",
        "projection",
        str(folders[0]),
        "--profile",
        str(profile),
        "--cache",
        str(tmp_path / "views"),
    ]
    done = CliRunner().invoke(app, [*learn, "--out", str(file), "--dim", "64"])
    assert done.exit_code == 0, done.output
    assert "64 components" in done.output

    bench, plain = load(folders[1]), Pipeline(Settings.for_profile(str(profile)))
    learnt = Whitening.load(file)
    assert learnt.fitted_for == plain.whitened
    assert contrast(bench, plain, learnt) > contrast(bench, plain, normalize)

    more = ["--start", str(file), "--out", str(tmp_path / "more.safetensors")]
    done = CliRunner().invoke(app, [*learn, *more])
    assert done.exit_code == 0, done.output
    assert Whitening.load(tmp_path / "more.safetensors").fitted_for == plain.whitened
    done = CliRunner().invoke(
        app, [*learn, "--start", "shipped", "--out", str(tmp_path / "none.safetensors")]
    )
    assert "--start shipped: fitted for" in str(done.exception)


def contrast(bench, pipeline, project):
    """How far views of one thing stand above views of different things, in deviations of the latter."""
    vectors, names = [], []
    for entry in bench.gallery:
        crops = pipeline.crops([read(entry.file).rgb], [labelled(entry)])
        vectors.append(project(pipeline.features(pipeline.encode(crops))))
        names += entry.instances
    v, names = np.concatenate(vectors), np.array(names)
    same = (names[:, None] == names) & ~np.eye(len(v), dtype=bool)
    other = names[:, None] != names
    similarity = v @ v.T
    return (similarity[same].mean() - similarity[other].mean()) / similarity[other].std()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed blocks back by itself")
@pytest.mark.slow
def test_a_training_keeps_the_memory_that_a_step_frees_for_the_next():
    steps = (
        "import resource, numpy as np; {}\n"
        "def step(): np.ones(8_000_000)\n"
        "step(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; step(); step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    keep = "from soir_qdrant.lab.train.memory import keep_freed; keep_freed()"
    asked, kept = (
        int(subprocess.check_output([sys.executable, "-c", steps.format(how)], text=True))
        for how in ("", keep)
    )
    assert 10 * kept < asked
