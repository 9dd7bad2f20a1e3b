"""The page and the image of what a search found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import B
from PIL import Image
from test_image_perturbation import pipeline, searcher  # noqa: F401

from soir_qdrant.errors import ImageError
from soir_qdrant.report.hit_report import save
from soir_qdrant.search.searcher import SoirSearcher

pytestmark = pytest.mark.slow


def test_hits_are_drawn_with_heat_maps(
    searcher: SoirSearcher,  # noqa: F811
    files: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every hit whose image is still there, and where the query looks in it."""
    hits = searcher.search(files[1], box=B)
    Path(str(hits[3].uri)).unlink()
    html, png = tmp_path / "page.html", tmp_path / "sheet.png"
    save(searcher, files[1], B, hits, html=html, png=png)
    page = html.read_text()
    assert "default-src 'none'" in page  # nothing in a name or payload can load or run
    assert page.count("<figure class=hit>") == page.count("<figure class=map>") == 3
    assert "Searched: 1.png" in page
    assert f"hit {hits[3].id} is not shown" in caplog.text
    sheet = np.asarray(Image.open(png))
    assert sheet.shape[1] == 4 * 408  # the query and three hits in a row


def test_a_vector_has_no_heat_map(searcher: SoirSearcher, files: list[Path], tmp_path: Path) -> None:  # noqa: F811
    vector = searcher.vector(files[1], box=B)
    save(searcher, vector, None, searcher.search(vector), html=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (page.count("<figure class=hit>"), page.count("<figure class=map>")) == (4, 0)
    assert "Searched: a vector" in page


def test_an_encoder_without_a_last_block_has_no_heat_maps(
    searcher: SoirSearcher,  # noqa: F811
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(searcher.pipeline.encoder), "last_blocks", ())
    save(searcher, files[1], B, searcher.search(files[1], box=B), html=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (page.count("<figure class=hit>"), page.count("<figure class=map>")) == (4, 0)


def test_a_format_that_cannot_be_written_is_named(
    searcher: SoirSearcher,  # noqa: F811
    files: list[Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(ImageError, match=r"sheet\.xyz: cannot be written"):
        save(searcher, files[1], B, [], png=tmp_path / "sheet.xyz")
