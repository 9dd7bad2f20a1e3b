"""Shelves of invented products, and photographs taken again: what training sees beside single cut-outs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, GalleryImage, load
from soir_qdrant.lab.needlebench import emblems, lettering, marks, retaken, shelves
from soir_qdrant.lab.needlebench.invent import Inventor
from soir_qdrant.lab.needlebench.sources import Sources


@pytest.fixture(scope="module")
def inventor() -> Inventor:
    pack = Sources.shipped()
    drawings = [cutout.path for cutout in pack.dev.cutouts if cutout.kind != "photo"]
    return Inventor(drawings, [pack.dev.grounds[0].read()], np.random.default_rng(0))


@pytest.fixture(scope="module")
def rows(tmp_path_factory, inventor) -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelves, "BRANDS", 5)
        patch.setattr(shelves, "EMBLEMS", 3)
        out = tmp_path_factory.mktemp("shelves") / "0"
        return load(shelves.generate(out, scenes=4, seed=2, inventor=inventor, progress=False))


@pytest.mark.slow
def test_a_shelf_holds_equal_things_side_by_side_each_in_its_own_box(rows):
    dense = max(rows.gallery, key=lambda entry: len(entry.objects))
    assert len(dense.objects) > len(set(dense.instances)) > 1
    for mask, item in zip(dense.masks() or [], dense.objects, strict=True):
        y, x = np.nonzero(mask)
        assert item.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


@pytest.mark.slow
def test_what_is_in_two_scenes_is_asked_for(rows):
    assert rows.queries
    assert all(len(rows.relevant(query)) > 1 for query in rows.queries)
    modes = {Image.open(query.file).mode for query in rows.queries}
    assert modes <= {"RGB", "RGBA"}


def photograph(folder, masked: bool) -> GalleryImage:
    """A blue thing on noise, a person, and a thing that is too small."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 160, (200, 300, 3), np.uint8)
    pixels[40:120, 60:160] = (20, 40, 220)
    Image.fromarray(pixels).save(folder / "room.png")
    ids = np.zeros((200, 300), np.uint8)
    ids[40:120, 60:160] = 1
    Image.fromarray(ids).save(folder / "ids.png")
    boxes = [(60, 40, 160, 120), (200, 20, 280, 180), (10, 150, 30, 170)]
    objects = [BenchObject(None, b, name) for b, name in zip(boxes, ("crate", "person", "pin"), strict=True)]
    return GalleryImage(folder / "room.png", folder / "ids.png" if masked else None, objects)


@pytest.mark.parametrize("masked", [True, False])
def test_each_large_thing_is_asked_for_by_other_views_of_it(tmp_path, masked):
    bench = Bench(tmp_path, [photograph(tmp_path, masked)], [])
    made = load(retaken.generate(tmp_path / "out", bench, progress=False))
    (entry,) = made.gallery
    assert [item.box for item in entry.objects] == [(60, 40, 160, 120)]
    assert (entry.mask is not None) == masked
    assert len(made.queries) == retaken.VIEWS
    for query in made.queries:
        with Image.open(query.file) as image:
            view = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
        assert (view[:, 2] - view[:, 0] > 60).mean() > 0.2  # it still is a blue thing
    views = [made.queries[i].file.read_bytes() for i in range(2)]
    assert views[0] != views[1]


def test_photographs_of_one_name_in_two_folders_stay_two(tmp_path):
    entries = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        entries.append(photograph(tmp_path / part, masked=True))
    again = load(retaken.generate(tmp_path / "out", Bench(tmp_path, entries, []), progress=False))
    assert len({entry.file for entry in again.gallery}) == len({entry.mask for entry in again.gallery}) == 2
    assert len(again.queries) == 2 * retaken.VIEWS
    assert [len(again.relevant(query)) for query in again.queries] == [1] * len(again.queries)


def test_nothing_is_written_where_something_else_lies(tmp_path):
    """Least of all over the photographs themselves."""
    source = tmp_path / "coco"
    source.mkdir()
    bench = Bench(source, [photograph(source, masked=False)], [])
    with pytest.raises(DatasetError, match="not empty"):
        shelves.generate(source, progress=False)
    for kind in (retaken, marks):
        with pytest.raises(DatasetError, match="the photographs themselves"):
            kind.generate(source, bench, progress=False)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        retaken.generate(other, bench, progress=False)
    assert (source / "room.png").is_file()
    assert (other / "diary.txt").read_text() == "mine"


def test_a_folder_of_other_arguments_is_not_taken_for_the_same(tmp_path):
    bench = Bench(tmp_path, [photograph(tmp_path, masked=False)], [])
    out = retaken.generate(tmp_path / "out", bench, seed=0, progress=False)
    before = (out / "annotations.json").stat().st_mtime_ns
    assert retaken.generate(out, bench, seed=0, progress=False) == out
    assert (out / "annotations.json").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="other arguments"):
        retaken.generate(out, bench, seed=1, progress=False)
    with pytest.raises(DatasetError, match="other arguments"):
        shelves.generate(out, progress=False)


def test_another_camera_changes_the_pixels_and_not_what_they_show():
    rng = np.random.default_rng(1)
    image = np.full((60, 80, 3), 40, np.uint8)
    image[20:40, 20:60] = 220
    for _ in range(20):
        other = retaken.camera(image, rng)
        assert other.shape == image.shape
        assert other.dtype == np.uint8
        assert other[25:35, 30:50].mean() > other[:10].mean() + 20


def test_photographs_with_marks_keep_their_own_labels(tmp_path, inventor):
    entry = replace(photograph(tmp_path, masked=False), exhaustive=False)
    bench = Bench(tmp_path, [entry] * 6, [])
    printed = load(marks.generate(tmp_path / "out", bench, scenes=5, inventor=inventor, progress=False))
    assert len(printed.gallery) == 5
    for one in printed.gallery:
        assert not one.exhaustive
        assert [item.box for item in one.objects[:3]] == [item.box for item in entry.objects]
        names = [item.name for item in one.objects]
        assert names == ["crate", "person", "pin", *["mark"] * (len(names) - 3)]
    assert sum(len(one.objects) for one in printed.gallery) > 5 * 3


def test_marks_change_what_is_in_their_boxes_and_hide_no_thing(tmp_path, inventor):
    entry = photograph(tmp_path, masked=False)
    before = np.asarray(Image.open(entry.file).convert("RGB"))
    for seed in range(20):
        rgb = before.copy()
        rng = np.random.default_rng(seed)
        prints = marks.draw(rgb, entry.boxes, marks.new(inventor, rng), rng)
        boxes = np.array([printed.box for printed in prints]).reshape(-1, 4)
        changed = (rgb != before).any(2)
        for i, box in enumerate(boxes):
            x0, y0, x1, y1 = box.astype(int)
            assert changed[y0:y1, x0:x1].mean() > 0.1
            changed[max(y0 - 5, 0) : y1 + 5, max(x0 - 5, 0) : x1 + 5] = False  # their edges are soft
            assert (share_inside(entry.boxes, box) <= marks.MAX_HIDDEN + 1e-6).all()
            assert not share_inside(np.delete(boxes, i, 0), box).any()
        assert not changed.any()


def share_inside(boxes, box):
    """How much of each of some boxes lies in another one."""
    common = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    return common.clip(min=0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def test_a_design_that_comes_again_is_named_and_masked_wherever_it_is(tmp_path, inventor):
    bench = Bench(tmp_path, [photograph(tmp_path, masked=False)] * 6, [])
    again = load(marks.generate(tmp_path / "out", bench, designs=6, inventor=inventor, progress=False))
    names = [name for entry in again.gallery for name in entry.instances]
    assert set(names) <= {f"mark-0-{i}" for i in range(6)}
    assert len(names) > len(set(names))
    for entry in again.gallery:
        for mask, item in zip(entry.masks() or [], entry.objects, strict=True):
            y, x = np.nonzero(mask)
            assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == item.box


@pytest.fixture
def fonts(tmp_path):
    folder = tmp_path / "fonts"
    folder.mkdir()
    (folder / "plain.ttf").write_bytes(ImageFont.load_default(20).font_bytes)
    (folder / "LICENSE.txt").write_text("free")
    return folder


def test_words_are_lettered_in_the_fonts_of_a_folder(fonts, inventor):
    files = lettering.fonts_in(fonts)
    assert [file.name for file in files] == ["plain.ttf"]
    words = [lettering.word(np.random.default_rng(seed), files) for seed in range(40)]
    assert all(0.02 < (word > 127).mean() < 0.9 for word in words)
    assert np.median([word.shape[1] / word.shape[0] for word in words]) > 2
    np.testing.assert_array_equal(words[7], lettering.word(np.random.default_rng(7), files))
    drawn = [emblems.stamp(inventor, np.random.default_rng(seed), files).share for seed in range(8)]
    without = [emblems.stamp(inventor, np.random.default_rng(seed)).share for seed in range(8)]
    assert any(one.shape != other.shape for one, other in zip(drawn, without, strict=True))


def test_marks_of_other_fonts_are_another_folder(tmp_path, fonts, inventor):
    bench = Bench(tmp_path, [photograph(tmp_path, masked=False)] * 2, [])
    out = marks.generate(
        tmp_path / "out", bench, inventor=inventor, fonts=lettering.fonts_in(fonts), progress=False
    )
    assert [item.name for entry in load(out).gallery for item in entry.objects].count("mark")
    with pytest.raises(DatasetError, match="other arguments"):
        marks.generate(out, bench, inventor=inventor, progress=False)


def test_what_is_no_font_is_named(tmp_path, fonts):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match="no fonts here"):
            lettering.fonts_in(folder)
    (fonts / "broken.otf").write_bytes(b"not a font")
    with pytest.raises(DatasetError, match=r"broken\.otf"):
        lettering.word(np.random.default_rng(0), [fonts / "broken.otf"])


def changes(inventor):
    """By how much marks on plain backgrounds change the pixels in their boxes, int [h, w, 3] each."""
    for level in (30, 128, 230):
        for seed in range(10):
            rgb = np.full((240, 320, 3), level, np.uint8)
            rng = np.random.default_rng(seed)
            for printed in marks.draw(rgb, np.zeros((0, 4), np.float32), marks.new(inventor, rng), rng):
                x0, y0, x1, y1 = map(int, printed.box)
                yield rgb[y0:y1, x0:x1].astype(int) - level


def test_some_marks_have_the_tone_of_what_is_below_them(inventor, monkeypatch):
    monkeypatch.setattr(marks, "TONED", 1.0)
    for change in changes(inventor):
        assert 15 < np.abs(change).max() <= 255 * marks.TONE[1] + 1
        assert np.ptp(change, axis=2).max() <= 1  # grey below, grey above


def test_other_marks_stand_out_from_what_is_below_them(inventor, monkeypatch):
    monkeypatch.setattr(marks, "TONED", 0.0)
    for change in changes(inventor):
        assert np.abs(change).max() > 40
