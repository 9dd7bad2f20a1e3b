"""What many actors are told, and what one of them makes of a batch: without Ray."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import ColourPipeline, ingestor, picture, stored
from PIL import Image
from qdrant_client import QdrantClient
from typer.testing import CliRunner

from soir_qdrant import scale
from soir_qdrant.cli.main import app, main
from soir_qdrant.errors import ServerError
from soir_qdrant.images import ReadOptions
from soir_qdrant.types import Failure, IngestReport


def test_every_option_of_ingest_reaches_the_actors(stand_in, folder, monkeypatch):
    request = {}

    def ingest(images, target, **options):
        request.update(images=images, target=target, **options)
        return IngestReport()

    monkeypatch.setattr(scale, "ingest", ingest)
    monkeypatch.setenv("SOIR_TRITON_TOKEN", "secret")
    command = f"ingest {folder} --url {stand_in.url} --ray local --profile fast --ocr --triton triton:8001"
    options = "--models models --vector-name picture --timeout 7 --retry-for 9 --exclude 0.png --actors 3 --gpus 0.5"
    done = CliRunner().invoke(app, [*command.split(), *options.split()])
    assert done.exit_code == 0, done.output
    target = request["target"]
    assert (request["address"], request["actors"], request["gpus"]) == ("local", 3, 0.5)
    assert target.settings["profile"] == "fast"
    assert target.settings["ocr"] is not None
    assert (target.vector_name, target.timeout, target.retry.total) == ("picture", 7, 9)
    assert (target.triton, target.triton_headers) == ("triton:8001", {"authorization": "Bearer secret"})
    assert target.exports == "models"
    assert target.reading == ReadOptions(exclude=["0.png"])
    store = target.store()
    assert (store.vector_name, store.timeout, store.retry.total) == ("picture", 7, 9)


def test_exit_codes_are_those_of_one_process(stand_in, folder, monkeypatch):
    """0, 1 where images failed, 3 where the actors cannot go on, and 2 without a server."""

    def code(outcome, *place):
        def ingest(*_, **__):
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(scale, "ingest", ingest)
        monkeypatch.setattr("sys.argv", ["soir", "ingest", str(folder), *place, "--ray", "local"])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code

    at = ("--url", stand_in.url)
    assert code(IngestReport(added=6), *at) == 0
    assert code(IngestReport(failed=[Failure("a.png", "damaged")]), *at) == 1
    assert code(ServerError("the actors cannot go on"), *at) == 3
    assert code(IngestReport(), "--path", str(folder / "db")) == 2


class OneActor(scale.Embed):
    """With colours for vectors."""

    def ingestor(self, target):
        return ingestor(target.client(), ColourPipeline())


@pytest.fixture
def described(stand_in):
    """What an actor makes of a batch of files, written as the sink does."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra ray has it")
    sink = pytest.importorskip("soir_qdrant.scale.sink", reason="ray is not installed: the extra ray has it")
    target = scale.Target(stand_in.url, onnx="none is needed")

    def run(*files, **columns):
        rows = OneActor(target)(pyarrow.table({"uri": [str(file) for file in files], **columns}))
        return sink.QdrantSink(target).write([rows])

    return run


@pytest.mark.slow
def test_the_report_says_what_one_process_says(stand_in, described, folder):
    """Also of images that another recipe stored, of edited and of copied files, and of further pages."""
    local = QdrantClient(":memory:")
    edited, stored_before, copy, scan = (folder / name for name in ("0.png", "2.png", "copy.png", "scan.tif"))
    described(edited, stored_before)
    ingestor(local).add([edited, stored_before], progress=False)
    for client in (stand_in.memory, local):
        for point in client.scroll("images")[0]:
            client.set_payload("images", {"recipe": "another"}, [point.id], key="soir")
    Image.fromarray(picture(7)).save(edited)
    copy.write_bytes(stored_before.read_bytes())
    pages = [Image.fromarray(picture(seed)) for seed in (8, 9)]
    pages[0].save(scan, save_all=True, append_images=pages[1:])

    report = described(edited, copy, scan)
    expected = ingestor(local).add([edited, copy, scan], progress=False)
    assert (report.stale, report.superseded, report.relocated, len(report.left_out)) == (1, 1, 1, 1)
    assert report.seconds["encode"] > 0
    assert replace(report, seconds={}) == replace(expected, seconds={})


@pytest.mark.slow
def test_reports_of_blocks_add_up(described, folder):
    parts = [described(folder / "0.png"), described(folder / "0.png", folder / "notes.txt")]
    from ray.data.datasource.datasink import WriteResult

    sink = scale.QdrantSink(scale.Target("http://localhost:1"))
    sink.on_write_complete(WriteResult(0, 0, parts))
    report = sink.report
    assert (report.added, report.skipped, len(report.failed)) == (1, 1, 1)
    assert report.seconds["load"] == sum(part.seconds["load"] for part in parts)


@pytest.mark.slow
def test_places_of_equal_and_of_moved_files_are_noted(stand_in, described, folder):
    twin, later = folder / "twin.png", folder / "later.png"
    for copy in (twin, later):
        copy.write_bytes((folder / "0.png").read_bytes())
    report = described(folder / "0.png", twin)
    assert (report.added, report.skipped) == (1, 1)
    assert described(later).skipped == 1
    (payload,) = stored(stand_in.memory).values()
    assert payload["soir"]["uri"] == str(later)
    assert set(payload["soir"]["uris"]) == {str(later), str(twin), str(folder / "0.png")}


@pytest.mark.slow
def test_rows_bring_bytes_payload_and_objects(stand_in, described, folder):
    """The files of the first and the last are nowhere; the second has no bytes, and the last an empty box."""
    box = {"box": [5, 5, 25, 25], "label": "mug"}
    report = described(
        *("gone/a.png", folder / "2.png", "gone/d.png"),
        bytes=[(folder / "0.png").read_bytes(), None, (folder / "4.png").read_bytes()],
        payload=[json.dumps({"shop": "north"}), None, None],
        objects=[json.dumps([box]), None, json.dumps([{"box": [5, 5, 5, 5]}])],
    )
    assert (report.added, [failure.name for failure in report.failed]) == (2, ["gone/d.png"])
    by_uri = {payload["soir"]["uri"]: payload for payload in stored(stand_in.memory).values()}
    assert by_uri.keys() == {"gone/a.png", str(folder / "2.png")}
    first = by_uri["gone/a.png"]
    assert (first["shop"], first["soir"]["labels"], first["soir"]["count"]) == ("north", ["mug"], 1)
    assert first["soir"]["objects"][0]["box"] == box["box"]
