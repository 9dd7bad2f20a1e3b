"""A labelled folder out of photographs: each thing comes again as another camera might have taken it.

Photographs rarely show the same thing twice. Here every chosen thing is asked for by pictures of it in other
light, from a little aside, at another sharpness: cut out, as a shop's picture on white, pasted on another
photograph, or with its own surroundings in a box that is off. To tune the encoder and its projection on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track as progress_bar

from soir_qdrant import images as image_io
from soir_qdrant.geometry.masks import extent
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.needlebench.compose import RGBA, bent_corners, crop_ground, encode_jpeg, encode_png
from soir_qdrant.lab.needlebench.folder import complete, labels_digest, prepare_beside
from soir_qdrant.types import RGB, Box, Mask

VERSION = 1  # of the recipe: raise it when the same arguments give other pixels
MAX_THINGS = 5  # of a photograph
VIEWS = 2  # pictures of each
MIN_SIDE = 36  # pixels of a thing
MAX_SHARE = 0.6  # of its photograph
AROUND = 0.4  # surroundings that are warped along, as a share of the longer side
BOX_OFF = 0.1  # standard deviation of a drawn box's sides, as a share of them


def generate(
    out: Path, bench: Bench, *, seed: int = 0, unknown: tuple[str, ...] = ("person",), progress: bool = True
) -> Path:
    """Write the folder in NeedleBench's format; one that is complete with the same arguments stays as it is.

    Args:
        out: the folder.
        bench: photographs with boxes, and masks where there are any.
        seed: of every choice.
        unknown: kinds that are left out.

    Raises:
        DatasetError: something else is in the folder, or it is that of the photographs.
    """
    out = out.expanduser()
    recipe = {"retaken": VERSION, "labels": labels_digest(bench), "seed": seed, "unknown": list(unknown)}
    if not prepare_beside(out, bench, recipe):
        return out
    gallery: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    for i, entry in enumerate(progress_bar(bench.gallery, "retaken", disable=not progress)):
        rng = np.random.default_rng((seed, i))
        image = image_io.load(entry.file).rgb
        chosen, masks = _chosen(entry, image, unknown, rng)
        if not chosen:
            continue
        other = image_io.load(bench.gallery[int(rng.integers(len(bench.gallery)))].file).rgb
        objects = [{"instance": f"{i:05d}#{j}", "box": list(entry.objects[j].box)} for j in chosen]
        gallery.append(_written(out, i, entry, image, objects, masks))
        for j, item, mask in zip(chosen, objects, masks, strict=True):
            for _ in range(VIEWS):
                file = f"queries/{len(queries):05d}.png"
                view = retaken(image, entry.objects[j].box, mask, other, rng)
                (out / file).write_bytes(encode_png(view))
                queries.append({"file": file, "instance": item["instance"]})
    return complete(out, gallery, queries)


def retaken(
    image: RGB, box: Box, mask: Mask | None, other: RGB, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A thing of a photograph as another camera might have taken it.

    Args:
        image: uint8 [H, W, 3].
        box: the thing's, in its pixels.
        mask: bool [H, W], its pixels, where they are known.
        other: a photograph to lay it on.
        rng: of every choice.

    Returns:
        uint8 [h, w, 4] where it is cut out, else [h, w, 3].
    """
    part, place = _warped(image, box, mask, rng)
    part = np.dstack([camera(part[..., :3], rng), part[..., 3]])
    if mask is None or rng.random() < 0.2:
        return _drawn(part[..., :3], place, rng)
    x0, y0, x1, y1 = place
    framed = np.pad(part[y0:y1, x0:x1], [(int(rng.integers(2, 30)),) * 2] * 2 + [(0, 0)])
    kind = rng.random()
    if kind < 0.35:
        return framed
    share = framed[..., 3:].astype(np.float32) / 255
    background = np.full_like(framed[..., :3], 255)
    if kind > 0.7:
        background = crop_ground(other, (framed.shape[1], framed.shape[0]), rng)
    return np.asarray(np.round(framed[..., :3] * share + background * (1 - share)), np.uint8)


def camera(rgb: RGB, rng: np.random.Generator) -> RGB:
    """Another exposure, white balance, contrast and saturation, glare, blur, size, noise and JPEG.
    [H, W, 3] -> [H, W, 3]."""
    x: NDArray[np.floating] = rgb.astype(np.float32) / 255
    x = np.power(x, rng.uniform(0.65, 1.5)) * rng.uniform(0.7, 1.25)
    x = x * rng.uniform(0.82, 1.18, 3).astype(np.float32)
    grey = x.mean(2, keepdims=True)
    x = np.asarray(
        (grey + (x - grey) * rng.uniform(0.5, 1.4) - 0.5) * rng.uniform(0.75, 1.25) + 0.5, np.float32
    )
    steps: list[tuple[float, Callable[[NDArray[np.float32]], NDArray[np.float32]]]] = [
        (0.25, lambda y: y + _glare(y.shape[:2], rng)),
        (0.3, lambda y: np.asarray(cv2.GaussianBlur(y, (0, 0), rng.uniform(0.4, 2.0)), np.float32)),
        (0.15, lambda y: np.asarray(cv2.filter2D(y, -1, _motion(rng)), np.float32)),
        (0.35, lambda y: _coarser(y, rng.uniform(0.3, 0.9))),
        (0.5, lambda y: y + rng.normal(0, rng.uniform(0.005, 0.04), y.shape).astype(np.float32)),
    ]
    for chance, step in steps:
        x = step(np.asarray(x, np.float32)) if rng.random() < chance else x
    pixels = np.asarray(np.round(np.clip(x, 0, 1) * 255), np.uint8)
    if rng.random() < 0.6:
        data = np.frombuffer(encode_jpeg(pixels, int(rng.integers(25, 92))), np.uint8)
        pixels = np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
    return pixels


def _chosen(
    entry: GalleryImage, image: RGB, unknown: tuple[str, ...], rng: np.random.Generator
) -> tuple[list[int], list[Mask | None]]:
    """Numbers of the things that are large enough, and their masks. Kinds are taken in turn."""
    pixels = image.shape[0] * image.shape[1]
    sides = entry.boxes[:, 2:] - entry.boxes[:, :2]
    sound = [
        i
        for i, item in enumerate(entry.objects)
        if item.name not in unknown and sides[i].min() >= MIN_SIDE and sides[i].prod() < MAX_SHARE * pixels
    ]
    met: dict[str | None, int] = {}
    turns = []
    for i in rng.permutation(sound).astype(int).tolist():
        name = entry.objects[i].name
        met[name] = met.get(name, 0) + 1
        turns.append((met[name], i))
    chosen = [i for _, i in sorted(turns)][:MAX_THINGS]
    masks: Sequence[Mask | None] = (entry.masks() if chosen else None) or [None] * len(entry.objects)
    return chosen, [masks[i] for i in chosen]


def _written(
    out: Path,
    number: int,
    entry: GalleryImage,
    image: RGB,
    objects: list[dict[str, Any]],
    masks: list[Mask | None],
) -> dict[str, Any]:
    file = f"gallery/{number:05d}{entry.file.suffix}"
    shutil.copyfile(entry.file, out / file)
    mask = None
    if all(one is not None and one.shape == image.shape[:2] for one in masks):
        ids = np.zeros(image.shape[:2], np.uint8)
        for i, one in enumerate(masks):
            ids[one] = i + 1
        if len(np.unique(ids[ids > 0])) == len(masks):
            mask = f"masks/{number:05d}.png"
            (out / mask).write_bytes(encode_png(ids))
    return {"file": file, "mask": mask, "objects": objects}


def _warped(
    image: RGB, box: Box, mask: Mask | None, rng: np.random.Generator
) -> tuple[RGBA, tuple[int, int, int, int]]:
    """The thing and its surroundings seen from a little aside, and the thing's box there."""
    height, width = image.shape[:2]
    pad = AROUND * max(box[2] - box[0], box[3] - box[1])
    x0, y0 = int(max(box[0] - pad, 0)), int(max(box[1] - pad, 0))
    x1, y1 = int(min(box[2] + pad, width)), int(min(box[3] + pad, height))
    inside = np.zeros((height, width), np.uint8)
    inside[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))] = 255
    alpha = inside if mask is None else mask.astype(np.uint8) * 255
    part = np.dstack([image[y0:y1, x0:x1], alpha[y0:y1, x0:x1]])
    h, w = part.shape[:2]
    scale = rng.uniform(110, 260) / max(box[2] - box[0], box[3] - box[1])
    angle = np.deg2rad(rng.normal(0, 8))
    corners, placed, size = bent_corners(w, h, scale, angle, 0.1, rng)
    matrix = cv2.getPerspectiveTransform(corners, placed)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    warped = cv2.warpPerspective(part, matrix, size, flags=way, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(warped, np.uint8), extent(warped[..., 3] > 127) or (0, 0, *size)


def _drawn(rgb: RGB, place: tuple[int, int, int, int], rng: np.random.Generator) -> RGB:
    """With its surroundings, in a box as somebody draws it."""
    x0, y0, x1, y1 = place
    w, h = x1 - x0, y1 - y0
    a, b, c, d = (rng.normal(0.02, BOX_OFF, 4) * (w, h, w, h)).astype(int).tolist()
    x0, y0 = max(x0 - a, 0), max(y0 - b, 0)
    return np.ascontiguousarray(rgb[y0 : max(y1 + d, y0 + 16), x0 : max(x1 + c, x0 + 16)])


def _glare(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    yy, xx = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    wide = rng.uniform(0.05, 0.3) * max(shape)
    distance = (yy - rng.uniform(0, shape[0])) ** 2 + (xx - rng.uniform(0, shape[1])) ** 2
    return np.asarray(rng.uniform(0.2, 0.9) * np.exp(-distance / (2 * wide**2))[..., None], np.float32)


def _motion(rng: np.random.Generator) -> NDArray[np.float32]:
    length = int(rng.integers(3, 8))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    middle = (length - 1) / 2
    for step in np.linspace(-middle, middle, 2 * length):
        kernel[round(middle + step * np.sin(angle)), round(middle + step * np.cos(angle))] = 1
    return np.asarray(kernel / kernel.sum(), np.float32)


def _coarser(x: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    h, w = x.shape[:2]
    small = cv2.resize(x, (max(8, int(w * share)), max(8, int(h * share))), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
