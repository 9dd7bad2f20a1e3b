"""Faults of version 0.1 that no other file of tests is about."""

import json
import os

import pytest
from conftest import ColourPipeline, counts, ingestor, picture, store
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant import SoirSearcher
from soir_qdrant.errors import CollectionError, ServerError, WeightsError
from soir_qdrant.models.pretrained import load_config
from soir_qdrant.models.weights import resolve
from soir_qdrant.rerank.q_perturbation.blip2 import Blip2Matcher


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_stored_image_that_became_a_pipe_is_not_waited_for(folder, caplog):
    client = QdrantClient(":memory:")
    ingestor(client).add(folder)
    (folder / "0.png").unlink()
    os.mkfifo(folder / "0.png")
    hits = SoirSearcher(client, pipeline=ColourPipeline()).search(picture(0), with_masks=True)
    assert {hit.uri for hit in hits if hit.mask is None} == {str(folder / "0.png")}
    assert "a pipe, a socket or a device" in caplog.text


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".mpo"])
def test_files_of_less_common_names_are_read(tmp_path, suffix):
    frames = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    more = {"save_all": True, "append_images": frames[1:]} if suffix == ".mpo" else {}
    frames[0].save(tmp_path / f"a{suffix}", "MPO" if more else "JPEG", **more)
    assert counts(ingestor(QdrantClient(":memory:")).add(tmp_path)) == (1, 0, 0)


def test_a_folder_is_walked_once(folder, monkeypatch):
    scandir, walked = os.scandir, []

    def noted(path):
        walked.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    ingestor(QdrantClient(":memory:")).add(folder)
    assert sorted(walked) == [str(folder), str(folder / "sub")]


@pytest.mark.slow
def test_code_beside_weights_is_not_run(tmp_path, monkeypatch):
    """Whatever a user answers."""
    from models import tiny_encoder

    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tiny_encoder(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_config(resolve(str(folder)))
    (folder / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "evil.Evil"}}))
    with pytest.raises(WeightsError, match="no BLIP-2"):
        Blip2Matcher.load(str(folder))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_the_key_is_one_clear_line(stand_in, status, monkeypatch, capsys):
    from soir_qdrant.cli.main import main

    stand_in.reads[:] = [status] * 3
    monkeypatch.setattr("sys.argv", ["soir", "info", "--url", stand_in.url])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 3
    assert "give its API key" in said
    assert "Traceback" not in said


def test_a_database_that_may_only_be_read_says_so(tmp_path):
    import sqlite3

    ready = store(QdrantClient(path=str(tmp_path)))
    ready.create(12, {"a": 1})

    def refused(*_, **__):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    with pytest.raises(ServerError, match="readonly database"):
        ready.write(refused)
    with pytest.raises(CollectionError, match="no collection"):
        store(QdrantClient(":memory:")).open()
