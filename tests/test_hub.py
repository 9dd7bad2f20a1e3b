"""Trained parts on a hub: huggingface_hub itself, against a small stand-in of the hub's HTTP."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from soir_qdrant import Settings, hub
from soir_qdrant.cli.main import app
from soir_qdrant.components import SHIPPED, WHITENINGS
from soir_qdrant.errors import ConfigError, WeightsError

REPO, COMMIT = "me/shelves", "0" * 40


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for: a repository, what to upload and how, the commit, the list, the files."""

    files: dict[str, bytes]

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            return self._json({"url": f"https://huggingface.co/{REPO}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = json.loads(content)["files"]
            return self._json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in names
                    ]
                }
            )
        if "/commit/" in self.path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._json(
                {
                    "success": True,
                    "commitUrl": f"https://huggingface.co/{REPO}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )
        return self._json({}, 404)

    def do_GET(self):
        if self.path.startswith(f"/api/models/{REPO}/tree/"):
            return self._json(
                [{"type": "file", "path": n, "size": len(c), "oid": "1"} for n, c in self.files.items()]
            )
        if self.path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.files]
            return self._json({"id": REPO, "sha": COMMIT, "siblings": siblings})
        content = self.files.get(self.path.rpartition("/")[2]) if self.path.startswith(f"/{REPO}/") else None
        if content is None:
            return self._json({}, 404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    do_HEAD = do_GET

    def _json(self, answer, status=200):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def files(monkeypatch, tmp_path):
    """The files of a stand-in hub, which huggingface_hub is pointed at."""
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    yield handler.files
    server.shutdown()


@pytest.fixture
def profile(tmp_path):
    """A file of settings that names a trained file."""
    trained = tmp_path / "mine.safetensors"
    shutil.copyfile(SHIPPED, trained)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"profile": "fast", "vector": {"whitening": str(trained)}}))
    return file


def push(*arguments):
    return CliRunner().invoke(app, ["weights", "push", REPO, *map(str, arguments)])


def test_parts_are_pushed_and_read_by_name(files, profile):
    done = push("--profile", profile)
    assert done.exit_code == 0, done.output
    assert set(files) >= {"profile.json", "README.md", "vector.safetensors"}
    assert b'profile="hub:me/shelves"' in files["README.md"]
    settings = Settings.for_profile("hub:me/shelves")
    assert settings.but(vector={"whitening": "shipped"}) == Settings.for_profile("fast")
    assert Path(settings.vector.whitening).read_bytes() == SHIPPED.read_bytes()


def test_a_file_that_was_changed_on_the_hub_is_refused(files, profile):
    push("--profile", profile)
    files["vector.safetensors"] += b"x"
    with pytest.raises(WeightsError, match=r"vector\.safetensors is missing or not the file that was pushed"):
        Settings.for_profile("hub:me/shelves")


def test_a_folder_is_read_the_same_way(profile, tmp_path):
    folder = tmp_path / "folder"
    assert push("--profile", profile, "--folder", folder).exit_code == 0
    settings = Settings.for_profile(str(folder))
    assert settings.vector.whitening == str(folder / "vector.safetensors")
    assert settings.crop.background == "drop"


def test_a_profile_cannot_name_files_outside_of_its_folder(profile, tmp_path):
    folder = tmp_path / "folder"
    push("--profile", profile, "--folder", folder)
    content = json.loads((folder / "profile.json").read_text())
    content["settings"]["vector"]["whitening"] = str(tmp_path / "mine.safetensors")
    (folder / "profile.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"mine\.safetensors is missing or not"):
        Settings.for_profile(str(folder))


def test_a_profile_on_the_hub_names_no_path_of_another_machine(profile, tmp_path):
    folder = tmp_path / "folder"
    push("--profile", profile, "--folder", folder)
    content = json.loads((folder / "profile.json").read_text())
    content["settings"]["encoder"] = {"weights": "/home/me/secret"}
    (folder / "profile.json").write_text(json.dumps(content))
    with pytest.raises(
        WeightsError, match=r"encoder\.weights '/home/me/secret' is a path of another machine"
    ):
        Settings.for_profile(str(folder))
    with pytest.raises(ConfigError, match=r"encoder\.weights '/home/me/secret' is a path of this machine"):
        hub.write(tmp_path / "other", content["settings"], name=REPO)


def test_every_trained_file_is_pushed_and_parts_that_ship_are_names(profile, tmp_path):
    trained = str(tmp_path / "mine.safetensors")
    changes = {"profile": "sum-clip", "scene": {"head": trained}, "detector": {"head": "shipped"}}
    hub.write(tmp_path / "words", changes, name=REPO)
    assert hub.read(str(tmp_path / "words"))["scene"] == {"head": str(tmp_path / "words/scene.safetensors")}
    assert set(WHITENINGS) == hub.SHIPPED
    hub.write(tmp_path / "old", {"vector": {"whitening": "0.1"}, "detector": {"head": trained}}, name=REPO)
    assert hub.read(str(tmp_path / "old"))["vector"] == {"whitening": "0.1"}
    two = {"encoder": {"adapter": trained, "texture": str(tmp_path / "other.safetensors")}}
    (tmp_path / "other.safetensors").write_bytes(b"another")
    hub.write(tmp_path / "both", two, name=REPO)
    read = hub.read(str(tmp_path / "both"))["encoder"]
    assert Path(read["adapter"]).read_bytes() == Path(trained).read_bytes()
    assert Path(read["texture"]).read_bytes() == b"another"


def test_a_push_overwrites_nothing_else(profile, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/README.md").write_text("mine")
    with pytest.raises(ConfigError, match="holds other things"):
        hub.write(tmp_path / "holiday", Settings.changes_of(str(profile)), name=REPO)
    folder = tmp_path / "folder"
    hub.write(folder, Settings.changes_of(str(profile)), name=REPO)
    again = {"vector": {"whitening": str(folder / "vector.safetensors")}}  # the file is there already
    assert folder / "vector.safetensors" in hub.write(folder, again, name=REPO)


def test_what_cannot_be_pushed_or_fetched_says_why(files, profile, tmp_path):
    bare = tmp_path / "bare.json"
    bare.write_text('{"crop": {"margin": 0.2}}')
    with pytest.raises(ConfigError, match="nothing to push"):
        hub.write(tmp_path / "out", Settings.changes_of(str(bare)), name=REPO)
    with pytest.raises(ConfigError, match=r"detector\.head 'gone\.safetensors'"):
        hub.write(tmp_path / "out", {"detector": {"head": "gone.safetensors"}}, name=REPO)
    with pytest.raises(WeightsError, match="hub:me/other could not be fetched"):
        Settings.for_profile("hub:me/other")
