"""What made a point: every setting and file that changes a stored point changes its recipe, and every one
that makes vectors incomparable changes the fingerprint."""

import shutil

import numpy as np
import pytest
import torch
from models import tiny_encoder
from pydantic import BaseModel

from soir_qdrant import recipe
from soir_qdrant.components import Components
from soir_qdrant.config import PROFILES, EncoderSettings, Settings
from soir_qdrant.models.compatibility import trunk
from soir_qdrant.models.heads.boxes import Head
from soir_qdrant.pooling.whitening import fit_whitening
from soir_qdrant.types import SceneObject

pytestmark = pytest.mark.slow

# Another value of every setting, by what it changes. A new setting belongs into one of these.
INCOMPARABLE = {
    "encoder.weights": "other weights",
    "encoder.input_size": 56,
    "crop.margin": 0.3,
    "crop.native": False,
    "crop.background": "blur",
    "vector.features": ("patches",),
    "vector.whitening": "whitening",
    "vector.dim": 8,
    "vector.pooling": "mean",
    "vector.ridge": 0.7,
    "vector.refine_query": False,
    "vector.iterations": 7,
    "vector.lr": 0.5,
    "vector.alpha": 0.5,
    "vector.blocks": 2,
    "vector.weight_decay": 0.02,
    "vector.upsample": False,
    "vector.normalise": "batch",
    "vector.token": "per-crop",
}
OTHER_POINTS = {
    "detector.kind": "none",
    "detector.weights": "google/other",
    "detector.head": None,
    "detector.threshold": 0.9,
    "detector.iou": 0.9,
    "detector.fitted_iou": 0.9,
    "detector.max_objects": 7,
    "detector.scales": [0.5],
    "detector.everyday": True,
    "detector.size": 112,
    "segmenter.kind": "box",
    "segmenter.weights": "facebook/other",
    "segmenter.head": None,
    "ocr.threshold": 0.9,
    "ocr.longest": 500,
    "ocr.object_score": 0.0,
    "vector.by_score": 0.1,
    "crop.full_score": 0.5,
    "crop.texture_score": 0.5,
}
SAME_POINTS = {"encoder.batch": 2, "encoder.dtype": "float32", "encoder.device": "cpu"}  # but for rounding
OF_QUERIES = {"crop.query_turns": [45], "crop.query_lights": True}
SCENE = {
    f"scene.{name}" for name in ("kind", "tiles", "vector", "attention", "count", "head")
}  # test_scenes.py
ELSEWHERE = {"profile", "encoder.adapter", "encoder.texture", "encoder.kind"} | SCENE  # tests of their own
KINDS = {
    "detector.head": "embedded",
    "detector.scales": "embedded",
    "detector.everyday": "embedded",
    "segmenter.head": "embedded",
    "detector.size": "rf-detr",
}  # that have it


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    paper = Settings.for_profile("paper")
    return paper.but(encoder={"weights": str(tiny_encoder(folder / "vit")), "input_size": 48}, ocr={})


def but(settings, name, value):
    group, field = name.split(".")
    return settings.but(**{group: {field: value}})


def short(settings, **options):
    parts = Components(settings, **options)
    return recipe.short_hash(parts.fingerprint), recipe.short_hash(parts.recipe)


def test_every_setting_is_known_to_change_points_or_not():
    fields = {"profile"}
    for settings in PROFILES.values():
        for group, values in settings:
            if isinstance(values, BaseModel):
                fields |= {f"{group}.{field}" for field in type(values).model_fields}
    assert fields == {*INCOMPARABLE, *OTHER_POINTS, *SAME_POINTS, *OF_QUERIES} | ELSEWHERE


@pytest.mark.parametrize("name", INCOMPARABLE)
def test_what_makes_vectors_incomparable_changes_the_fingerprint(settings, name, tmp_path):
    value = INCOMPARABLE[name]
    if name == "encoder.weights":
        value = str(tiny_encoder(tmp_path / "vit"))
        weights = torch.nn.Parameter(torch.zeros(1))  # another file: one tensor more
        _add_tensor(tmp_path / "vit" / "model.safetensors", weights)
    if name in ("vector.whitening", "vector.dim"):
        file = tmp_path / "whitening.safetensors"
        rows = np.random.default_rng(0).normal(size=(99, 24))
        fit_whitening(rows, fitted_for=Components(settings).whitened).save(file)
        settings, value = (settings, str(file)) if name == "vector.whitening" else (
            settings.but(vector={"whitening": str(file)}), value
        )  # fmt: skip
    ours, theirs = short(settings), short(but(settings, name, value))
    assert ours[0] != theirs[0]
    assert ours[1] != theirs[1]


def _add_tensor(file, tensor):
    from safetensors.torch import load_file, save_file

    save_file({**load_file(file), "more": tensor.data}, file, metadata={"format": "pt"})


def test_an_adapter_changes_the_fingerprint():
    plain = Settings().but(vector={"whitening": None})
    assert short(plain)[0] != short(plain.but(encoder={"adapter": None}))[0]


@pytest.mark.parametrize("name", OTHER_POINTS)
def test_what_makes_other_points_of_comparable_vectors_changes_the_recipe_alone(settings, name):
    if name in KINDS:
        settings = but(settings, f"{name.partition('.')[0]}.kind", KINDS[name])
    ours, theirs = short(settings), short(but(settings, name, OTHER_POINTS[name]))
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]


@pytest.mark.parametrize("name", OF_QUERIES)
def test_how_a_query_is_looked_at_changes_no_point(settings, name):
    assert short(settings) == short(but(settings, name, OF_QUERIES[name]))


@pytest.mark.parametrize("name", SAME_POINTS)
def test_where_and_how_fast_it_runs_changes_neither(settings, name):
    assert short(settings) == short(but(settings, name, SAME_POINTS[name]))
    assert name.partition(".")[2] in EncoderSettings.model_fields


def test_a_trained_file_counts_by_its_content(settings, tmp_path):
    encoder = trunk(Components(settings).encoder.fingerprint)
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        Head(24, (8, 8, 8)).save(tmp_path / f"{name}.safetensors", encoder)
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "moved.safetensors")

    def with_head(group, name):
        head = {"kind": "embedded", "head": str(tmp_path / f"{name}.safetensors")}
        return short(settings.but(**{group: head}))

    for group in ("detector", "segmenter"):
        assert with_head(group, "a") == with_head(group, "moved")
        assert with_head(group, "a")[0] == with_head(group, "b")[0]
        assert with_head(group, "a")[1] != with_head(group, "b")[1]
    before = with_head("detector", "a")
    shutil.copy(tmp_path / "b.safetensors", tmp_path / "a.safetensors")  # `soir train` wrote it anew
    assert with_head("detector", "a") == with_head("detector", "b") != before


def test_a_folder_of_weights_counts_by_its_content(settings, tmp_path):
    for name, content in (("one", b"1"), ("two", b"2"), ("same", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, two, same = (
        short(but(settings, "detector.weights", str(tmp_path / n))) for n in ("one", "two", "same")
    )
    assert one == same
    assert one[1] != two[1]


def test_a_detector_of_ones_own_is_noted_by_its_name(settings):
    class Mine:
        name = "mine"

        def detect(self, images):
            raise NotImplementedError

    plain = short(settings)
    assert short(settings, detector=Mine())[0] == plain[0]
    assert short(settings, detector=Mine())[1] != plain[1]
    assert short(settings, detector=Mine(), as_named=True) == plain  # a runtime's, the one of the settings


def test_a_point_also_depends_on_what_is_kept_and_on_the_objects_of_the_user():
    made_of = {"detector": "a", "segmenter": "b"}
    box = SceneObject((0, 0, 4, 4))
    mask = np.ones((4, 4), bool)
    options = [
        {"codes": 256, "patches": False},
        {"codes": 64, "patches": False},
        {"codes": 256, "patches": True},
        *(
            {"codes": 256, "patches": False, "objects": objects}
            for objects in (
                [],
                [box],
                [SceneObject((0, 0, 4, 5))],
                [SceneObject((0, 0, 4, 4), label="mug")],
                [SceneObject((0, 0, 4, 4), score=0.5)],
                [SceneObject((0, 0, 4, 4), mask)],
                [SceneObject((0, 0, 4, 4), mask & False)],
                [box, box],
                [SceneObject("nonsense")],
            )
        ),
    ]
    assert len({recipe.of_point(made_of, **option) for option in options}) == len(options)
    given = {"codes": 256, "patches": False, "objects": [box]}
    assert recipe.of_point(made_of, **given) == recipe.of_point({**made_of, "detector": "other"}, **given)
