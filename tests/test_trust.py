"""Names, payloads, folders and servers of others are written, refused and explained with care."""

import io
import json
import logging
import sys
from functools import partial

import numpy as np
import pytest
from conftest import QUICK, ColourPipeline, counts, ingestor, picture, stored
from PIL import Image
from qdrant_client import QdrantClient, models
from rich.table import Table
from typer.testing import CliRunner

from soir_qdrant import filters
from soir_qdrant.cli import console
from soir_qdrant.cli.main import app, main
from soir_qdrant.config import Settings
from soir_qdrant.errors import CollectionError, ConfigError, ImageError, WeightsError
from soir_qdrant.images import ReadOptions
from soir_qdrant.models.cache import cache_dir
from soir_qdrant.models.weights import resolve
from soir_qdrant.qdrant.payload import PayloadError, clean_payload
from soir_qdrant.qdrant.transport import connect
from soir_qdrant.report.html import write
from soir_qdrant.search.searcher import SoirSearcher

ODD = "caf\udce9 \x1b[31mred\x1b[0m\x07 \u202egnp.exe \u4e2d.png"  # no UTF-8, steers a terminal, reads backwards


class TestNames:
    @pytest.fixture
    def printed(self, monkeypatch):
        """What a stream that knows ASCII alone is sent."""

        def printed(thing, write=None):
            stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
            monkeypatch.setattr(sys, "stdout", stream)
            console.write_anything()
            (write or partial(console.out.print, highlight=False))(thing)
            return stream.buffer.getvalue().decode("ascii")

        return printed

    def test_any_name_is_printed_and_none_steers_the_terminal(self, printed):
        text = printed(f"{ODD}: no such file")
        assert "\x1b" not in text
        assert r"\x1b[31mred" in text
        assert r"\u202egnp.exe" in text
        assert "no such file" in text

    def test_json_stays_json(self, printed):
        assert json.loads(printed({"uri": ODD}, console.print_json)) == {"uri": ODD}

    def test_nothing_is_cut_off_where_no_terminal_is(self, printed):
        table = Table("image")
        table.add_row("/long" * 60)
        assert "/long" * 60 in printed(table)

    def test_a_page_is_written_whatever_a_name_holds_and_runs_nothing(self, tmp_path):
        link, page = tmp_path / ".found.html.part", tmp_path / "found.html"
        link.symlink_to(tmp_path / "elsewhere")
        write(page, ODD, "<script>alert(1)</script>", [("found", "0")], [])
        text = page.read_text()
        assert "default-src 'none'" in text
        assert "<script>" not in text
        assert not (tmp_path / "elsewhere").exists()

    def test_a_file_whose_name_is_no_text_fails_by_itself(self, folder):
        Image.fromarray(picture(9)).save(folder / "caf\udce9.png")
        report = ingestor(QdrantClient(":memory:")).add(folder)
        assert counts(report) == (6, 0, 1)
        assert "rename it" in report.failed[0].reason


class TestExitCodes:
    @pytest.fixture
    def run(self, monkeypatch, capsys):
        def run(*arguments):
            monkeypatch.setattr(sys, "argv", ["soir", *map(str, arguments)])
            with pytest.raises(SystemExit) as caught:
                main()
            return caught.value.code, capsys.readouterr().err

        return run

    def test_a_server_that_is_not_there(self, run):
        code, said = run("info", "--url", "http://127.0.0.1:9", "--retry-for", "0", "--json")
        assert (code, "list the collections" in said) == (3, True)

    @pytest.mark.parametrize("content", [b"", b"{", b'{"collections": 3}', b"[]", b"\xff\xfe"])
    def test_a_damaged_folder(self, tmp_path, content):
        (tmp_path / "collection").mkdir()
        (tmp_path / "meta.json").write_bytes(content)
        with pytest.raises(CollectionError, match="is damaged"):
            connect(path=tmp_path)

    def test_a_damaged_database(self, tmp_path):
        client = QdrantClient(path=str(tmp_path))
        ingestor(client).add([picture(1)])
        client.close()
        (file,) = tmp_path.rglob("*.sqlite")
        file.write_bytes(b"no database" * 500)
        with pytest.raises(CollectionError, match="is damaged"):
            connect(path=tmp_path)

    def test_a_profile_that_is_nested_too_deeply(self, tmp_path):
        file = tmp_path / "deep.json"
        file.write_text('{"encoder": ' * 100_000)
        with pytest.raises(ConfigError, match="no JSON object of settings"):
            Settings.for_profile(str(file))

    def test_no_home(self, monkeypatch):
        monkeypatch.delenv("SOIR_CACHE", raising=False)
        monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        with pytest.raises(ConfigError, match="SOIR_CACHE="):
            cache_dir()

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("SOIR_CACHE", str(tmp_path / "file"))
        with pytest.raises(WeightsError, match="name another folder as SOIR_CACHE="):
            resolve()


class TestMessages:
    @pytest.mark.parametrize("url", ["http://me:secret@host:port", "me:secret@host:port"])
    def test_a_password_is_not_repeated(self, url):
        with pytest.raises(ConfigError, match=r"\*\*\*@host") as caught:
            connect(url=url)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("address", ["https://me:secret@host/a.png", "s3://me:secret@bucket/a.png"])
    def test_nor_is_one_in_the_address_of_an_image_stored_or_repeated(self, address):
        client = QdrantClient(":memory:")
        reading = ReadOptions(http=True)
        report = ingestor(client, reading=reading).add([address, picture(1)])
        assert counts(report) == (1, 0, 1)
        assert "***@" in report.failed[0].reason
        assert "secret" not in repr(report) + repr(stored(client))
        with pytest.raises(ImageError) as caught:
            SoirSearcher(client, pipeline=ColourPipeline()).search(address)
        assert "secret" not in str(caught.value)

    def test_a_token_in_clear_is_warned_of(self, caplog):
        triton = pytest.importorskip(
            "soir_qdrant.serving.triton_connection",
            reason="tritonclient is not installed: the extra triton has it",
        )
        with caplog.at_level(logging.WARNING):
            triton.TritonConnection("localhost:8001", headers={"Authorization": "Bearer x"}).close()
            triton.TritonConnection("grpcs://triton:8001", headers={"Authorization": "Bearer x"}).close()
        assert not caplog.messages
        triton.TritonConnection("triton:8001", headers={"Authorization": "Bearer x"}).close()
        assert "unencrypted" in caplog.text

    def test_queries_that_are_no_image(self, folder):
        client = QdrantClient(":memory:")
        ingestor(client).add(folder)
        searcher = SoirSearcher(client, pipeline=ColourPipeline(), retry=QUICK)
        with pytest.raises(ImageError, match="is a folder: search with one image"):
            searcher.search(folder)
        with pytest.raises(ImageError, match="download it first"):
            searcher.search("https://example.org/mug.png")
        with pytest.raises(ConfigError, match=r"models\.Filter\(must=\[\.\.\.\]\)"):
            searcher.search(folder / "0.png", filter=filters.has_label("mug"))

    def test_a_filter_with_a_slip_names_it(self):
        done = CliRunner().invoke(app, ["search", "x.png", "--path", "db", "--filter", '{"musst": []}'])
        assert done.exit_code == 2
        assert "musst" in done.output

    def test_payloads_of_numpy_and_the_key_that_cannot_be_written(self):
        assert clean_payload({"a": np.float32(0.5), "b": [np.int64(3)], "c": np.arange(2)}) == {
            "a": 0.5, "b": [3], "c": [0, 1],
        }  # fmt: skip
        for bad in (float("nan"), np.float64("inf"), object(), "caf\udce9", {"deep": [float("nan")]}):
            with pytest.raises(PayloadError, match="payload key 'price'"):
                clean_payload({"ok": 1, "price": bad})


class TestOthersWrites:
    def test_a_point_that_appears_meanwhile_is_left_as_it_is(self, client):
        """Two writers at once: the one that comes second finds the point written, after it looked."""
        first = ingestor(client)
        first.add([picture(1)])
        look = client.retrieve
        (id_,) = stored(client)
        client.delete("images", [id_])

        def late(*args, **options):
            answer = look(*args, **options)
            if not answer:
                first.add([picture(1)], payloads=[{"by": "first"}])
                client.set_payload("images", {"reviewed": True}, [id_])
            return answer

        class Late:
            def __getattr__(self, name):
                return late if name == "retrieve" else getattr(client, name)

        ingestor(Late()).add([picture(1)], payloads=[{"by": "second"}])
        assert stored(client)[id_]["by"] == "first"
        assert stored(client)[id_]["reviewed"]

    def test_it_is_asked_of_the_server(self, stand_in, monkeypatch):
        client, modes = stand_in.client(), []
        upsert = stand_in.upsert
        monkeypatch.setattr(
            stand_in, "upsert", lambda name, body: modes.append(body["update_mode"]) or upsert(name, body)
        )
        ingestor(client).add([picture(1)])
        assert modes == [models.UpdateMode.INSERT_ONLY.value]
