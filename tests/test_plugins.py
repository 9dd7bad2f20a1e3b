"""A detector of another package, installed beside this one (tests/plugin): a setting like ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from qdrant_client import QdrantClient
from typer.testing import CliRunner

import soir_qdrant
from soir_qdrant import Pipeline, Settings, SoirIngestor
from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError
from soir_qdrant.kinds import DETECTORS, ENCODERS, SEGMENTERS, DetectorSettings
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.segmenters.box import BoxSegmenter

PLUGIN = Path(__file__).with_name("plugin")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The package on the path, and forgotten afterwards."""
    monkeypatch.syspath_prepend(PLUGIN)
    for registry in (DETECTORS, ENCODERS, SEGMENTERS):
        monkeypatch.setattr(registry, "_known", dict(registry._known))
    yield
    sys.modules.pop("corner_detector", None)


@pytest.fixture
def profile(tmp_path):
    """A profile file that names the detector."""
    from models import tiny_encoder

    file = tmp_path / "mine.json"
    settings = {
        "encoder": {"weights": str(tiny_encoder(tmp_path / "vit")), "input_size": 48, "dtype": "float32"},
        "detector": {"kind": "corner", "share": 0.25, "max_objects": 7},
        "segmenter": {"kind": "box"},
        "vector": {"whitening": None},
    }
    file.write_text(json.dumps(settings))
    return str(file)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 40), (200, 30, 30)).save(folder / "a.png")
    return folder


def boxes(client):
    (point,) = client.scroll("images")[0]
    return [item["box"] for item in point.payload["soir"]["objects"]]


@pytest.mark.slow
def test_it_is_used_from_a_profile_file(profile, photos):
    settings = Settings.for_profile(profile)
    assert settings.detector.share == 0.25
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=Pipeline(settings)).add(photos)
    assert boxes(client) == [[0, 0, 20, 10]]


def test_it_is_chosen_from_python_and_what_all_kinds_share_is_kept():
    settings = Settings().but(detector={"max_objects": 9}).but(detector={"kind": "corner"})
    assert (settings.detector.share, settings.detector.max_objects) == (0.5, 9)
    assert settings.but(detector={"share": 1}).detector.share == 1
    assert settings.but(detector={"kind": "embedded"}).detector.head == "shipped"
    assert Settings.model_validate(settings.model_dump()) == settings
    assert Settings(detector=DetectorSettings(kind="corner", max_objects=3)).detector.share == 0.5


@pytest.mark.slow
def test_it_is_used_from_the_command_line(profile, photos, tmp_path):
    """In a process of its own, as a user runs it."""
    command = ["ingest", str(photos), "--path", str(tmp_path / "db"), "--profile", profile]
    path = os.pathsep.join([str(PLUGIN), *sys.path])
    subprocess.run(
        [sys.executable, "-m", "soir_qdrant", *command],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    client = QdrantClient(path=str(tmp_path / "db"))
    assert boxes(client) == [[0, 0, 20, 10]]
    client.close()


@pytest.mark.slow
def test_soir_info_lists_it(profile):
    told = json.loads(CliRunner().invoke(app, ["info", "--profile", profile, "--json"]).output)
    assert "corner" in told["kinds"]["detectors"]
    assert {"embedded", "owlv2", "proposals", "rf-detr"} <= set(told["kinds"]["detectors"])
    assert {"embedded", "grabcut", "sam2"} <= set(told["kinds"]["segmenters"])
    assert told["settings"]["detector"]["share"] == 0.25


def test_what_is_wrong_names_the_setting():
    with pytest.raises(ConfigError, match=r"setting detector\.shares of the kind 'corner'"):
        Settings().but(detector={"kind": "corner", "shares": 1})
    with pytest.raises(ConfigError, match=r"detector 'cornr': choose one of .*corner"):
        Settings().but(detector={"kind": "cornr"})
    with pytest.raises(ConfigError, match="'no-kind' of another package is no"):
        Settings().but(detector={"kind": "no-kind"})
    with pytest.raises(ConfigError, match=r"setting detector\.kind: name one of"):
        Settings.model_validate({"detector": {}})


def test_a_kind_is_registered_where_it_is_imported():
    class WholeBox(BoxSegmenter):
        name = "whole box"

    soir_qdrant.register_segmenter("mine", lambda settings, parts: WholeBox())
    assert Pipeline(Settings().but(segmenter={"kind": "mine"})).segmenter.name == "whole box"


@pytest.mark.slow
def test_encoders_and_detectors_too(tmp_path):
    """The detector gets its settings and the encoder, whose features it may read."""
    from models import tiny_encoder

    class Mine(DetectorSettings):
        shape: str = "round"

    encoder = ViTEncoder(str(tiny_encoder(tmp_path)), input_size=48)
    soir_qdrant.register_encoder("mine", lambda settings, parts: encoder)
    soir_qdrant.register_detector("mine", lambda settings, parts: (settings.shape, parts.source), Mine)
    settings = Settings().but(encoder={"kind": "mine"}, detector={"kind": "mine", "shape": "square"})
    pipeline = Pipeline(settings)
    assert pipeline.encoder is encoder
    assert pipeline.detector == ("square", encoder)


def test_the_name_of_0_1_for_max_objects_is_still_read():
    assert Settings().but(detector={"most": 9}).detector.max_objects == 9
