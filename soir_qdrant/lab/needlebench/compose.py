"""Pastes cut-outs on photographs: pose, light, shadow, occlusion, blur, noise, JPEG. NumPy and OpenCV only.

Every random choice comes from the generator that is handed in, so the same generator gives the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.geometry.masks import extent
from soir_qdrant.types import RGB

RGBA: TypeAlias = NDArray[np.uint8]  # [h, w, 4], straight alpha
Ids: TypeAlias = NDArray[np.uint8]  # [H, W], 0 the ground, i + 1 the i-th object

SMALLEST, LARGEST = 0.005, 0.03  # visible area of an object as a share of the scene
MIN_VISIBLE = 0.6  # an object hidden more than this is no fair answer
MARGIN = 0.02  # objects are laid out a little inside the limits


@dataclass(frozen=True, slots=True)
class Pose:
    """turn: degrees a cut-out may turn in the plane. bend: how far its corners may move, of its side."""

    turn: float = 30.0
    corner_shift: float = 0.08


FLAT = Pose(turn=0.0, corner_shift=0.0)  # for renders, whose pose is the renderer's


def trim(rgba: RGBA) -> RGBA:
    """Cuts away the empty border. rgba: [h, w, 4]; comes back [h', w', 4]."""
    around = extent(rgba[..., 3] > 8)
    if around is None:
        return rgba
    x0, y0, x1, y1 = around
    return np.ascontiguousarray(rgba[y0:y1, x0:x1])


def resize_area(rgba: RGBA, pixels: float, pose: Pose, rng: np.random.Generator) -> RGBA:
    """Turns, bends and scales a cut-out so that about `pixels` of it are opaque. [h, w, 4] -> [h', w', 4]."""
    h, w = rgba.shape[:2]
    opaque = max(1.0, float((rgba[..., 3] > 127).sum()))
    scale = float(np.sqrt(pixels / opaque))
    angle = np.deg2rad(rng.uniform(-pose.turn, pose.turn))
    shrunk = _shrink(rgba, scale)
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
    bent = corners + rng.uniform(-pose.corner_shift, pose.corner_shift, (4, 2)) * (w, h)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    placed = (bent * scale) @ turn.T
    placed -= placed.min(axis=0) - 2
    size = np.ceil(placed.max(axis=0)).astype(int) + 2
    inside = corners * (shrunk.shape[1] / w, shrunk.shape[0] / h)
    matrix = cv2.getPerspectiveTransform(inside.astype(np.float32), placed.astype(np.float32))
    alpha = shrunk[..., 3:].astype(np.float32) / 255
    premultiplied = np.dstack([shrunk[..., :3].astype(np.float32) * alpha, alpha])
    warped = cv2.warpPerspective(premultiplied, matrix, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR)
    rgb = warped[..., :3] / np.maximum(warped[..., 3:], 1e-4)
    out = np.dstack([np.clip(rgb, 0, 255), np.clip(warped[..., 3:], 0, 1) * 255])
    return trim(np.round(out).astype(np.uint8))


def bent_corners(
    width: int, height: int, scale: float, angle: float, corner_shift: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]:
    """Where the corners of a picture come to that is scaled, turned, and bent a little.

    angle: radians. corner_shift: how far each corner may move, of its side. Returns the corners, clockwise from the
    upper left, and their places in the picture that just holds them, float32 [4, 2]; and its (width, height).
    """
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    placed = (corners + rng.uniform(-corner_shift, corner_shift, (4, 2)) * (width, height)) @ turn.T
    placed -= placed.min(0)
    wide, high = (np.ceil(placed.max(0)).astype(int) + 1).tolist()
    return corners, placed.astype(np.float32), (wide, high)


def _shrink(rgba: RGBA, scale: float) -> RGBA:
    """Averages before a strong reduction, which a bilinear warp alone would alias."""
    if scale >= 0.7:
        return rgba
    h, w = rgba.shape[:2]
    size = (max(4, round(w * scale)), max(4, round(h * scale)))
    alpha = rgba[..., 3:].astype(np.float32) / 255
    small = cv2.resize(np.dstack([rgba[..., :3] * alpha, alpha]), size, interpolation=cv2.INTER_AREA)
    rgb = small[..., :3] / np.maximum(small[..., 3:], 1e-4)
    return np.round(np.dstack([np.clip(rgb, 0, 255), small[..., 3:] * 255])).astype(np.uint8)


def relight(rgba: RGBA, rng: np.random.Generator) -> RGBA:
    """Other exposure, gamma, colour of light, and shading across the object. [h, w, 4] -> [h, w, 4]."""
    h, w = rgba.shape[:2]
    x = rgba[..., :3].astype(np.float32) / 255
    x = np.power(x, rng.uniform(0.8, 1.25)) * rng.uniform(0.7, 1.25)
    warm = rng.uniform(-0.09, 0.09)
    x = x * np.array([1 + warm, 1 + rng.uniform(-0.03, 0.03), 1 - warm], np.float32)
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.35)
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    ramp = np.cos(angle) * (xx / max(w, 1) - 0.5) + np.sin(angle) * (yy / max(h, 1) - 0.5)
    x = x * (1 + depth * ramp[..., None])
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * rng.uniform(0.8, 1.15)
    return np.dstack([np.round(np.clip(x, 0, 1) * 255).astype(np.uint8), rgba[..., 3]])


def crop_ground(photo: RGB, size: tuple[int, int], rng: np.random.Generator) -> RGB:
    """A random piece of a photograph, mirrored or not, in another light. size: (width, height)."""
    h, w = photo.shape[:2]
    aspect = size[0] / size[1]
    largest = min(float(w), h * aspect)
    cw = max(largest * rng.uniform(0.55, 1.0), min(largest, 0.35 * size[0]))
    ch = cw / aspect
    x = int(rng.uniform(0, w - cw)) if w > cw else 0
    y = int(rng.uniform(0, h - ch)) if h > ch else 0
    piece = photo[y : y + max(1, int(ch)), x : x + max(1, int(cw))]
    down = piece.shape[1] > size[0]
    out = cv2.resize(piece, size, interpolation=cv2.INTER_AREA if down else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        out = out[:, ::-1]
    light = np.power(out.astype(np.float32) / 255, rng.uniform(0.8, 1.25)) * rng.uniform(0.8, 1.15)
    warm = rng.uniform(-0.06, 0.06)
    light = light * np.array([1 + warm, 1, 1 - warm], np.float32)
    return np.ascontiguousarray(np.round(np.clip(light, 0, 1) * 255).astype(np.uint8))


class Scene:
    """A canvas that knows whose every pixel is. rgb: uint8 [H, W, 3]; ids: uint8 [H, W]."""

    def __init__(self, background: RGB) -> None:
        self.rgb = background.copy()
        self.ids: Ids = np.zeros(background.shape[:2], np.uint8)
        self.full: list[int] = []  # opaque pixels of each object before anything covered it

    def fits(self, rgba: RGBA, x: int, y: int, covering: int | None) -> bool:
        """Whether the object may lie at x, y: inside, free of all but `covering`, which stays visible."""
        h, w = rgba.shape[:2]
        if x < 0 or y < 0 or x + w > self.ids.shape[1] or y + h > self.ids.shape[0]:
            return False
        opaque = rgba[..., 3] > 127
        area = int(opaque.sum())
        total = self.ids.size
        if not SMALLEST * (1 + MARGIN) <= area / total <= LARGEST * (1 - MARGIN):
            return False
        under = np.bincount(self.ids[y : y + h, x : x + w][opaque], minlength=len(self.full) + 1)
        touched = {int(i) for i in np.nonzero(under[1:])[0]}
        if covering is None:
            return not touched
        if touched != {covering}:
            return False
        left = int((self.ids == covering + 1).sum()) - int(under[covering + 1])
        enough = left >= MIN_VISIBLE * self.full[covering] and left >= SMALLEST * (1 + MARGIN) * total
        return enough and int(under[covering + 1]) >= 0.05 * self.full[covering]

    def paste(self, rgba: RGBA, x: int, y: int, rng: np.random.Generator) -> None:
        """Lays the object down with a soft shadow. rgba: [h, w, 4]; its upper left corner comes to x, y."""
        h, w = rgba.shape[:2]
        self._shadow(rgba[..., 3], x, y, rng)
        alpha = cv2.GaussianBlur(rgba[..., 3], (3, 3), 0.6).astype(np.float32)[..., None] / 255
        window = self.rgb[y : y + h, x : x + w]
        mixed = window * (1 - alpha) + rgba[..., :3] * alpha
        self.rgb[y : y + h, x : x + w] = np.round(np.clip(mixed, 0, 255)).astype(np.uint8)
        opaque = rgba[..., 3] > 127
        self.full.append(int(opaque.sum()))
        self.ids[y : y + h, x : x + w][opaque] = len(self.full)

    def _shadow(self, alpha: NDArray[np.uint8], x: int, y: int, rng: np.random.Generator) -> None:
        depth, spread = rng.uniform(0.0, 0.45), rng.uniform(2.0, 7.0)
        dx, dy = rng.uniform(-7, 7), rng.uniform(0, 8)
        pad = 24
        wide = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
        shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        moved = cv2.warpAffine(wide, shift, (wide.shape[1], wide.shape[0]))
        dark = cv2.GaussianBlur(moved, (0, 0), spread).astype(np.float32)[..., None] / 255 * depth
        y0, x0 = max(0, y - pad), max(0, x - pad)
        y1 = min(self.rgb.shape[0], y - pad + wide.shape[0])
        x1 = min(self.rgb.shape[1], x - pad + wide.shape[1])
        dark = dark[y0 - y + pad : y1 - y + pad, x0 - x + pad : x1 - x + pad]
        self.rgb[y0:y1, x0:x1] = np.round(self.rgb[y0:y1, x0:x1] * (1 - dark)).astype(np.uint8)

    def box(self, index: int) -> tuple[int, int, int, int] | None:
        """Tight box of what is visible of object `index`: x0, y0, x1, y1, exclusive at the end."""
        return extent(self.ids == index + 1)


def develop(rgb: RGB, rng: np.random.Generator) -> RGB:
    """What a camera adds: a little blur and noise. [H, W, 3] -> [H, W, 3]."""
    sigma = rng.uniform(0.0, 1.1)
    out = cv2.GaussianBlur(rgb, (0, 0), sigma) if sigma > 0.3 else rgb  # below that it changes nothing
    noise = rng.normal(0, rng.uniform(0.0, 4.0), rgb.shape[:2]).astype(np.float32)[..., None]
    return np.asarray(np.round(np.clip(out + noise, 0, 255)), np.uint8)


def encode_jpeg(rgb: RGB, quality: int) -> bytes:
    """rgb: uint8 [H, W, 3]."""
    done, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    return bytes(data.tobytes())


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """pixels: uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA."""
    swapped = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    done, data = cv2.imencode(".png", np.ascontiguousarray(swapped))
    if not done:
        raise RuntimeError("OpenCV could not encode a PNG")
    return bytes(data.tobytes())
