"""Which image formats are read: those that Pillow decodes by itself, and a few by its plug-ins."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl",
    ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
SEVERAL = (
    ".apng",
    ".avif",
    ".gif",
    ".jxl",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)  # may hold further pages or frames
SEVERAL_FORMATS = {"AVIF", "GIF", "JXL", "PNG", "TIFF", "WEBP"}
VIDEOS = (".3gp", ".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm")
NOT_READ = (  # images too; a folder's are counted as left out
    ".arw", ".cr2", ".cr3", ".dng", ".eps", ".nef", ".orf", ".pdf", ".psd", ".raf", ".raw", ".rw2", ".svg",
)  # fmt: skip
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@lru_cache(maxsize=1)
def _init() -> None:
    """Pillow's own formats, and those of the plug-ins that are installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  # registers itself


def known_formats() -> list[str]:
    """Those of FORMATS that can be opened here."""
    _init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_common(data: bytes) -> bool:
    """Whether a file is a JPEG, PNG or WebP, which every Pillow reads."""
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or data[8:12] == b"WEBP"


def unknown(data: bytes, name: str) -> str:
    """What to say of a file that is of none of them."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        return f"{name} is a HEIC image: pip install 'soir-qdrant[formats]', or convert it to JPEG"
    if data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or data[:2] == b"\xff\x0a":
        return f"{name} is a JPEG XL image: pip install 'soir-qdrant[formats]', or convert it to JPEG"
    return f"{name} is not an image that Pillow knows, or of a format that is not read: convert it to JPEG or PNG"
