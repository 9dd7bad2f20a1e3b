"""Some two hundred files that are cut, flipped, mislabelled, oversized or no files at all, good ones among them."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from soir_qdrant.images.formats import known_formats

GOOD = 24
MAX_MB = 900  # of memory that the whole run may take on top of its imports: two images of 100 million pixels
FORMS = {
    "JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm",
    "JPEG2000": ".jp2", "AVIF": ".avif", "HEIF": ".heic", "JXL": ".jxl",
}  # fmt: skip


def encoded(form: str, seed: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, 96, 64)).save(buffer, form)
    return buffer.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> dict[str, bytes]:
    """One file, spoiled in many ways."""
    flipped = {}
    for i in range(8):
        spoiled = bytearray(data)
        for at in rng.integers(0, len(data), 1 + i * 4):
            spoiled[at] ^= int(rng.integers(1, 256))
        flipped[f"flipped{i}"] = bytes(spoiled)
    cuts = {f"cut{share}": data[: len(data) * share // 100] for share in (1, 5, 20, 50, 80, 95)}
    zeroed = data[: len(data) // 3] + b"\0" * (len(data) // 3) + data[2 * (len(data) // 3) :]
    doubled = data[: len(data) // 2] * 3
    return {**flipped, **cuts, "zeroed": zeroed, "doubled": doubled, "headless": data[16:]}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A small file of an image that is as large as its head says, all of its pixels 0."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" * (1 + width * channels * depth // 8)
    packer, parts = zlib.compressobj(1), []
    for _ in range(height):
        parts.append(packer.compress(row))
    parts.append(packer.flush())
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def oversized() -> dict[str, bytes]:
    """Few bytes that want much memory."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 50_000_000))
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"b" * 20_000_000))
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    empty = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
    small = encoded("PNG")
    return {
        "grey.png": png_of(9_000, 9_000, 8, 0),
        "bits.png": png_of(10_000, 10_000, 1, 0, chunk(b"tRNS", b"\0\0")),
        "alpha.png": png_of(6_000, 6_000, 8, 6),
        "deep.png": png_of(6_000, 6_000, 16, 0),
        "deepcolour.png": png_of(4_000, 4_000, 16, 2),
        "too_large.png": png_of(12_000, 9_000, 1, 0),
        "claims.png": empty,
        "text.png": small[:33] + text + small[33:],
        "profile.png": small[:33] + profile + small[33:],
    }


def mislabelled() -> dict[str, bytes]:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/owned) (w) file\n"
    return {
        "script.jpg": script,
        "page.png": b"<!doctype html><html><body>503 try later</body></html>",
        "vector.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "document.png": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
        "archive.webp": b"PK\x03\x04" + b"\0" * 200,
        "program.gif": b"\x7fELF" + b"\0" * 200,
        "icon.bmp": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + b"\xff" * 60,
        "fits.tif": b"SIMPLE  =                    T" + b" " * 3000,
        "bytes.jpg": bytes(range(256)) * 8,
        "empty.jpg": b"",
        "one.png": b"\x89",
    }


def fill(folder: Path) -> int:
    """Write them; returns how many are no good ones for sure."""
    rng = np.random.default_rng(0)
    files = {f"{name}": data for name, data in {**oversized(), **mislabelled()}.items()}
    for form in (form for form in FORMS if form in known_formats()):
        for what, data in damaged(encoded(form), rng).items():
            files[f"{form}_{what}{FORMS[form]}"] = data
        files[f"named_like_{form}.png"] = encoded(form, 2)  # read as what it is
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    (folder / "terminal.png").symlink_to("/dev/tty")
    (folder / "nowhere.png").symlink_to(folder / "none.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "memory.jpg").symlink_to("/proc/self/mem")
    (folder / "folder.jpg").mkdir()
    with (folder / "sparse.tif").open("wb") as stream:
        stream.truncate(60_000_000_000)
    with (folder / "half.png").open("wb") as stream:  # below the limit of bytes, and read
        stream.write(encoded("PNG")[:60])
        stream.truncate(100_000_000)
    for i in range(GOOD):
        Image.fromarray(picture(100 + i, 96, 64)).save(folder / f"{'azm'[i % 3]}_good{i}.png")
    return len(files)


# In a process of its own, whose peak is measured.
RUN = """
import json, resource, sys
sys.path.insert(0, sys.argv[2])
from conftest import ColourPipeline, ingestor
from qdrant_client import QdrantClient
from soir_qdrant import ReadOptions
import cv2, pathspec
from soir_qdrant.images.formats import known_formats
known_formats()
client = QdrantClient(":memory:")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = ingestor(client, reading=ReadOptions(memory=256 << 20)).add(sys.argv[1], batch_size=16)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
records, _ = client.scroll("images", limit=2000)
print(json.dumps({
    "uris": [uri for record in records for uri in record.payload["soir"]["uris"]],
    "added": report.added, "skipped": report.skipped,
    "failed": {failure.name: failure.reason for failure in report.failed}, "mb": (after - before) // 1024,
}))
"""


@pytest.mark.slow
def test_good_images_among_hostile_ones_are_stored_within_a_ceiling_of_memory(tmp_path):
    import json

    folder = tmp_path / "files"
    folder.mkdir()
    count = fill(folder)
    assert count > 180
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(folder), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    names = {Path(uri).name for uri in result["uris"]}
    assert {path.name for path in folder.glob("*_good*.png")} <= names
    assert {name for name in names if name.startswith("named_like_")}, "a wrong suffix is no fault"
    refused = {*mislabelled(), "too_large.png", "claims.png", "pipe.jpg", "endless.jpg", "terminal.png", "nowhere.png",
               "circle.png", "memory.jpg", "sparse.tif", "half.png"}  # fmt: skip
    assert refused <= result["failed"].keys()
    assert all(reason for reason in result["failed"].values())
    files = [path for path in folder.iterdir() if path.is_symlink() or not path.is_dir()]
    assert result["added"] + result["skipped"] + len(result["failed"]) == len(files)
    print(f"{len(files)} files, {len(names)} stored, {len(result['failed'])} failed, {result['mb']} MB")
    assert result["mb"] < MAX_MB
