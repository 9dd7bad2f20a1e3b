"""Words as makers and shops letter them: in a font, spaced, stretched, slanted, some of them hollow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from soir_qdrant.errors import DatasetError
from soir_qdrant.geometry.masks import extent
from soir_qdrant.lab.needlebench.packets import LETTERS

HEIGHT = 120  # pixels of a letter
LENGTH = (2, 11)  # letters of a word, the second exclusive
TWO_LINES = 0.12  # share of the words that have two lines
CAPITALS, ONE_CAPITAL = 0.6, 0.7  # share in capitals; of the others, share with one
SPACED = 0.4  # share whose letters stand apart
SPACES, CLOSE = (0.1, 0.7), (-0.03, 0.06)  # between those, and between others, in letters' heights
BOLD = 0.4  # share drawn with a wider pen
HOLLOW = 0.12  # share of which only the outline is drawn
STRETCHED = 0.25  # standard deviation of how much wider a word is, in natural logarithms
SLANTED = 0.2
SUFFIXES = (".ttf", ".otf")

Shape = NDArray[np.uint8]  # [h, w], 255 inside


def fonts_in(folder: Path) -> list[Path]:
    """The TrueType and OpenType fonts of a folder, in order. Raises DatasetError where it has none."""
    folder = folder.expanduser()
    files = [file for file in sorted(folder.glob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DatasetError(f"{folder}: no fonts here (.ttf, .otf)")
    return files


def word(rng: np.random.Generator, fonts: Sequence[Path]) -> Shape:
    """A word that means nothing. fonts: files, one of which is used."""
    font = _font(fonts[int(rng.integers(len(fonts)))])
    shape = _below([_line(_letters(rng), font, rng) for _ in range(1 + (rng.random() < TWO_LINES))], rng)
    if rng.random() < HOLLOW:
        shape = np.asarray(shape - cv2.erode(shape, np.ones((int(rng.integers(5, 11)),) * 2)), np.uint8)
    stretch = float(np.exp(rng.normal(0, STRETCHED)))
    slant = float(rng.uniform(-0.1, 0.35)) if rng.random() < SLANTED else 0.0
    h, w = shape.shape
    matrix = np.array([[stretch, -slant, max(slant, 0) * h], [0, 1, 0]], np.float64)
    return np.asarray(cv2.warpAffine(shape, matrix, (round(w * stretch + abs(slant) * h) + 1, h)), np.uint8)


def _letters(rng: np.random.Generator) -> str:
    letters = "".join(rng.choice(list(LETTERS), int(rng.integers(*LENGTH))))
    if rng.random() < CAPITALS:
        return letters
    return letters.capitalize() if rng.random() < ONE_CAPITAL else letters.lower()


def _line(letters: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> Shape:
    """Letters side by side, without an empty border."""
    space = float(rng.uniform(*(SPACES if rng.random() < SPACED else CLOSE))) * HEIGHT
    pen = int(rng.integers(0, 5)) if rng.random() < BOLD else 0
    widths = [font.getlength(letter) + space for letter in letters]
    canvas = Image.new("L", (int(sum(widths)) + 2 * HEIGHT, 3 * HEIGHT))
    draw, x = ImageDraw.Draw(canvas), HEIGHT / 2
    for letter, width in zip(letters, widths, strict=True):
        draw.text((x, HEIGHT), letter, fill=255, font=font, stroke_width=pen)
        x += width
    pixels = np.asarray(canvas, np.uint8)
    x0, y0, x1, y1 = extent(pixels > 127) or (0, 0, HEIGHT, HEIGHT)
    return pixels[y0:y1, x0:x1]


def _below(lines: list[Shape], rng: np.random.Generator) -> Shape:
    """Lines under each other, each in the middle; half of the shorter ones as wide as the longest."""
    wide, rows = max(line.shape[1] for line in lines), []
    for line in lines:
        scale = wide / line.shape[1]
        if scale > 1 and rng.random() < 0.5 and scale < 2.5:
            line = np.asarray(cv2.resize(line, None, fx=scale, fy=scale), np.uint8)
        left = (wide - line.shape[1]) // 2
        rows.append(np.pad(line, ((0, HEIGHT // 10), (left, wide - left - line.shape[1]))))
    return np.vstack(rows)


@lru_cache(maxsize=512)
def _font(file: Path) -> ImageFont.FreeTypeFont:
    try:
        font = ImageFont.truetype(str(file), HEIGHT)
    except OSError as error:
        raise DatasetError(f"{file}: not a font that can be read ({error})") from error
    if font.getmask("A").getbbox() is None or font.getmask("z").getbbox() is None:
        raise DatasetError(f"{file}: this font draws no Latin letters: take it out of the folder")
    return font
