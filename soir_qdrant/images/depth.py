"""More than 8 bits to 8: cameras, microscopes and satellites write 10, 12 or 14 bits into files of 16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.errors import ImageError

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of greys
BITS = (8, 10, 12, 14, 16)
STRIP = 4_000_000  # pixels that are scaled at once
_ORIENTATION, _MAX_SAMPLE = 0x0112, 281  # EXIF's, TIFF's


def to_8_bits(levels: NDArray[Any], name: str, bits: int | None = None) -> NDArray[np.uint8]:
    """Scale levels, [H, W, ...], 0..65535, to uint8, 0..255.

    The range is that of the declared bits, if there are any and they hold all levels, else the smallest one of 8,
    10, 12, 14 or 16 bits that does: a file of 16 bits does not say how many of them its camera has. Raises
    ImageError for values beyond 16 bits.
    """
    if not levels.size:
        return np.zeros(levels.shape, np.uint8)
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > 65535:
        raise ImageError(f"{name} holds 32-bit integers: scale them to 0..255 and save it with 8 bits")
    top = next(2**n - 1 for n in (bits or 0, *BITS) if highest < 2**n and n)
    scaled = np.empty(levels.shape, np.uint8)
    rows = max(1, STRIP // levels[0].size)
    for y in range(0, len(levels), rows):
        strip = levels[y : y + rows].astype(np.uint32)
        scaled[y : y + rows] = (strip * 255 + top // 2) // top
    return scaled


def declared_bits(image: Image.Image, data: bytes) -> int | None:
    """The bits that a file of 16 says its values have: the chunk sBIT of a PNG, MaxSampleValue of a TIFF."""
    if image.format == "PNG":
        significant = _png_chunk(data, b"sBIT")
        return max(significant) if significant else None
    if image.format == "TIFF":
        top = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE)
        top = max(top) if isinstance(top, tuple) and top else top
        return int(top).bit_length() if isinstance(top, int) and 0 < top < 65536 else None
    return None


def _png_chunk(data: bytes, kind: bytes) -> bytes | None:
    """A chunk before the pixels."""
    at = 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == kind:
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an opened image has colours of 16 bits, of which Pillow reads the upper 8."""
    return image.mode in ("RGB", "RGBA", "RGBX") and any(";16" in str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]


def eight_bits(
    image: Image.Image, data: bytes, name: str, bits: int | None, page: int = 0
) -> Image.Image | None:
    """Its colours, scaled by the range of the largest; None where OpenCV cannot read it either. data: of its file, of
    whose pages it is this one, counted from 0."""
    levels = _levels(np.frombuffer(data, np.uint8), page)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 3 or levels.shape[2] not in (3, 4):
        return None
    colours, alpha = levels[:, :, 2::-1], levels[:, :, 3:]
    scaled = to_8_bits(colours, name, bits)
    if alpha.size:
        scaled = np.concatenate([scaled, to_8_bits(alpha, name, 16)], axis=2)
    eight = Image.fromarray(scaled)
    eight.info = {key: value for key, value in image.info.items() if key in ("icc_profile", "exif")}
    turned = image.format == "TIFF"  # by OpenCV
    eight.getexif()[_ORIENTATION] = 1 if turned else image.getexif().get(_ORIENTATION, 1)
    return eight


def _levels(file: NDArray[np.uint8], page: int) -> NDArray[Any] | None:
    """Of a page, as OpenCV reads it; None where it does not."""
    import cv2

    if not page:
        return cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
    _, pages = cv2.imdecodemulti(file, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    return pages[0] if pages else None
