"""Things that nobody has seen: the silhouettes of drawings, filled with pieces of photographs.

A detector that learns from a few hundred things learns those things. From these it can learn nothing but what
sets an object off from its ground. Made from the `dev` photographs and from drawings that no split shows.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.needlebench.compose import RGBA, encode_jpeg, encode_png, trim
from soir_qdrant.lab.needlebench.decode import CUT_SIDE, read_rgba
from soir_qdrant.lab.needlebench.sources import Sources, locate
from soir_qdrant.models.cache import cache_dir
from soir_qdrant.types import RGB

VERSION = 1  # of what is drawn: raise it when the same seed gives other pictures
THINGS, ALIKE, GROUNDS = 300, 2, 150  # ALIKE: things of one silhouette
FILLED = (0.25, 0.98)  # share of its box that a silhouette covers
MIN_SIDE = 60
GROUND = (1200, 900)  # width, height
FloatImage = NDArray[np.float32]  # [h, w, 3], 0..1


def invented(seed: int, *, fetch: bool = False) -> Sources:
    """Sources of invented things and grounds, another set for each seed; drawn once, kept in the cache."""
    home = cache_dir() / "sources" / f"invented-{VERSION}-{seed}"
    if not home.is_dir():
        part = home.with_name(f".{home.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        with warnings.catch_warnings():  # some of the drawings are huge, and read as they come
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            draw(part, Sources.full(fetch=fetch), seed)
        part.rename(home)
    folders = Sources.folders(home / "things", home / "grounds")
    return Sources(home.name, folders.dev, folders.test)


def draw(folder: Path, sources: Sources, seed: int, *, things: int = THINGS, grounds: int = GROUNDS) -> None:
    """Write `things/` (PNG with alpha; those in one folder share a silhouette) and `grounds/` (JPEG)."""
    inventor = Inventor.of(sources, np.random.default_rng((seed, 0)))
    for i in range(0, things, ALIKE):
        family = folder / "things" / f"{i // ALIKE:04d}"
        family.mkdir(parents=True)
        outline = inventor.outline()
        for j in range(min(ALIKE, things - i)):
            (family / f"{j}.png").write_bytes(encode_png(inventor.thing(outline)))
    (folder / "grounds").mkdir(parents=True)
    for i in range(grounds):
        (folder / "grounds" / f"{i:04d}.jpg").write_bytes(encode_jpeg(inventor.background(), 92))


def unused(sources: Sources) -> list[Path]:
    """Drawings and renders that neither split shows."""
    shown = {cutout.path for split in (sources.dev, sources.test) for cutout in split.cutouts}
    files = [*locate("emoji").glob("*.webp"), *locate("clipart").rglob("*.png")]
    return [file for file in sorted(files) if file not in shown]


@dataclass(frozen=True, slots=True, eq=False)
class Inventor:
    """drawings: files whose silhouettes are used; photos: what they are filled with."""

    drawings: Sequence[Path]
    photos: Sequence[RGB]
    rng: np.random.Generator

    @classmethod
    def of(cls, sources: Sources, rng: np.random.Generator) -> Inventor:
        """Of their `dev` photographs and the drawings that no split shows."""
        return cls(unused(sources), [background.read() for background in sources.dev.grounds], rng)

    def outline(self) -> RGBA:
        """A drawing in one piece, that is neither a line nor its whole box."""
        for _ in range(1000):
            file = self.drawings[int(self.rng.integers(len(self.drawings)))]
            try:
                drawing = read_rgba(file, CUT_SIDE)
            except DatasetError:  # of thousands of drawings, some are broken
                continue
            h, w = drawing.shape[:2]
            inside = (drawing[..., 3] > 127).astype(np.uint8)
            if min(h, w) < max(MIN_SIDE, max(h, w) / 3) or not FILLED[0] < inside.mean() < FILLED[1]:
                continue
            largest = cv2.connectedComponentsWithStats(inside)[2][1:, cv2.CC_STAT_AREA].max()
            if largest > 0.9 * inside.sum():
                return drawing
        raise DatasetError("no drawing of a thousand has a silhouette that can be filled")

    def thing(self, outline: RGBA) -> RGBA:
        """The outline in other colours: parts, the light and dark of what was drawn, edges, a gleam."""
        rng, (h, w), alpha = self.rng, outline.shape[:2], outline[..., 3]
        x = self.filling(h, w)
        for _ in range(rng.integers(1, 4) if rng.random() < 0.6 else 0):
            part = self._part(h, w)[..., None]
            x = x * (1 - part) + self.filling(h, w) * part
        if rng.random() < 0.4:
            grey = cv2.cvtColor(np.ascontiguousarray(outline[..., :3]), cv2.COLOR_RGB2GRAY)
            x = x * (0.4 + grey.astype(np.float32)[..., None] / 255)
        rim = rng.uniform(0.05, 0.3) * max(h, w)
        deep = cv2.distanceTransform((alpha > 127).astype(np.uint8), cv2.DIST_L2, 5) / rim
        x = x * (1 - rng.uniform(0, 0.5) * (1 - np.minimum(deep, 1)) ** 2)[..., None]
        if rng.random() < 0.5:
            yy, xx = np.mgrid[0:h, 0:w]
            distance = (yy - rng.uniform(0, h)) ** 2 + (xx - rng.uniform(0, w)) ** 2
            wide = rng.uniform(0.15, 0.6) * max(h, w)
            x = x + rng.uniform(0, 0.4) * np.exp(-distance / (2 * wide**2))[..., None]
        return trim(np.dstack([pixels(x), alpha]))

    def background(self) -> RGB:
        """A piece of a photograph in other colours; a third of them run into another one."""
        x = self._scenery()
        if self.rng.random() < 0.35:
            cells = self.rng.random(self.rng.integers(2, 6, 2)).astype(np.float32)
            smooth = cv2.GaussianBlur(cv2.resize(cells, GROUND, interpolation=cv2.INTER_CUBIC), (0, 0), 3)
            share = 1 / (1 + np.exp((0.5 - smooth) * self.rng.uniform(4, 60)))[..., None]
            x = x * share + self._scenery() * (1 - share)
        return pixels(x)

    def _part(self, h: int, w: int) -> NDArray[np.float32]:
        """Where a smaller silhouette lies in an [h, w] picture, 0..1."""
        shape = self.outline()[..., 3]
        scale = self.rng.uniform(0.3, 0.8) * max(h, w) / max(shape.shape)
        shape = np.asarray(cv2.resize(shape, None, fx=scale, fy=scale)[:h, :w])
        y, x = (self.rng.integers(a - b + 1) for a, b in zip((h, w), shape.shape, strict=True))
        canvas = np.zeros((h, w), np.float32)
        canvas[y : y + shape.shape[0], x : x + shape.shape[1]] = shape / np.float32(255)
        return canvas

    def filling(self, h: int, w: int) -> FloatImage:
        """One colour that changes a little across, or a piece of a photograph."""
        if self.rng.random() < 0.25:
            colour, change, angle = self.rng.random(3), self.rng.normal(0, 0.12, 3), self.rng.uniform(0, 6.3)
            yy, xx = np.mgrid[0:h, 0:w] / max(h, w)
            ramp = (np.cos(angle) * xx + np.sin(angle) * yy)[..., None]
            return np.asarray(np.clip(colour + change * ramp, 0, 1), np.float32)
        return self._piece((w, h), self.rng.uniform(0.08, 0.5))

    def _scenery(self) -> FloatImage:
        x = self._piece(GROUND, self.rng.uniform(0.3, 1))
        if self.rng.random() < 0.2:
            x = x[::-1]
        if self.rng.random() < 0.15:
            x = np.asarray(cv2.GaussianBlur(x, (0, 0), self.rng.uniform(2, 12)), np.float32)
        return x

    def _piece(self, size: tuple[int, int], share: float) -> FloatImage:
        """Of a photograph, about `share` of its shorter side, at `size` (width, height), in other colours."""
        photo = self.photos[int(self.rng.integers(len(self.photos)))]
        h, w = photo.shape[:2]
        scale = min(w / size[0], h / size[1]) * share
        cw, ch = min(w, max(8, int(size[0] * scale))), min(h, max(8, int(size[1] * scale)))
        y, x = self.rng.integers(h - ch + 1), self.rng.integers(w - cw + 1)
        way = cv2.INTER_AREA if cw > size[0] else cv2.INTER_CUBIC
        piece = cv2.resize(photo[y : y + ch, x : x + cw], size, interpolation=way)
        return self._recoloured(piece.astype(np.float32) / 255)

    def _recoloured(self, x: FloatImage) -> FloatImage:
        rng = self.rng
        if rng.random() < 0.5:
            hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 360)) % 360
            hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.3, 1.8), 0, 1)
            x = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
        changed = (x - 0.5) * rng.uniform(0.6, 1.5) + 0.5 + rng.uniform(-0.15, 0.15)
        return np.asarray(np.clip(changed, 0, 1), np.float32)


def pixels(x: NDArray[np.floating]) -> RGB:
    """0..1 as uint8 0..255, what lies outside cut off. [..., 3]."""
    return np.asarray(np.round(np.clip(x, 0, 1) * 255), np.uint8)
