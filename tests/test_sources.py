"""What may be handed in: several paths, patterns, object stores, addresses, videos and files of several pages."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fsspec
import numpy as np
import pytest
from conftest import counts, ingestor, picture, stored, video
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import ReadOptions, iter_sources, load
from soir_qdrant.images.web import is_public


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def names(images, **options):
    return [name for name, _ in iter_sources(images, options=ReadOptions(**options))]


def uris(client):
    return sorted(payload["soir"]["uri"] for payload in stored(client).values())


class TestPaths:
    def test_folders_files_and_patterns_in_one_list(self, folder, tmp_path):
        Image.fromarray(picture(9)).save(tmp_path / "nine.png")
        client = QdrantClient(":memory:")
        report = ingestor(client).add([tmp_path / "nine.png", str(folder / "[02].png"), folder / "sub"])
        assert counts(report) == (6, 0, 0)
        assert uris(client) == sorted(
            str(path)
            for path in [
                tmp_path / "nine.png",
                folder / "0.png",
                folder / "2.png",
                *(folder / "sub").glob("*.png"),
            ]
        )

    def test_a_pattern_by_itself(self, folder):
        assert names(str(folder / "**/*.png")) == [
            str(folder / name) for name in ("0.png", "2.png", "4.png", "sub/1.png", "sub/3.png", "sub/5.png")
        ]
        with pytest.raises(ImageError, match="no image is called so"):
            names(str(folder / "*.webp"))

    def test_patterns_and_an_ignore_file_leave_out_and_are_counted(self, folder):
        (folder / ".soirignore").write_text("# thumbnails\nsub/\n!sub/3.png\n4.*\n")
        report = ingestor(QdrantClient(":memory:"), reading=ReadOptions(exclude=["2.png"])).add(folder)
        assert (counts(report), report.excluded) == ((2, 0, 0), 4)
        with pytest.raises(ConfigError, match="exclude: give a list"):
            ReadOptions(exclude="2.png")

    def test_what_is_excluded_later_is_removed_by_sync(self, folder):
        client = QdrantClient(":memory:")
        ingestor(client).sync(folder)
        report = ingestor(client, reading=ReadOptions(exclude=["sub/"])).sync(folder)
        assert (report.counts, report.excluded) == ({"vanished": 3}, 3)


@pytest.fixture
def bucket():
    """A folder in an object store: fsspec's in memory."""
    store = fsspec.filesystem("memory")
    for name, seed in (("a.png", 1), ("deep/b.png", 2), (".hidden/c.png", 3)):
        store.pipe(f"/photos/{name}", png(seed))
    store.pipe("/photos/readme.txt", b"no image")
    yield store
    store.rm("/photos", recursive=True)


class TestStores:
    def test_a_folder_in_a_store_is_read_searched_and_kept_in_step(self, bucket):
        client = QdrantClient(":memory:")
        adder = ingestor(client)
        assert adder.sync("memory://photos").counts == {"new": 2}
        assert uris(client) == ["memory://photos/a.png", "memory://photos/deep/b.png"]
        assert (load(uris(client)[0]).rgb == picture(1)).all()
        calls = len(adder.pipeline.calls)
        bucket.mv("/photos/a.png", "/photos/deep/moved.png")
        bucket.pipe("/photos/new.png", png(5))
        report = adder.sync("memory://photos")
        assert report.counts == {"moved": 1, "new": 1}
        assert len(adder.pipeline.calls) == calls + 1
        assert adder.sync("memory://photos").counts == {}
        assert counts(adder.add("memory://photos/new.png")) == (0, 1, 0)

    def test_a_file_that_did_not_change_is_not_read_again(self, bucket, monkeypatch):
        client = QdrantClient(":memory:")
        ingestor(client).sync("memory://photos")
        monkeypatch.setattr(type(bucket), "open", lambda *_, **__: pytest.fail("it was read"))
        assert ingestor(client).sync("memory://photos").unchanged == 2

    def test_what_is_not_there_too_large_or_not_read(self, bucket):
        with pytest.raises(ImageError, match=r"memory://photos/none\.png: no such file"):
            load("memory://photos/none.png")
        report = ingestor(QdrantClient(":memory:"), reading=ReadOptions(max_bytes=100)).add("memory://photos")
        assert counts(report) == (0, 0, 2)
        assert "more than the 100 bytes" in report.failed[0].reason
        for address in ("file:///etc/passwd", "simplecache::http://localhost/a.png", "github://owner/c.png"):
            with pytest.raises(ImageError, match="is not read"):
                load(address)


@pytest.fixture
def website():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("location", "/a.png")  # as some servers write it
                self.end_headers()
                return
            data = png(1) if self.path == "/a.png" else b"x" * 10_000
            self.send_response(200 if self.path in ("/a.png", "/large.png") else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class TestWeb:
    def test_only_where_it_is_allowed_and_private_addresses_only_where_that_is(self, website):
        def reason(**allowed):
            report = ingestor(QdrantClient(":memory:"), reading=ReadOptions(**allowed)).add(
                [f"{website}/a.png"]
            )
            return report.failed[0].reason if report.failed else None

        assert "not read unless that is allowed" in reason()
        assert "private network" in reason(http=True)
        assert reason(http=True, private=True) is None

    def test_redirects_errors_and_limits(self, website):
        client = QdrantClient(":memory:")
        reading = ReadOptions(http=True, private=True, max_bytes=5_000)
        report = ingestor(client, reading=reading).add(
            [f"{website}/{name}" for name in ("elsewhere", "none.png", "large.png")]
        )
        assert counts(report) == (1, 0, 2)
        assert uris(client) == [f"{website}/elsewhere"]
        assert "answered 404" in report.failed[0].reason
        assert "more than the 5,000 bytes" in report.failed[1].reason

    def test_a_payload_opens_no_address(self, website):
        """A hit's uri may be anybody's."""
        with pytest.raises(ImageError, match="not read unless"):
            load(f"{website}/a.png")

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1",
         "fe80::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"],
    )  # fmt: skip
    def test_private_addresses(self, address):
        assert not is_public(address)

    def test_public_addresses(self):
        assert all(map(is_public, ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"]))


@pytest.fixture
def clip(tmp_path):
    """Six seconds at four frames a second, of 64 x 48: a colour a second."""
    return video(tmp_path / "videos" / "clip.mp4", COLOURS)


COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200), (200, 40, 200)]


class TestVideos:
    def test_frames_are_images_with_places_of_their_own(self, clip):
        client = QdrantClient(":memory:")
        adder = ingestor(client, reading=ReadOptions(every=1.5))
        assert counts(adder.add(clip.parent)) == (4, 0, 0)
        assert uris(client) == [f"{clip}#t={t}" for t in ("0", "1.5", "3", "4.5")]
        for uri, second in zip(uris(client), (0, 1, 3, 4), strict=True):
            assert np.abs(load(uri).rgb.mean((0, 1)) - COLOURS[second]).max() < 12

    def test_a_frame_that_is_opened_again_is_the_one_that_was_stored(self, clip):
        client = QdrantClient(":memory:")
        ingestor(client, reading=ReadOptions(every=0.7)).add(clip)
        for payload in stored(client).values():
            for uri in payload["soir"]["uris"]:
                assert load(uri).sha256 == payload["soir"]["sha256"]

    def test_a_folder_with_videos_is_kept_in_step(self, clip):
        client = QdrantClient(":memory:")
        adder = ingestor(client, reading=ReadOptions(every=2))
        assert adder.sync(clip.parent).counts == {"new": 3}
        assert adder.sync(clip.parent).unchanged == 3
        clip.rename(clip.with_name("renamed.mp4"))
        assert adder.sync(clip.parent).counts == {"renamed": 3}
        assert uris(client)[0].endswith("renamed.mp4#t=0")

    def test_without_every_they_are_left_out_and_named(self, clip):
        Image.fromarray(picture(1)).save(clip.with_name("a.png"))
        report = ingestor(QdrantClient(":memory:")).add(clip.parent)
        assert (counts(report), report.left_out) == ((1, 0, 0), ["clip.mp4"])
        report = ingestor(QdrantClient(":memory:")).add([clip])
        assert "is a video" in report.failed[0].reason
        with pytest.raises(ConfigError, match="every 0"):
            ReadOptions(every=0)

    def test_damaged_ones_and_playlists_fail_alone(self, clip, monkeypatch):
        monkeypatch.chdir(clip.parent)  # where FFmpeg would look for what a playlist names
        whole = clip.read_bytes()
        clip.with_name("cut.mp4").write_bytes(whole[: len(whole) // 3])
        clip.with_name("list.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
        report = ingestor(QdrantClient(":memory:"), reading=ReadOptions(every=3)).add(clip.parent)
        assert counts(report) == (2, 0, 2)
        assert {failure.name for failure in report.failed} == {"cut.mp4", "list.mp4"}


class TestPages:
    @pytest.fixture
    def scan(self, tmp_path):
        pages = [Image.fromarray(picture(seed)) for seed in (1, 2, 3)]
        pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
        pages[0].save(tmp_path / "moving.gif", save_all=True, append_images=pages[1:])
        return tmp_path / "scan.tif"

    def test_further_pages_are_named_where_they_are_not_read(self, scan):
        report = ingestor(QdrantClient(":memory:")).add(scan.parent)
        assert counts(report) == (2, 0, 0)
        assert report.left_out == [f"{name} (further pages or frames)" for name in ("moving.gif", "scan.tif")]

    def test_on_request_each_is_an_image(self, scan):
        client = QdrantClient(":memory:")
        report = ingestor(client, reading=ReadOptions(pages=True)).add(scan.parent)
        assert (counts(report), report.left_out) == ((6, 0, 0), [])
        assert uris(client)[3:] == [str(scan), f"{scan}#page=2", f"{scan}#page=3"]
        assert (load(f"{scan}#page=3").rgb == picture(3)).all()
        with pytest.raises(ImageError, match="has no page 4"):
            load(f"{scan}#page=4")

    def test_of_files_in_a_list_too(self, scan):
        both = [scan, scan.with_name("none.tif"), str(scan.with_name("moving.gif"))]
        report = ingestor(QdrantClient(":memory:"), reading=ReadOptions(pages=True)).add(both)
        assert (counts(report), report.left_out) == ((6, 0, 1), [])
        assert names([scan], pages=True) == [str(scan), f"{scan}#page=2", f"{scan}#page=3"]
        store = fsspec.filesystem("memory")
        store.pipe("/scans/scan.tif", scan.read_bytes())
        assert len(names(["memory://scans/scan.tif", "memory://scans/none.tif"], pages=True)) == 4

    def test_the_first_keeps_its_point(self, scan):
        client = QdrantClient(":memory:")
        ingestor(client).add(scan)
        assert counts(ingestor(client, reading=ReadOptions(pages=True)).add(scan)) == (2, 1, 0)

    def test_a_file_whose_name_ends_like_a_part(self, tmp_path):
        Image.fromarray(picture(1)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / "odd.png#page=2")
        assert (load(tmp_path / "odd.png#page=2").rgb == picture(1)).all()
