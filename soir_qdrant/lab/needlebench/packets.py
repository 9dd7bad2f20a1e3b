"""Invented products and emblems: packets, tins, bags and signs, to train on what shops and streets show.

Made from the `dev` photographs and from drawings that no split shows, like `invent.py`'s things.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.lab.needlebench.compose import RGBA
from soir_qdrant.lab.needlebench.invent import FloatImage, Inventor, pixels
from soir_qdrant.types import RGB

SIDE = 320  # pixels of a product's longer side
LETTERS = "ABCDEFGHIJKLMNOPRSTUVWXYZ"
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """What products of one brand share; another hue or word makes a look-alike of it.

    art: [h, w, 3], 0..1, without the words. alpha: uint8 [h, w]. word: printed at `place`, a share of the
    height, in `font`. round: how strongly it is shaded like a tin, 0..1.
    """

    art: FloatImage
    alpha: NDArray[np.uint8]
    word: str
    place: float
    font: int
    ink: NDArray[np.float32]
    round: float


@dataclass(frozen=True, slots=True, eq=False)
class Printer:
    """inventor: gives photographs' pieces and silhouettes. rng: of every choice."""

    inventor: Inventor
    rng: np.random.Generator

    def design(self, *, flat: bool = False) -> Design:
        """A new brand. flat: an emblem or a sign in place of a packet."""
        alpha = self._outline(flat)
        h, w = alpha.shape
        art = self._base(h, w)
        for _ in range(self.rng.integers(1, 4)):
            art = self._decorated(art)
        ink = (
            self.rng.random(3) * 0.3
            if art.mean() > 0.5 and self.rng.random() < 0.8
            else 1 - self.rng.random(3) * 0.3
        )
        font = int(self.rng.choice(FONTS))
        shade = 0.0 if flat else float(self.rng.choice([0.0, 0.25, 0.6], p=[0.45, 0.3, 0.25]))
        return Design(
            art, alpha, self._word(), float(self.rng.uniform(0.15, 0.8)), font, ink.astype(np.float32), shade
        )

    def printed(self, design: Design, *, variant: bool = False) -> RGBA:
        """A product of the brand, uint8 [h, w, 4]. variant: in another hue, with another word."""
        art, word = design.art.copy(), design.word
        if variant:
            word = self._word() if self.rng.random() < 0.5 else word
            hsv = cv2.cvtColor(art, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + self.rng.uniform(40, 320)) % 360
            art = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
        printed = _lettered(art, word, design)
        across = np.abs(np.linspace(-1, 1, art.shape[1], dtype=np.float32)) ** 3
        shaded = printed * (1 - design.round * across)[None, :, None]
        return np.dstack([shaded.round().astype(np.uint8), design.alpha])

    def _outline(self, flat: bool) -> NDArray[np.uint8]:
        """Whose packet: a box, one with round corners, an ellipse, or a drawing's silhouette."""
        rng = self.rng
        if rng.random() < (0.2 if flat else 0.25):
            silhouette = self.inventor.outline()[..., 3]
            scale = SIDE / max(silhouette.shape)
            return np.asarray(cv2.resize(silhouette, None, fx=scale, fy=scale), np.uint8)
        aspect = float(np.exp(rng.uniform(np.log(0.3), np.log(1.6 if not flat else 4.0))))
        h, w = (SIDE, max(40, int(SIDE * aspect))) if aspect < 1 else (max(40, int(SIDE / aspect)), SIDE)
        alpha = np.zeros((h, w), np.uint8)
        if flat and rng.random() < 0.3:
            cv2.ellipse(alpha, (w // 2, h // 2), (w // 2 - 1, h // 2 - 1), 0, 0, 360, 255, -1)
            return alpha
        corner = int(rng.choice([1, 1, 0.12 * min(h, w), 0.35 * min(h, w)]))
        return rounded(alpha, corner)

    def _base(self, h: int, w: int) -> FloatImage:
        if self.rng.random() < 0.3:
            return self.inventor.filling(h, w)
        colour = self.rng.random(3) ** self.rng.uniform(0.4, 1.5)
        return np.asarray(np.broadcast_to(colour, (h, w, 3)).copy(), np.float32)

    def _decorated(self, art: FloatImage) -> FloatImage:
        """With a band, a disc, a picture or a small drawing."""
        rng, (h, w) = self.rng, art.shape[:2]
        kind = rng.integers(4)
        if kind == 0:
            y = int(rng.integers(h))
            art[y : y + int(rng.integers(max(h // 12, 1), max(h // 3, 2)))] = rng.random(3)
        elif kind == 1:
            middle = (int(rng.integers(w)), int(rng.integers(h)))
            radius = int(rng.integers(min(h, w) // 8 + 1, min(h, w) // 2 + 2))
            cv2.circle(art, middle, radius, rng.random(3).tolist(), -1)
        elif kind == 2:
            y, x = int(rng.integers(h // 2)), int(rng.integers(w // 2))
            high, wide = int(rng.integers(8, h - y)), int(rng.integers(8, w - x))
            art[y : y + high, x : x + wide] = self.inventor.filling(high, wide)
        else:
            drawing = self.inventor.outline()
            scale = rng.uniform(0.3, 0.9) * min(h / drawing.shape[0], w / drawing.shape[1])
            small = cv2.resize(drawing, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            y, x = (int(rng.integers(a - b + 1)) for a, b in zip((h, w), small.shape, strict=False))
            share = small[..., 3:].astype(np.float32) / 255
            place = art[y : y + small.shape[0], x : x + small.shape[1]]
            place[...] = place * (1 - share) + small[..., :3].astype(np.float32) / 255 * share
        return art

    def _word(self) -> str:
        letters = self.rng.choice(list(LETTERS), int(self.rng.integers(2, 9)))
        word = "".join(letters)
        return word if self.rng.random() < 0.5 else word.capitalize()


def rounded(canvas: NDArray[np.uint8], corner: int) -> NDArray[np.uint8]:
    """An empty canvas, [h, w], filled with a rectangle whose corners have this radius, in pixels."""
    h, w = canvas.shape
    cv2.rectangle(canvas, (corner, corner), (w - 1 - corner, h - 1 - corner), 255, -1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * corner + 1,) * 2)
    return np.asarray(cv2.dilate(canvas, disc), np.uint8)


def _lettered(art: FloatImage, word: str, design: Design) -> RGB:
    """With the word, as wide as the art allows. uint8 [h, w, 3]."""
    printed, (h, w) = pixels(art), art.shape[:2]
    (wide, high), _ = cv2.getTextSize(word, design.font, 1.0, 2)
    scale = min(0.9 * w / wide, 0.3 * h / high)
    at = (int((w - wide * scale) / 2), int(design.place * h + high * scale / 2))
    ink, thick = (255 * design.ink).tolist(), max(1, round(scale * 2.2))
    return np.asarray(cv2.putText(printed, word, at, design.font, scale, ink, thick, cv2.LINE_AA), np.uint8)
