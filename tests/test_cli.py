"""The command soir as a user meets it."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from soir_qdrant import EdgeClient, SoirSearcher
from soir_qdrant.cli.collection import names
from soir_qdrant.cli.groups import Server, Target
from soir_qdrant.cli.main import app, main

COMMANDS = [
    "ingest",
    "sync",
    "search",
    "info",
    "calibrate",
    "evaluate",
    "explain",
    "needle",
    "export",
    "demo",
    "serve",
    "mcp",
]


def soir(*arguments, **options):
    command = [sys.executable, "-m", "soir_qdrant", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Example" in done.output


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["search"], "default: 60, of a search 30"),
        (["train", "detector"], "default: one without training"),
        (["train", "words"], "default: a photo of a {}"),
    ],
)
def test_help_says_the_defaults_that_depend(command, text):
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command, "--help"])
    assert text in done.output


def test_the_package_and_its_help_load_no_torch():
    code = (
        "import sys, soir_qdrant, soir_qdrant.cli.main; print('torch' in sys.modules, 'cv2' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ingest", "."], 2, "--path FOLDER or --url URL"),
        (["search", "x.png", "--box", "1,2,3", "--path", "db"], 2, "x0,y0,x1,y1"),
        (["search", "x.png", "--filter", '{"must": 3}', "--path", "db"], 2, "Qdrant filter"),
        (
            ["search", "--text-in-image", "milk", "--save-html", "a.html", "--path", "made"],
            2,
            "--save-html belongs to a query",
        ),
        (["search", "--text-in-image", "milk", "--box", "1,2,3,4", "--path", "made"], 2, "--box belongs to"),
        (
            ["search", "--text-in-image", "milk", "--limit", "3", "--path", "made"],
            3,
            "no collection 'images'",
        ),
        (["info", "--path", "made", "--collection", "none"], 3, "no collection 'none'"),
        (["info", "--path", "typo"], 3, "typo: no embedded Qdrant there"),
        (["search", "x.png", "--path", "db", "--url", "http://localhost"], 2, "choose one"),
        (["search", "x.png", "--path", "db", "--edge", "e"], 2, "choose one"),
        (["info", "--edge", "typo"], 3, "typo: no collection there"),
        (
            ["info", "--url", "http://127.0.0.1:9", "--retry-for", "0"],
            3,
            "Qdrant did not answer in 1 attempts",
        ),
        (["search", "x.png", "--url", "foo://x"], 3, "no URL of a Qdrant server"),
        (["info", "--profile", "none"], 3, "choose one of embedded, "),
        (["ingest", "empty", "--path", "db"], 3, ".jpg"),
        (
            ["ingest", "empty", "--path", "db", "--triton", "http://triton"],
            3,
            "host:port of its gRPC service",
        ),
        (["ingest", "empty", "--path", "db", "--onnx", "empty"], 3, "soir export"),
        (["export", "--out", "models", "--encoder", "empty"], 3, "no config.json there"),
        (["evaluate", "empty"], 3, "annotations.json"),
        (["evaluate", "empty", "--format", "instre"], 3, "anns.pt is missing"),
        (["ingest", "empty", "--path", "made/meta.json"], 3, "cannot be the folder of an embedded Qdrant"),
        (["serve", "--path", "typo"], 3, "typo: no embedded Qdrant there"),
        (["serve", "--path", "made", "--host", "0.0.0.0"], 3, "set a token"),
        (["explain", "[old]/room.jpg"], 3, "[old]/room.jpg"),
        (["explain", "grey.png", "--box", "nan,0,10,10"], 3, "NaN or infinite"),
        (["explain", "grey.png", "--box", "0.1,0.1,0.5,0.5"], 3, "give pixels, not shares"),
        (["ingest", "empty", "--path", "db", "--models", "empty"], 2, "--models goes with --triton"),
        (["info", "--collection", "mine"], 2, "--collection: say where it is"),
        (["ingest", "empty", "--path", "db", "--actors", "3"], 2, "--actors goes with --ray"),
        (["evaluate", "empty", "--words", "--rows", "mean"], 2, "--rows is not for --words"),
        (["evaluate", "empty", "--novel", "names.txt"], 2, "--novel goes with --words"),
        (["needle", "new", "--shelves", "--split", "test"], 2, "--split is not for --shelves"),
        (["needle", "new", "--retaken", "empty", "--scenes", "3"], 2, "--scenes is not for --retaken"),
        (["needle", "new", "--marks", "empty", "--targets", "3"], 2, "--targets is not for --marks"),
        (["needle", "new", "--fonts", "empty"], 2, "--fonts are of --marks"),
        (["needle", "new", "--rooms", "empty", "--targets", "3"], 2, "--targets is not for --rooms"),
        (["needle", "new", "--rooms", "empty"], 3, "too few; see docs/reference/needlebench.md"),
        (["needle", "new", "--things", "empty", "--grounds", "empty", "--shipped"], 2, "choose one"),
        (["train", "detector", "empty", "--out", "a", "--share", "0.5"], 2, "--share goes with --start"),
        (["train", "detector", "empty", "--out", "a", "--start", "a", "--share", "0"], 2, "--out is --start"),
        (["train", "projection", "empty", "--out", "a", "--weight", "2"], 2, "--weight goes with --start"),
        (
            ["train", "projection", "empty", "--out", "a", "--start", "shipped", "--dim", "64"],
            2,
            "--dim is START's",
        ),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(arguments, code, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    Image.new("L", (40, 30), 128).save(tmp_path / "grey.png")
    QdrantClient(path=str(tmp_path / "made")).close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["soir", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("QDRANT_URL", raising=False)
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == code, error
    assert said in error


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    done = soir("info", "--path", "typo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: typo: no embedded Qdrant there; `soir ingest` makes one\n"


def test_timeouts_and_the_name_of_the_vector_reach_what_uses_them():
    server, target = Server(timeout=7, retry_for=3.0), Target(collection="shop", vector_name="soir")
    searcher = SoirSearcher(QdrantClient(":memory:"), **target.place, **server.requests)
    assert (searcher.store.timeout, searcher.store.retry.total) == (7, 3.0)
    assert searcher.store.vector_name == "soir"
    assert Server().requests == {}


def test_a_folder_of_the_engine_is_a_place_too(tmp_path):
    pytest.importorskip("qdrant_edge", reason="the extra edge is not installed")
    vectors = models.VectorParams(size=4, distance=models.Distance.COSINE)
    EdgeClient(tmp_path).create_collection("parts", vectors_config=vectors)
    shown = CliRunner().invoke(app, ["info", "--edge", str(tmp_path), "--json"])
    assert json.loads(shown.output)["collections"]["parts"]["points"] == 0


def test_names_of_images_may_come_from_stdin():
    assert [*names(["a.png", "-", "z/"], ["b.png\n", "\n", "c d.png\r\n"])] == [
        "a.png",
        "b.png",
        "c d.png",
        "z/",
    ]


def test_info_names_the_weights_and_their_licence_and_fetches_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path))
    about = json.loads(CliRunner().invoke(app, ["info", "--json"]).output)
    assert "MIT" in about["weights"]["licence"]
    assert len(about["weights"]["sha256"]) == 64
    assert about["settings"]["profile"] == "embedded"
    assert not list(tmp_path.iterdir())
