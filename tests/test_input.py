"""What users hand in by mistake, and what hostile ones do: one bad item is reported and stops no other."""

import io
import os
import struct
import subprocess
import sys
import zlib
from typing import ClassVar

import cv2
import numpy as np
import pytest
from conftest import counts, ingestor, picture, stored
from PIL import Image, ImageCms
from qdrant_client import QdrantClient

from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import GREY, ReadOptions, load, pixels
from soir_qdrant.images.formats import known_formats
from soir_qdrant.ingest.ingestor import IngestStopped, summary
from soir_qdrant.ingest.reading import decode_all, read_all
from soir_qdrant.ingest.sources import Item
from soir_qdrant.types import SceneObject


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(device):
    from soir_qdrant.models.devices import pick_device

    with pytest.raises(ConfigError, match=rf"encoder\.device '{device}' is not available here.*auto, cpu"):
        pick_device(device)


def _tiff(levels, orientation):
    """A file of colours of 16 bits, [H, W, 3], with a tag of how the camera was turned."""
    data, (height, width) = levels.tobytes(), levels.shape[:2]
    of_bits = 8 + 2 + 12 * 11 + 4  # where the bits of the three colours stand; the pixels follow
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, of_bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, of_bits + 6), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, height),
        (279, 4, 1, len(data)), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + directory + struct.pack("<IHHH", 0, 16, 16, 16) + data


def cosine(one, other):
    one, other = one.astype(float).ravel(), other.astype(float).ravel()
    return one @ other / (np.linalg.norm(one) * np.linalg.norm(other))


class TestPixels:
    @pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_twelve_bits_in_a_file_of_sixteen_are_as_bright_as_eight(self, tmp_path, bits, suffix):
        eight = picture(1, 64, 48)[:, :, 0]
        eight[0, :2] = 0, 255
        levels = np.round(eight / 255 * (2**bits - 1)).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / f"a{suffix}")
        found = load(tmp_path / f"a{suffix}").rgb[:, :, 0]
        assert np.abs(found.astype(int) - eight).max() <= 1

    @pytest.mark.parametrize("bits", [10, 12, 14, 16])
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_so_are_colours(self, tmp_path, bits, suffix):
        eight = picture(1, 64, 48)
        eight[0, 0], eight[0, 1] = 0, 255
        levels = np.round(eight / 255 * (2**bits - 1)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"a{suffix}"), levels[:, :, ::-1])
        rgb = load(tmp_path / f"a{suffix}").rgb
        assert np.abs(rgb.astype(int) - eight).max() <= 1

    def test_the_bits_that_a_file_declares_count(self, tmp_path):
        """A dark image of twelve bits, none of whose levels needs more than ten."""
        levels = np.full((20, 20), 1000, np.uint16)
        Image.fromarray(levels).save(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        assert load(data).rgb.max() == round(1000 / 1023 * 255)
        chunk = b"sBIT\x0c"
        declared = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
        assert load(data[:33] + declared + data[33:]).rgb.max() == round(1000 / 4095 * 255)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_deep_colours_are_turned_once(self, orientation):
        eight = picture(1, 64, 48)
        eight[0, 0], eight[0, 1] = 0, 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        shallow = io.BytesIO()
        Image.fromarray(eight).save(shallow, "PNG", exif=exif)
        expected = load(shallow.getvalue()).rgb.astype(int)
        rgb = load(_tiff(eight.astype("<u2") * 257, orientation)).rgb
        assert rgb.shape == expected.shape
        assert np.abs(rgb - expected).max() <= 1

    def test_further_pages_of_deep_colours_are_as_bright_as_the_first(self, tmp_path):
        levels = picture(1, 64, 48).astype(np.uint16) * 16
        levels[0, 0] = 4095
        other = np.ascontiguousarray(levels[::-1])
        cv2.imwritemulti(str(tmp_path / "a.tif"), [levels[:, :, ::-1], other[:, :, ::-1]])
        first = load(tmp_path / "a.tif").rgb
        assert first.max() == 255
        assert (load(f"{tmp_path}/a.tif#page=2").rgb == first[::-1]).all()

    def test_deep_colours_keep_their_transparency_and_rotation(self, tmp_path):
        levels = np.full((20, 30, 4), 60_000, np.uint16)
        levels[:, 15:, 3] = 0
        cv2.imwrite(str(tmp_path / "a.png"), levels)
        image = load(tmp_path / "a.png")
        assert image.alpha is not None
        assert image.alpha[:, :15].all()
        assert not image.alpha[:, 15:].any()

    def test_the_transparent_level_of_a_deep_grey(self, tmp_path):
        levels = np.full((40, 40), 40000, np.uint16)
        levels[:, 20:] = 0
        Image.fromarray(levels).save(tmp_path / "a.png", transparency=0)
        image = load(tmp_path / "a.png")
        assert image.alpha is not None
        assert image.alpha[:, :20].all()
        assert not image.alpha[:, 20:].any()
        assert (image.rgb[:, 20:] == GREY).all()

    def test_a_watermark_is_opaque_where_it_is_most_so(self):
        rgba = np.dstack([picture(1), np.full((30, 40), 102, np.uint8)])  # 40 % everywhere
        image = load(rgba)
        assert image.alpha.all()
        assert np.abs(image.rgb.astype(int) - picture(1)).max() <= 1
        with pytest.raises(ImageError, match="wholly transparent"):
            load(np.dstack([picture(1), np.zeros((30, 40), np.uint8)]))

    def test_colours_with_a_profile_are_those_that_it_means(self, tmp_path):
        """The same numbers are other colours in another space."""
        rgb = picture(3)
        srgb = ImageCms.createProfile("sRGB")
        wide = bytes(_wide_gamut())
        Image.fromarray(rgb).save(tmp_path / "wide.png", icc_profile=wide)
        Image.fromarray(rgb).save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(srgb).tobytes())
        assert (load(tmp_path / "srgb.png").rgb == rgb).all()
        converted = load(tmp_path / "wide.png").rgb
        expected = ImageCms.profileToProfile(
            Image.fromarray(rgb), ImageCms.ImageCmsProfile(_stream(wide)), srgb
        )
        assert (converted == np.asarray(expected)).all()
        assert (converted != rgb).any()

    def test_a_profile_that_is_no_profile_is_passed_over(self, tmp_path, caplog):
        Image.fromarray(picture(3)).save(tmp_path / "a.png", icc_profile=b"nonsense" * 30)
        assert (load(tmp_path / "a.png").rgb == picture(3)).all()
        assert "cannot be used" in caplog.text

    @pytest.mark.slow
    def test_large_pictures_with_transparency_take_little_more_than_their_pixels(self, tmp_path):
        """A PNG of 25 kB took 3.6 GB: in a process of its own, whose peak is measured."""
        Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png", transparency=0)
        code = (
            "import resource, sys\nfrom soir_qdrant.images import read, decode\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: decode(read(sys.argv[1]))\n"
            "except Exception as error: print(error, file=sys.stderr)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 900  # MB; the pixels and their mask are 400


def _stream(data):
    import io

    return io.BytesIO(data)


def _wide_gamut() -> bytes:
    """sRGB's profile with red and green primaries swapped: as far from it as a profile can be."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = (bytes(profile[tags[name] + 4 : tags[name] + 12]) for name in (b"rXYZ", b"gXYZ"))
    profile[tags[b"rXYZ"] + 4 : tags[b"rXYZ"] + 12] = green
    profile[tags[b"gXYZ"] + 4 : tags[b"gXYZ"] + 12] = red
    return bytes(profile).replace(b"s\0R\0G\0B", b"w\0i\0d\0e").replace(b"sRGB", b"wide")


class TestFiles:
    def test_pipes_and_devices_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        (tmp_path / "zero.jpg").symlink_to("/dev/zero")
        Image.fromarray(picture(1)).save(tmp_path / "good.png")
        report = ingestor(QdrantClient(":memory:")).add(tmp_path)
        assert counts(report) == (1, 0, 2)
        assert all("a pipe, a socket or a device" in failure.reason for failure in report.failed)

    def test_files_beyond_a_size_are_not_read(self, tmp_path):
        with (tmp_path / "huge.jpg").open("wb") as stream:
            stream.truncate(3_000_000_000)  # sparse: takes no space
        with pytest.raises(ImageError, match="3,000,000,000 bytes, more than"):
            load(tmp_path / "huge.jpg")
        Image.fromarray(picture(1)).save(tmp_path / "a.png")
        report = ingestor(QdrantClient(":memory:"), reading=ReadOptions(max_bytes=10)).add(tmp_path / "a.png")
        assert "more than the 10" in report.failed[0].reason

    def test_postscript_under_another_name_starts_no_program(self, tmp_path, monkeypatch):
        (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
        monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
        with pytest.raises(ImageError, match="format that is not read"):
            load(tmp_path / "a.jpg")

    @pytest.mark.parametrize(
        ("module", "suffix"), [("pillow_heif", ".heic"), ("pillow_jxl", ".jxl"), (None, ".avif")]
    )
    def test_heic_jxl_and_avif(self, tmp_path, module, suffix):
        if module is not None:
            pytest.importorskip(module, reason=f"{module} is not installed: the extra formats has it")
        if suffix == ".avif" and "AVIF" not in known_formats():
            pytest.skip("this Pillow has no AVIF")
        known_formats()
        Image.fromarray(picture(1, 64, 48)).save(tmp_path / f"a{suffix}")
        assert counts(ingestor(QdrantClient(":memory:")).add(tmp_path)) == (1, 0, 0)
        assert (
            np.abs(load(tmp_path / f"a{suffix}").rgb.mean((0, 1)) - picture(1, 64, 48).mean((0, 1))).max() < 6
        )

    def test_heic_says_what_to_install(self, tmp_path, monkeypatch):
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 50)
        monkeypatch.setattr(pixels, "known_formats", lambda: ["JPEG"])  # as without the extra
        report = ingestor(QdrantClient(":memory:")).add(tmp_path)
        assert counts(report) == (0, 0, 1)
        assert "HEIC" in report.failed[0].reason
        assert "soir-qdrant[formats]" in report.failed[0].reason

    def test_what_is_left_out_is_named(self, folder, tmp_path):
        (folder / "raw.dng").write_bytes(b"x")
        (folder / "notes.md").write_bytes(b"no image")
        (folder / "@eaDir").mkdir()
        Image.fromarray(picture(8)).save(folder / "@eaDir" / "thumb.jpg")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (folder / "linked").symlink_to(elsewhere)
        for call in ("add", "sync"):
            report = getattr(ingestor(QdrantClient(":memory:")), call)(folder)
            assert sorted(report.left_out) == ["linked/", "raw.dng"]
            assert not report.failed
        assert "2 left out" in summary(ingestor(QdrantClient(":memory:")).add(folder))

    def test_a_folder_that_cannot_be_read_is_a_failure(self, folder, monkeypatch):
        scandir = os.scandir

        def refusing(path):
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        report = ingestor(QdrantClient(":memory:")).add(folder)
        assert counts(report) == (3, 0, 1)
        assert "cannot be read" in report.failed[0].reason

    def test_what_is_read_ahead_stays_within_a_budget(self, tmp_path, pipeline):
        for i in range(5):
            Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
        size = (tmp_path / "0.png").stat().st_size
        reading = ReadOptions(memory=4 * 2 * 40 * 30 * 4)  # a quarter of it holds the pixels of two
        assert reading.memory // 8 < 2 * size  # and the bytes of one: the others are read twice
        report = ingestor(QdrantClient(":memory:"), pipeline, reading=reading).add(tmp_path)
        assert counts(report) == (5, 0, 0)
        assert max(len(call) for call in pipeline.calls) <= 2

    def test_a_file_that_changes_between_two_reads_fails(self, tmp_path):
        Image.fromarray(picture(1)).save(tmp_path / "a.png")
        item = Item("a.png", tmp_path / "a.png")
        read_all([item], ReadOptions(memory=8))
        Image.fromarray(picture(2)).save(tmp_path / "a.png")
        decode_all([item], ReadOptions(memory=8))
        assert "was changed while it was read" in item.reason


class TestItems:
    BAD: ClassVar = {
        "shares of the image": [SceneObject((0.1, 0.2, 0.5, 0.9))],
        "a number beyond floats": [SceneObject((0, 0, 10**400, 9))],
        "such a score": [SceneObject((0, 0, 9, 9), score=10**400)],
        "a score that is text": [SceneObject((0, 0, 9, 9), score="high")],
        "a ragged mask": [SceneObject((0, 0, 9, 9), mask=[[True], [True, False]])],
        "no list": 7,
    }

    @pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
    def test_bad_objects_fail_their_image_alone(self, bad):
        report = ingestor(QdrantClient(":memory:")).add(
            [picture(1), picture(2), picture(3)], objects=[None, bad, None], batch_size=3
        )
        assert counts(report) == (2, 0, 1)
        assert report.failed[0].name == "image 2"

    def test_objects_that_raise_fail_their_image_alone(self):
        def lazily():
            yield SceneObject((0, 0, 9, 9))
            raise KeyError("box")

        report = ingestor(QdrantClient(":memory:")).add([picture(1), picture(2)], objects=[lazily(), None])
        assert counts(report) == (1, 0, 1)
        assert "KeyError: 'box'" in report.failed[0].reason

    def test_images_that_raise_end_the_call_with_a_report(self):
        def broken():
            yield from (picture(i) for i in range(5))
            raise KeyError("path")

        client = QdrantClient(":memory:")
        with pytest.raises(IngestStopped, match="KeyError: 'path'") as caught:
            ingestor(client).add(broken(), batch_size=2)
        assert counts(caught.value.report) == (5, 0, 0)
        assert len(stored(client)) == 5
