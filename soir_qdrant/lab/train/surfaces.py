"""Looks at things that a texture is learnt from: labelled boxes and what is around them, and as another camera might
have taken them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant import images as image_io
from soir_qdrant.contracts import TEXTURE_CELLS
from soir_qdrant.errors import DatasetError
from soir_qdrant.geometry.crops import SURROUNDINGS, bordered, full_mask
from soir_qdrant.geometry.patches import patch_weights
from soir_qdrant.geometry.plain_background import box_of_query, plain_foreground
from soir_qdrant.geometry.resize import resized
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.needlebench.retaken import camera
from soir_qdrant.lab.train.progress import place_of, write_once
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import RGB, Box, Mask, SceneObject

BOX, SIDE = 112, 180  # pixels that a box is stretched to, and of the look around it that is kept
MAX_OBJECTS, WINDOWS = 12, 4  # of an image; windows only where nothing comes again
MIN_SIDE = 16  # of a box, in pixels
LAID, PLAIN = 0.4, 0.3  # chance that a thing is laid on another background; of these, that it is one colour


class Looks:
    """Boxes of some folders, with what is around them, left on disk.

    pixels: uint8 [n, SIDE, SIDE, 4], the last the mask. once: places there of things with one look; again: of things
    with several, by folder.
    """

    def __init__(self, folders: Sequence[list[Path]]) -> None:
        self.pixels: list[NDArray[np.uint8]] = []
        self.once: list[list[int]] = []
        self.again: list[list[list[int]]] = []
        for files in folders:
            things: dict[str, list[int]] = {}
            for file in files:
                record = np.load(file, mmap_mode="r")
                for i, thing in enumerate(record["thing"]):
                    things.setdefault(f"{file} {i}" if not thing else str(thing), []).append(len(self.pixels))
                    self.pixels.append(record["pixels"][i])
            self.once += [places for places in things.values() if len(places) == 1]
            again = [places for places in things.values() if len(places) > 1]
            self.again += [again] if again else []

    def __len__(self) -> int:
        return len(self.pixels)

    def pairs(self, count: int, again: float, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Two looks at each of `count` things, all different, a share `again` of which come again; folders of such
        things count alike."""
        wanted = round(count * again) if self.once else count
        things: list[list[int]] = []
        for i, folder in enumerate(self.again):
            share = (wanted - len(things)) // (len(self.again) - i)
            things += [folder[k] for k in rng.permutation(len(folder))[:share]]
        rest = rng.permutation(len(self.once))[: count - len(things)]
        things += [self.once[k] for k in rest]
        chosen = (rng.choice(places, 2, replace=len(places) < 2) for places in things)
        return [(int(a), int(b)) for a, b in chosen]


def looks(
    benches: Sequence[Bench], pipeline: Pipeline, cache: Path, advance: Callable[[], None] = lambda: None
) -> Looks:
    """What is around each labelled box, and around random windows of images where nothing comes again, a file an image,
    computed once (130 kB a box). Raises DatasetError where there are not two of them."""
    folders = []
    for bench in benches:
        place = place_of(cache, bench, f"looks {BOX} {SIDE}", pipeline.segmenter.fingerprint)
        place.mkdir(parents=True, exist_ok=True)
        files = []
        for i, entry in enumerate(bench.gallery):
            files.append(place / f"{i:05d}.npy")
            if not files[-1].is_file():
                _keep(files[-1], _of_image(entry, pipeline, np.random.default_rng(i)))
            advance()
        for i, query in enumerate(bench.queries):
            files.append(place / f"query-{i:05d}.npy")
            if not files[-1].is_file():
                image = image_io.load(query.file)
                mask = plain_foreground(image.rgb, query.box) if image.alpha is None else image.alpha
                item = SceneObject(query.box or box_of_query(image.rgb, mask), mask)
                (item,) = pipeline.segment(image.rgb, [item], pipeline.query_segmenter)
                _keep(files[-1], [(query.instance, look(image.rgb, _mask(item, image.rgb), item.box))])
            advance()
        folders.append(files)
    examples = Looks(folders)
    if len(examples) < 2:
        raise DatasetError("fewer than two looks in these folders: there is nothing to tell apart")
    return examples


def _of_image(
    entry: GalleryImage, pipeline: Pipeline, rng: np.random.Generator
) -> list[tuple[str, NDArray[np.uint8]]]:
    rgb = image_io.load(entry.file).rgb
    sides = entry.boxes[:, 2:] - entry.boxes[:, :2]
    large = [int(i) for i in rng.permutation(len(sides)) if sides[i].min() >= MIN_SIDE][:MAX_OBJECTS]
    objects = labelled(entry)
    items = pipeline.segment(rgb, [objects[i] for i in large])
    looked = [
        (entry.objects[i].instance or "", look(rgb, _mask(item, rgb), item.box))
        for i, item in zip(large, items, strict=True)
    ]
    if any(entry.instances):
        return looked
    everywhere = np.ones(rgb.shape[:2], np.bool_)
    return looked + [("", look(rgb, everywhere, box)) for box in windows(rgb, rng, WINDOWS)]


def windows(image: RGB, rng: np.random.Generator, count: int) -> list[Box]:
    """Random ones, of 6 to 60 % of the longer side."""
    height, width = image.shape[:2]
    boxes: list[Box] = []
    for _ in range(count):
        side = np.exp(rng.uniform(np.log(0.06), np.log(0.6))) * max(height, width)
        shape = np.exp(rng.normal(0, 0.4))
        w, h = min(width, side * shape), min(height, side / shape)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        boxes.append((x, y, x + w, y + h))
    return boxes


def look(image: RGB, mask: Mask, box: Box) -> NDArray[np.uint8]:
    """A box, stretched to BOX pixels, and what is around it, uint8 [SIDE, SIDE, 4]; beyond the image it is mirrored."""
    x0, y0, x1, y1 = box
    dx, dy = ((b - a) * (SIDE / BOX - 1) / 2 for a, b in ((x0, x1), (y0, y1)))
    corners = round(x0 - dx), round(y0 - dy), round(x1 + dx), round(y1 + dy)
    around = bordered(image, *corners, cv2.BORDER_REFLECT_101)
    inside = bordered(mask.view(np.uint8) * np.uint8(255), *corners, cv2.BORDER_CONSTANT)
    planes = (
        resized(around, SIDE, SIDE),
        resized(inside, SIDE, SIDE),
    )
    return np.dstack(planes)


def view(
    original: NDArray[np.uint8], other: NDArray[np.uint8], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A look as another camera might have taken it, its box off as a detector's: uint8 [size, size, 4]. other: a look
    whose pixels it may be laid on."""
    angle, (wide, high) = np.deg2rad(rng.normal(0, 9)), np.exp(rng.normal(0, 0.1, 2))
    turn = np.array(
        [[np.cos(angle) * wide, -np.sin(angle) * high], [np.sin(angle) * wide, np.cos(angle) * high]]
    )
    turn = turn @ [[1, rng.normal(0, 0.05)], [0, 1]] * (size / (1 + 2 * SURROUNDINGS) / BOX)
    shift = size / 2 + rng.normal(0, 0.05 * size, 2) - turn @ (SIDE / 2, SIDE / 2)
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    aside = cv2.getPerspectiveTransform(
        corners, corners + rng.normal(0, 0.03 * size, (4, 2)).astype(np.float32)
    )
    matrix = aside @ np.vstack([np.column_stack([turn, shift]), [0, 0, 1]])
    rgb = cv2.warpPerspective(
        original[..., :3], matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    inside = cv2.warpPerspective(
        np.ascontiguousarray(original[..., 3]), matrix, (size, size), flags=cv2.INTER_LINEAR
    )
    if rng.random() < 0.3:
        change = cv2.dilate if rng.random() < 0.6 else cv2.erode
        inside = change(inside, np.ones((int(rng.integers(2, 7)),) * 2, np.uint8))
    if original[..., 3].mean() < 250 and rng.random() < LAID:  # a window is 255 all over
        side, start = min(size, SIDE), int(rng.integers(0, max(SIDE - size, 1)))
        background = resized(other[start : start + side, start : start + side, :3], size, size)
        if rng.random() < PLAIN:
            background = np.full_like(rgb, rng.integers(0, 256, 3) if rng.random() < 0.5 else 255)
        share = inside[..., None].astype(np.float32) / 255
        rgb = np.asarray(rgb * share + background * (1 - share), np.uint8)
    rgb = camera(_smaller(np.asarray(rgb, np.uint8), rng), rng)
    if rng.random() < 0.2:  # something in front of it
        w, h = rng.uniform(0.1, 0.45, 2) * size
        x, y = int(rng.uniform(0, size - w)), int(rng.uniform(0, size - h))
        rgb[y : y + int(h), x : x + int(w)] = rng.integers(0, 256, 3)
    return np.dstack([rgb, inside])


def weights_of(views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of the patches of each view, uint8 [B, T, T, 4]: see `Encoder.texture`; all alike where nothing of it is left."""
    masks = views[..., 3].astype(np.float32) / np.float32(255)
    masks[masks.sum((1, 2)) < 1] = 1
    return patch_weights(masks, TEXTURE_CELLS)


def _smaller(rgb: RGB, rng: np.random.Generator) -> RGB:
    """Four of ten as if they had been of a fifth to nine tenths of the pixels' sides."""
    if rng.random() >= 0.4:
        return rgb
    size, way = len(rgb), cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    side = max(12, round(size * np.exp(rng.uniform(np.log(0.15), np.log(0.9)))))
    small = cv2.resize(
        rgb, (side, max(12, round(side * np.exp(rng.normal(0, 0.15))))), interpolation=cv2.INTER_AREA
    )
    return np.asarray(cv2.resize(small, (size, size), interpolation=way), np.uint8)


def _mask(item: SceneObject, image: RGB) -> Mask:
    return full_mask(item, image.shape[1], image.shape[0])


def _keep(file: Path, looked: list[tuple[str, NDArray[np.uint8]]]) -> None:
    record = np.zeros(len(looked), [("thing", "U64"), ("pixels", np.uint8, (SIDE, SIDE, 4))])
    for row, (thing, pixels) in zip(record, looked, strict=True):
        row["thing"], row["pixels"] = thing, pixels
    write_once(file, lambda out: np.save(out, record))
