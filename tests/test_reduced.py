"""JPEG files that are larger than is needed, decoded at a reduced size: what is stored is about the whole image."""

import io
from typing import Any

import numpy as np
import pytest
from conftest import ColourPipeline, counts, ingestor, painted, picture, stored
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant import ReadOptions, SceneObject, SoirSearcher
from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import decode, load, read
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.report import hit_report
from soir_qdrant.rerank.image import ImageReranker
from soir_qdrant.service.pictures import small_jpeg

ENOUGH = ReadOptions(reduce=200 * 150)


class Watched(ColourPipeline):
    """Notes the sizes of the images that it gets, and finds the red thing in them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def scenes(self, images: Any, objects: Any = None, seconds: Any = None) -> Any:
        self.sizes += [(image.width, image.height) for image in images]
        known = [own or [self.red(image.rgb)] for image, own in zip(images, objects, strict=True)]
        return super().scenes(images, known, seconds)

    def red(self, rgb: np.ndarray) -> SceneObject:
        rows, columns = np.nonzero((rgb[:, :, 0] > 180) & (rgb[:, :, 1] < 60))
        return SceneObject(
            (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0),
        )


RED = (80, 40, 240, 160)


@pytest.fixture
def room(tmp_path):
    path = tmp_path / "room.jpg"
    Image.fromarray(painted((RED, (230, 20, 20)), size=(400, 300))).save(path, quality=95)
    return path


def test_the_pipeline_gets_the_half_and_the_box_is_of_the_whole(room):
    client, pipeline = QdrantClient(":memory:"), Watched()
    assert counts(ingestor(client, pipeline, reading=ENOUGH).add(room)) == (1, 0, 0)
    assert pipeline.sizes == [(200, 150)]
    (payload,) = stored(client).values()
    soir = payload["soir"]
    assert (soir["width"], soir["height"]) == (400, 300)
    assert np.allclose(soir["objects"][0]["box"], RED, atol=4)
    assert soir["objects"][0]["area"] == pytest.approx(160 * 120 / (400 * 300), abs=0.01)
    (hit,) = SoirSearcher(client, pipeline=pipeline).search(room, box=RED, with_masks=True)
    assert np.allclose(hit.box, RED, atol=4)
    assert hit.mask.shape == (300, 400)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_one_is_as_large_as_it_looks(room, orientation):
    with Image.open(room) as image:
        exif = image.getexif()
        exif[0x112] = orientation
        image.save(room, exif=exif, quality=95)
    turned = orientation > 4
    image = decode(read(room), enough=200 * 150)
    assert (image.width, image.height) == ((150, 200) if turned else (200, 150))
    assert image.full_size == ((300, 400) if turned else (400, 300))


def test_an_image_is_reduced_where_enough_is_left_and_the_format_can(room):
    def size(enough, path=room):
        image = decode(read(path), enough=enough)
        return image.width, image.height

    assert [size(enough) for enough in (None, 200 * 150 + 1, 200 * 150, 7_500, 1)] == [
        (400, 300), (400, 300), (200, 150), (100, 75), (50, 38),
    ]  # fmt: skip
    png = room.with_suffix(".png")
    Image.open(room).save(png)
    assert size(1, png) == (400, 300)
    with pytest.raises(ConfigError, match="reduce"):
        ReadOptions(reduce=0)


def test_boxes_of_the_user_are_of_the_whole_image_which_is_then_read(room):
    client, pipeline = QdrantClient(":memory:"), Watched()
    report = ingestor(client, pipeline, reading=ENOUGH).add([room], objects=[[SceneObject(RED)]])
    assert counts(report) == (1, 0, 0)
    assert pipeline.sizes == [(400, 300)]
    (payload,) = stored(client).values()
    assert payload["soir"]["objects"][0]["box"] == list(RED)


def test_what_is_larger_than_the_limit_is_stored_unless_it_is_held_in_memory_whole(room):
    small = {"max_pixels": 60_000}
    slow = room.with_name("progressive.jpg")
    Image.open(room).save(slow, progressive=True, quality=90)
    for reading, expected in ((ReadOptions(**small), 0), (ReadOptions(reduce=20_000, **small), 1)):
        report = ingestor(QdrantClient(":memory:"), Watched(), reading=reading).add([room, slow])
        assert counts(report) == (expected, 0, 2 - expected)
        assert all("has 400x300 pixels, more than the 60,000" in failure.reason for failure in report.failed)


class TestTooLargeToBeReadWhole:
    """An image beyond `max_pixels`, which was stored at a reduced size, is opened again at one."""

    LIMIT = 60_000
    THING = painted(((5, 5, 35, 25), (230, 20, 20)), size=(40, 30))

    @pytest.fixture
    def searched(self, room):
        client, pipeline = QdrantClient(":memory:"), Watched()
        reading = ReadOptions(reduce=20_000, max_pixels=self.LIMIT)
        assert counts(ingestor(client, pipeline, reading=reading).add(room)) == (1, 0, 0)
        searcher = SoirSearcher(client, pipeline=pipeline, max_pixels=self.LIMIT)
        return searcher, searcher.search(self.THING, with_masks=True)

    def test_masks_are_of_the_whole_one(self, searched):
        mask = searched[1][0].mask
        assert mask.shape == (300, 400)
        assert mask[45:155, 85:235].all()
        assert not mask[:35].any()
        assert not mask[:, 250:].any()

    def test_pages_show_it_and_the_box_in_it(self, searched, tmp_path, monkeypatch):
        shown = []
        monkeypatch.setattr(hit_report, "sheet", lambda _, images: shown.extend(images) or self.THING)
        hit_report.save(searched[0], self.THING, None, searched[1], png=tmp_path / "found.png")
        assert shown[0].image.shape == (150, 200, 3)
        assert np.allclose(shown[0].matched, np.array(RED) / 2, atol=3)
        with pytest.raises(ImageError, match="more than the 60,000 that are decoded"):
            load(searched[1][0].uri, max_pixels=self.LIMIT)

    def test_objects_are_described_where_they_are(self, searched, tiny_settings):
        pipeline, (hit,) = Pipeline(tiny_settings), searched[1]
        whole, reduced = (ImageReranker(pipeline, max_pixels=n).objects(hit) for n in (10**6, self.LIMIT))
        assert (whole["boxes"] == reduced["boxes"]).all()
        assert float((whole["vectors"] * reduced["vectors"]).sum()) > 0.95
        assert (
            whole["vectors"] != reduced["vectors"]
        ).any()  # the one was not read out of the cache for the other

    def test_so_do_thumbnails(self, searched, room):
        data = room.read_bytes()
        for box, colour in ((None, (100, 100, 100)), ((100.0, 60.0, 200.0, 140.0), (230, 20, 20))):
            small = Image.open(io.BytesIO(small_jpeg(data, 64, self.LIMIT, box)))
            assert max(small.size) <= 64
            assert np.abs(np.asarray(small)[1, 1].astype(int) - colour).max() < 12
        with pytest.raises(ImageError, match="more than the 1,000"):
            small_jpeg(data, 640, 1_000)


def test_a_corrected_title_runs_no_model(room):
    client, pipeline = QdrantClient(":memory:"), Watched()
    keeper = ingestor(client, pipeline, reading=ENOUGH)
    keeper.sync(room.parent)
    content = room.read_bytes()
    room.write_bytes(content[:2] + b"\xff\xfe\x00\x07title" + content[2:])  # a comment
    report = keeper.sync(room.parent)
    assert report.counts == {"touched": 1}
    assert len(pipeline.sizes) == 1


def test_images_that_are_small_enough_are_as_they_were():
    image = picture(1)
    assert decode(read(image), enough=1).full_size is None


def test_what_was_reduced_otherwise_is_stale_and_small_images_are_as_they_were(room):
    """A collection goes on where an image is stored as it would be now, or whole."""
    folder, client, pipeline = room.parent, QdrantClient(":memory:"), Watched()
    Image.fromarray(painted(((5, 5, 35, 25), (230, 20, 20)), size=(40, 30))).save(folder / "small.jpg")

    def stale(reduce):
        keeper = ingestor(client, pipeline, reading=ReadOptions(reduce=reduce))
        planned = keeper.sync(folder, dry_run=True).counts.get("stale", 0)
        assert keeper.add(folder).stale == planned
        return planned

    def renewed(reduce):
        keeper = ingestor(client, pipeline, reading=ReadOptions(reduce=reduce))
        return keeper.sync(folder).counts

    assert renewed(200 * 150) == {"new": 2}
    assert [stale(enough) for enough in (200 * 150, None, 100 * 75)] == [0, 1, 1]
    assert renewed(None) == {"stale": 1}
    assert pipeline.sizes[-1] == (400, 300)
    assert [stale(enough) for enough in (None, 200 * 150)] == [0, 0]
