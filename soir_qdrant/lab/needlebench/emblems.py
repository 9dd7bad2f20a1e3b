"""Invented emblems, to be printed on things: silhouettes, words, strokes, rings, stripes and stars in flat colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.geometry.masks import extent
from soir_qdrant.lab.needlebench import lettering
from soir_qdrant.lab.needlebench.invent import Inventor
from soir_qdrant.lab.needlebench.lettering import Shape
from soir_qdrant.lab.needlebench.packets import FONTS, LETTERS, rounded

SIDE = 240  # pixels of an emblem's longer side
WORDS = 0.35  # share of the emblems that are a word alone
WORDS_OF_FONTS = 0.6  # the same where there are fonts
LETTERED = 0.9  # share of the words that are then in one of them
BELOW = 0.25  # share that have a word below them
PATCHES = 0.3  # share that are on a patch of another colour
INKS = 0.25  # share whose lower part has another colour


@dataclass(frozen=True, slots=True, eq=False)
class Stamp:
    """ink: float32 [h, w, 3], 0..1; share: float32 [h, w], 0..1, how much of it there is."""

    ink: NDArray[np.float32]
    share: NDArray[np.float32]


def stamp(inventor: Inventor, rng: np.random.Generator, fonts: Sequence[Path] = ()) -> Stamp:
    """A new emblem. inventor: gives the silhouettes of drawings. fonts: files, for its words."""
    words = WORDS_OF_FONTS if fonts else WORDS
    shape = _word(rng, fonts) if rng.random() < words else _figure(inventor, rng)
    if rng.random() < BELOW:
        shape = _above(shape, _word(rng, fonts), int(rng.integers(4, 24)))
    colour, patch = _two_colours(rng)
    ink = np.broadcast_to(colour, (*shape.shape, 3)).astype(np.float32)
    if rng.random() < INKS:
        ink = ink.copy()
        cut = int(rng.uniform(0.25, 0.75) * shape.shape[0])
        ink[cut:] = _two_colours(rng)[0]
    share = shape.astype(np.float32) / np.float32(255)
    if rng.random() >= PATCHES:
        return Stamp(ink, share)
    pad = int(rng.uniform(0.08, 0.3) * min(shape.shape))
    inside = np.pad(share, pad)[..., None]
    coloured = np.pad(ink, ((pad, pad), (pad, pad), (0, 0))) * inside + patch * (1 - inside)
    return Stamp(
        np.asarray(coloured, np.float32), _patch(inside.shape[:2], rng).astype(np.float32) / np.float32(255)
    )


def _two_colours(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One dark, one light: an emblem is to be seen on its patch."""
    dark, light = rng.random(3) * rng.uniform(0.05, 0.6), 1 - rng.random(3) * rng.uniform(0.02, 0.5)
    first, second = (dark, light) if rng.random() < 0.5 else (light, dark)
    return first.astype(np.float32), second.astype(np.float32)


def _figure(inventor: Inventor, rng: np.random.Generator) -> Shape:
    figures: tuple[Callable[[np.random.Generator], Shape], ...] = (
        _ring,
        _stripes,
        _star,
        _swoosh,
        _interlocked,
        _stroke,
        _stroke,  # twice as often as each of the others
    )
    if rng.random() < 0.4:
        silhouette = inventor.outline()[..., 3]
        scale = SIDE / max(silhouette.shape)
        return np.asarray(
            cv2.resize(silhouette, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    return figures[int(rng.integers(len(figures)))](rng)


def _blank(aspect: float) -> Shape:
    """An empty canvas, `aspect` times as wide as high."""
    return np.zeros((round(SIDE / max(aspect, 1)), round(SIDE * min(aspect, 1))), np.uint8)


def _word(rng: np.random.Generator, fonts: Sequence[Path]) -> Shape:
    if fonts and rng.random() < LETTERED:
        return _tight(lettering.word(rng, fonts))
    letters = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 10))))
    word = letters if rng.random() < 0.6 else letters.capitalize()
    font, thick = int(rng.choice(FONTS)), int(rng.integers(3, 16))
    (wide, high), base = cv2.getTextSize(word, font, 3.0, thick)
    canvas = np.zeros((high + base + 2 * thick, wide + 2 * thick), np.uint8)
    cv2.putText(canvas, word, (thick, high + thick), font, 3.0, 255, thick, cv2.LINE_AA)
    return _tight(canvas)


def _ring(rng: np.random.Generator) -> Shape:
    canvas = _blank(float(rng.uniform(0.8, 1.8)))
    h, w = canvas.shape
    thick = int(rng.uniform(0.05, 0.3) * h)
    cv2.ellipse(
        canvas, (w // 2, h // 2), (w // 2 - thick, h // 2 - thick), 0, 0, 360, 255, max(thick, 2), cv2.LINE_AA
    )
    if rng.random() < 0.5:
        cv2.circle(canvas, (w // 2, h // 2), int(rng.uniform(0.08, 0.25) * h), 255, -1, cv2.LINE_AA)
    return _tight(canvas)


def _stripes(rng: np.random.Generator) -> Shape:
    """Bars side by side, slanted; they may grow from one to the next."""
    canvas, count = _blank(float(rng.uniform(0.8, 2.0))), int(rng.integers(2, 5))
    h, w = canvas.shape
    wide, slant, grow = w / (1.7 * count + 0.3), rng.uniform(-0.5, 0.5) * w / count, rng.random() < 0.5
    for i in range(count):
        left = (0.3 + 1.7 * i) * wide
        top = h * (1 - (i + 1) / count) * 0.8 if grow else 0.0
        corners = [(left + slant, top), (left + wide + slant, top), (left + wide, h), (left, h)]
        cv2.fillPoly(canvas, [np.array(corners, np.int32)], 255, cv2.LINE_AA)
    return _tight(canvas)


def _star(rng: np.random.Generator) -> Shape:
    """A polygon, a star or a burst, some of them hollow."""
    canvas, points = _blank(1.0), int(rng.integers(3, 11))
    inner = 1.0 if points < 7 and rng.random() < 0.5 else float(rng.uniform(0.35, 0.8))
    angles = np.arange(2 * points) * np.pi / points + rng.choice([0, np.pi / points, rng.uniform(0, 6.3)])
    radius = np.where(np.arange(2 * points) % 2, inner * np.cos(np.pi / points) if inner == 1 else inner, 1.0)
    spots = np.stack([np.sin(angles), -np.cos(angles)], 1) * radius[:, None]
    cv2.fillPoly(canvas, [np.int32(SIDE / 2 * (1 + 0.98 * spots))], 255, cv2.LINE_AA)
    if rng.random() < 0.35:
        cv2.fillPoly(canvas, [np.int32(SIDE / 2 * (1 + rng.uniform(0.4, 0.75) * spots))], 0, cv2.LINE_AA)
    return _tight(canvas)


def _swoosh(rng: np.random.Generator) -> Shape:
    """A crescent: an ellipse less another one that is shifted."""
    canvas = _blank(float(rng.uniform(1.2, 3.0)))
    h, w = canvas.shape
    cv2.ellipse(canvas, (w // 2, h // 2), (w // 2 - 2, h // 2 - 2), 0, 0, 360, 255, -1, cv2.LINE_AA)
    dx, dy = int(rng.uniform(-0.35, 0.35) * w), -int(rng.uniform(0.15, 0.5) * h)
    axes = (int(w * rng.uniform(0.4, 0.55)), int(h * rng.uniform(0.4, 0.55)))
    cv2.ellipse(canvas, (w // 2 + dx, h // 2 + dy), axes, 0, 0, 360, 0, -1, cv2.LINE_AA)
    return _tight(canvas)


def _stroke(rng: np.random.Generator) -> Shape:
    """A curved stroke of a pen, thin at its ends or at one of them."""
    canvas = _blank(float(rng.uniform(1.2, 3.5)))
    h, w = canvas.shape
    x = np.sort(rng.uniform(0, 1, 4)) if rng.random() < 0.6 else rng.uniform(0, 1, 4)
    spots, t = np.stack([x, rng.uniform(0, 1, 4)], 1), np.linspace(0, 1, 60)[:, None]
    weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)  # a cubic Bezier curve
    path = sum(weight * spot for weight, spot in zip(weights, spots, strict=True)) * (w - 1, h - 1)
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    across = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    peak, thick = float(rng.uniform(0.1, 0.9)), float(rng.uniform(0.05, 0.22)) * h
    wide = np.where(t < peak, t / peak, (1 - t) / (1 - peak)) ** rng.uniform(0.4, 1.2) * thick + 1.5
    outline = np.concatenate([path + across * wide, (path - across * wide)[::-1]])
    outline = (outline - outline.min(0)) / np.maximum(np.ptp(outline, axis=0), 1) * (w - 1, h - 1)
    cv2.fillPoly(canvas, [np.int32(np.round(outline))], 255, cv2.LINE_AA)
    return _tight(canvas)


def _interlocked(rng: np.random.Generator) -> Shape:
    """Two or three arcs or rings that overlap."""
    canvas, count = _blank(float(rng.uniform(1.2, 2.2))), int(rng.integers(2, 4))
    h, w = canvas.shape
    radius, thick = int(0.4 * h), int(rng.uniform(0.06, 0.2) * h)
    gap, turn = int(rng.uniform(0, 140)), rng.random() < 0.5
    for i in range(count):
        middle = (int(radius + thick + i * (w - 2 * (radius + thick)) / max(count - 1, 1)), h // 2)
        start = 180 * (i % 2) if turn else 0
        cv2.ellipse(
            canvas, middle, (radius, radius), start, gap / 2, 360 - gap / 2, 255, max(thick, 3), cv2.LINE_AA
        )
    return _tight(canvas)


def _patch(shape: tuple[int, ...], rng: np.random.Generator) -> Shape:
    """What an emblem may stand on: a rectangle, one with round corners, or an ellipse."""
    h, w = shape[0], shape[1]
    canvas = np.zeros((h, w), np.uint8)
    if rng.random() < 0.3:
        cv2.ellipse(canvas, (w // 2, h // 2), (w // 2, h // 2), 0, 0, 360, 255, -1, cv2.LINE_AA)
        return canvas
    corner = int(rng.choice([0, 0, 0.15, 0.4]) * min(h, w))
    return rounded(canvas, corner)


def _above(upper: Shape, lower: Shape, gap: int) -> Shape:
    """One over the other, as wide as the wider one."""
    scale = upper.shape[1] / lower.shape[1]
    word = cv2.resize(lower, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    wide = max(upper.shape[1], word.shape[1])
    rows = [np.pad(part, ((0, 0), (0, wide - part.shape[1]))) for part in (upper, word)]
    return np.asarray(np.vstack([rows[0], np.zeros((gap, wide), np.uint8), rows[1]]), np.uint8)


def _tight(shape: Shape) -> Shape:
    """Without its empty border, its longer side SIDE."""
    x0, y0, x1, y1 = extent(shape > 127) or (0, 0, 0, 0)
    inside = shape[y0:y1, x0:x1]
    scale = SIDE / max(inside.shape)
    return np.asarray(cv2.resize(inside, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
