"""Opens the containers that pictures come in, and cuts objects out of photographs. NumPy, OpenCV, Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.needlebench.compose import RGBA, trim
from soir_qdrant.types import RGB

CUT_SIDE = 320  # longest side at which a photograph is cut; objects are pasted smaller than that
_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_NOTHING = "no object could be cut out of the photograph: it has no clear foreground"


class QtResource:
    """A Qt resource file (.rcc), read by name. Entries packed with zstd are refused: pictures never are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        if self.data[:4] != b"qres":
            raise DatasetError(f"{path}: not a Qt resource file")
        version, self._tree, self._data, self._names = struct.unpack(">IIII", self.data[4:20])
        self._node = 14 if version < 2 else 22
        self.entries: dict[str, tuple[int, int]] = {}
        self._walk(0, "")

    def _walk(self, index: int, prefix: str) -> None:
        at = self._tree + index * self._node
        name_at, flags = struct.unpack_from(">IH", self.data, at)
        name = prefix
        if index:
            start = self._names + name_at
            length = struct.unpack_from(">H", self.data, start)[0]
            part = self.data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")
            name = f"{prefix}/{part}" if prefix else part
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", self.data, at + 6)
            for child in range(first, first + count):
                self._walk(child, name)
            return
        self.entries[name] = (flags, self._data + struct.unpack_from(">I", self.data, at + 10)[0])

    def read(self, name: str) -> bytes:
        if name not in self.entries:
            raise DatasetError(f"{self.path}: holds no {name!r}")
        flags, at = self.entries[name]
        size = struct.unpack_from(">I", self.data, at)[0]
        blob = self.data[at + 4 : at + 4 + size]
        if flags & _ZSTD:
            raise DatasetError(f"{self.path}: {name!r} is packed with zstd, which is not read here")
        return zlib.decompress(blob[4:]) if flags & _ZLIB else blob


@lru_cache(maxsize=4)
def open_rcc(path: Path) -> QtResource:
    return QtResource(path)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or of an entry inside a .rcc: PATH/TO/x.rcc/inner/name.webp."""
    for parent in path.parents:
        if parent.suffix == ".rcc":
            return open_rcc(parent).read(path.relative_to(parent).as_posix())
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: picture of a source is not readable ({error})") from error


def read_rgba(path: Path, longest: int | None = None) -> RGBA:
    """uint8 [h, w, 4], trimmed to what is opaque, its longest side at most `longest`."""
    image = _open(path).convert("RGBA")
    if longest is not None:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return trim(np.array(image))


def has_alpha(path: Path) -> bool:
    """Whether some of the picture is transparent."""
    image = _open(path)
    return image.has_transparency_data and int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 128


def read_rgb(path: Path, longest: int | None = None) -> RGB:
    """uint8 [h, w, 3], its longest side at most `longest`."""
    image = _open(path).convert("RGB")
    if longest is not None:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.array(image)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(read_bytes(path)))
        image.load()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: not readable as an image ({error})") from error
    return image


def cut_out(photo: RGB) -> RGBA:
    """Cuts the one thing in the middle out of a photograph (GrabCut from the border inwards).

    photo: uint8 [H, W, 3]. Comes back as uint8 [h, w, 4], the largest connected piece, trimmed.
    """
    height, width = photo.shape[:2]
    marks = np.full((height, width), cv2.GC_PR_FGD, np.uint8)
    rim = max(2, int(0.03 * min(height, width)))
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB).astype(np.float32)
    sides = (lab[:rim], lab[-rim:], lab[:, :rim], lab[:, -rim:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    middle = np.median(border, axis=0)
    if float(np.median(np.abs(border - middle).sum(axis=1))) < 14:  # a plain ground
        marks[np.linalg.norm(lab - middle, axis=2) < 14] = cv2.GC_PR_BGD
    marks[:rim], marks[-rim:], marks[:, :rim], marks[:, -rim:] = (cv2.GC_BGD,) * 4
    if not (marks == cv2.GC_PR_FGD).any():
        raise DatasetError(_NOTHING)
    cv2.setRNGSeed(7)
    bgr = np.ascontiguousarray(photo[..., ::-1])
    cv2.grabCut(bgr, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    inside = ((marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)).astype(np.uint8)
    inside = cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    inside = cv2.morphologyEx(inside, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside)
    if count < 2:
        raise DatasetError(_NOTHING)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    alpha = cv2.GaussianBlur((labels == largest).astype(np.uint8) * 255, (3, 3), 0)
    return trim(np.dstack([photo, alpha]))
