import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from soir_qdrant.errors import ImageError
from soir_qdrant.images import GREY, count_sources, decode, iter_sources, load, read

UPRIGHT = np.zeros((20, 30, 3), np.uint8)
UPRIGHT[:10, :10] = (250, 0, 0)  # a red corner, upper left
UPRIGHT[15:, 25:] = (0, 0, 250)  # a blue one, lower right


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("form", ["path", "str", "bytes", "bytearray"])
def test_forms_of_a_file_agree(tmp_path, form):
    data, path = encoded(UPRIGHT), tmp_path / "a.png"
    path.write_bytes(data)
    image = load({"path": path, "str": str(path), "bytes": data, "bytearray": bytearray(data)}[form])
    assert (image.rgb == UPRIGHT).all()
    assert image.rgb.dtype == np.uint8
    assert image.rgb.flags.writeable
    assert image.alpha is None
    assert image.sha256 == load(data).sha256  # of the bytes: the id does not depend on the path
    assert image.uri == (str(path) if form in ("path", "str") else None)


def test_forms_without_a_file():
    array, drawn = load(UPRIGHT), load(Image.fromarray(UPRIGHT))
    assert (array.rgb == UPRIGHT).all()
    assert (drawn.rgb == UPRIGHT).all()
    assert array.sha256 == drawn.sha256
    assert load(UPRIGHT.reshape(30, 20, 3)).sha256 != array.sha256  # the shape counts
    grey = load(UPRIGHT[:, :, 0])
    assert (grey.rgb == UPRIGHT[:, :, :1]).all()
    assert (load(UPRIGHT[:, :, :1]).rgb == grey.rgb).all()
    assert load(UPRIGHT[:, ::-1]).rgb.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_rotation(orientation, form):
    """Every orientation comes out upright."""
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4]  # the transposition that a camera in that position makes
    stored = Image.fromarray(UPRIGHT)
    if undo[orientation] is not None:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}))
    image = load(data)
    assert image.rgb.shape == UPRIGHT.shape
    assert np.abs(image.rgb.astype(int) - UPRIGHT).mean() < 4
    assert (load(Image.open(io.BytesIO(data))).rgb == image.rgb).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse():
    data = encoded(UPRIGHT, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    assert load(data).rgb.shape == UPRIGHT.shape


def test_sixteen_bits_are_scaled_not_cut():
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    image = load(encoded(Image.fromarray(deep)))
    assert (image.rgb[:, :, 0] == np.round(deep / 257)).all()
    assert image.rgb.max() == 255
    assert (load(encoded(Image.fromarray(deep), "TIFF")).rgb == image.rgb).all()
    with pytest.raises(ImageError, match="32-bit integers"):
        load(Image.fromarray(np.full((10, 10), 70000, np.int32)))
    with pytest.raises(ImageError, match="floats"):
        load(encoded(Image.fromarray(np.zeros((10, 10), np.float32)), "TIFF"))


def test_colour_modes():
    rgb = Image.fromarray(UPRIGHT)
    cmyk = load(encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.rgb.astype(int) - UPRIGHT).mean() < 6
    for mode in ("P", "L", "1", "YCbCr"):
        assert load(rgb.convert(mode)).rgb.shape == UPRIGHT.shape
    assert (load(encoded(rgb.quantize(8))).rgb == UPRIGHT).all()


def test_transparency_becomes_a_mask_on_grey():
    rgba = np.dstack([UPRIGHT, np.full((20, 30), 255, np.uint8)])
    assert load(rgba).alpha is None  # wholly opaque
    rgba[:, 15:, 3] = 0
    rgba[0, 0, 3] = 128
    rgba[0, 1, 3] = 127
    for source in (rgba, encoded(Image.fromarray(rgba, "RGBA")), Image.fromarray(rgba, "RGBA")):
        image = load(source)
        assert image.alpha is not None
        assert (image.alpha == (rgba[:, :, 3] >= 128)).all()
        assert (image.rgb[:, 15:] == GREY).all()
        assert (image.rgb[2:, :15] == UPRIGHT[2:, :15]).all()
    assert load(encoded(Image.fromarray(rgba, "RGBA").convert("LA"))).alpha is not None
    palette = Image.fromarray(UPRIGHT).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    clear = load(encoded(palette, transparency=palette.getpixel((0, 0))))
    assert clear.alpha is not None
    assert not clear.alpha[0, 0]
    assert clear.alpha[-1, -1]
    rgba[:, :, 3] = 0
    with pytest.raises(ImageError, match="wholly transparent"):
        load(rgba)


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(UPRIGHT), Image.new("RGB", (30, 20), "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(load(data).rgb.astype(int) - UPRIGHT).mean() < 4


BAD = {
    "truncated JPEG": (encoded(picture(1, 200, 200), "JPEG")[:2000], "damaged or cut off"),
    "truncated PNG": (encoded(picture(1, 200, 200))[:2000], "damaged or cut off"),
    "header only": (encoded(picture(1))[:20], "damaged|not an image"),
    "text": (b"<html>no picture</html>", "not an image that Pillow knows"),
    "empty": (b"", "not an image"),
    "one pixel": (np.zeros((1, 1, 3), np.uint8), "1x1 pixels: nothing can be recognised below 8x8"),
    "no pixel": (np.zeros((0, 5, 3), np.uint8), "5x0 pixels"),
    "thin": (encoded(picture(1, 300, 4)), "300x4"),
    "bomb": (png_header(20_000, 10_000), "too large|more than"),
    "large": (png_header(12_000, 10_000), "12000x10000 pixels, more than the 100,000,000"),
    "NaN": (np.full((10, 10, 3), np.nan), "NaN"),
    "float": (np.zeros((10, 10, 3)), r"float64; give uint8.*\* 255"),
    "bool": (np.zeros((10, 10), bool), "bool; give uint8"),
    "uint16": (np.zeros((10, 10), np.uint16), "uint16"),
    "channels first": (np.zeros((3, 10, 10), np.uint8), r"shape \(3, 10, 10\)"),
    "four axes": (np.zeros((1, 10, 10, 3), np.uint8), "shape"),
    "list": ([1, 2], "is a list: give a path"),
    "none": (None, "NoneType"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_named(case):
    source, message = BAD[case]
    with pytest.raises(ImageError, match=message) as caught:
        load(source, name="the third one")
    assert "the third one" in str(caught.value)


def test_the_limit_is_an_argument(tmp_path):
    data = encoded(picture(1, 40, 30))
    with pytest.raises(ImageError, match="40x30"):
        load(data, max_pixels=1000)
    with pytest.raises(ImageError, match="40x30"):
        load(Image.open(io.BytesIO(data)), max_pixels=1000)
    assert load(data, max_pixels=1200).width == 40


def test_bad_paths(tmp_path):
    with pytest.raises(ImageError, match=rf"{tmp_path}/none\.jpg: no such file"):
        load(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="http is not read unless"):
        load("https://example.org/a.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load("a\0b.jpg")
    (tmp_path / "e.png").touch()
    with pytest.raises(ImageError, match="empty file"):
        load(tmp_path / "e.png")


def test_reading_does_not_decode():
    raw = read(b"no picture", name="x")
    assert len(raw.sha256) == 64
    with pytest.raises(ImageError, match="x is not an image"):
        decode(raw)


def test_folders(folder: Path, tmp_path):
    names = [name for name, _ in iter_sources(folder)]
    assert names == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png", "sub/5.png"]
    assert [name for name, _ in iter_sources(str(folder))] == names
    assert count_sources(folder) is None  # only a walk tells
    assert all(load(source).uri == str(folder / name) for name, source in iter_sources(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"no image in this folder.*\.jpg.*\.png"):
        iter_sources(tmp_path / "empty")
    with pytest.raises(ImageError, match="no such file or folder"):
        iter_sources(tmp_path / "none")


def test_iterables_are_not_materialised():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield UPRIGHT

    sources = iter_sources(endless())
    assert [next(sources)[0] for _ in range(3)] == ["image 1", "image 2", "image 3"]
    assert len(taken) == 3
    assert count_sources(endless()) is None
    with pytest.raises(ImageError, match="images is a int"):
        iter_sources(3)


def test_single_images_and_stacks(folder: Path):
    data = (folder / "0.png").read_bytes()
    for one in (folder / "0.png", data, Image.open(io.BytesIO(data)), UPRIGHT, UPRIGHT[:, :, 0]):
        assert len(list(iter_sources(one))) == 1
        assert count_sources(one) == 1
    assert len(list(iter_sources(np.stack([UPRIGHT, UPRIGHT])))) == 2
    assert [name for name, _ in iter_sources([Path("a.png"), data])] == ["a.png", "image 2"]


@settings(max_examples=30, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n", b"GIF89a", b"II*\0"])
)
def test_any_bytes_give_an_image_or_an_error(data, start):
    with contextlib.suppress(ImageError):
        assert load(start + data).rgb.dtype == np.uint8
