"""The photographs that ship with `soir demo`, and what it does beside searching (which `make demo` runs)."""

import io
import sys

import pytest
from PIL import Image

from soir_qdrant.lab import demo
from soir_qdrant.lab.evaluate.bench import load

FOLDER = demo.photographs()
FILES = sorted(file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*.jpg"))


def test_every_photograph_that_ships_has_its_author_source_and_licence():
    rows = [line.split("|") for line in (FOLDER / "LICENSES.md").read_text().splitlines() if line[:1] == "|"]
    named = {row[1].strip(" `"): [cell.strip() for cell in row[2:5]] for row in rows[2:]}
    assert sorted(named) == FILES
    assert all(all(cells) for cells in named.values())
    assert sum((FOLDER / name).stat().st_size for name in FILES) < 3_000_000


def test_each_query_has_a_right_answer_whose_boxes_lie_in_its_image():
    bench = load(FOLDER)
    assert {entry.file.name for entry in bench.gallery} | {query.file.name for query in bench.queries} == {
        name.rpartition("/")[2] for name in FILES
    }
    for query in bench.queries:
        assert bench.relevant(query)
    for entry in bench.gallery:
        with Image.open(entry.file) as image:
            assert not image.getexif()
            for item in entry.objects:
                assert item.box[2] <= image.width
                assert item.box[3] <= image.height


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="there, a screen is taken for granted")
def test_a_page_is_opened_only_for_somebody_at_a_screen(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not demo._has_browser()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert demo._has_browser()
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not demo._has_browser()
