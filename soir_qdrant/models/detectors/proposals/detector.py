"""A detector without training: regions that an encoder's features say are objects. See docs/concepts/detector.md."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Detector, FeatureSource
from soir_qdrant.geometry.boxes import Floats, finish, pick
from soir_qdrant.kinds import DetectorSettings, Parts
from soir_qdrant.models.detectors.proposals import saliency
from soir_qdrant.models.detectors.proposals.regions import Tree, gradient, grow, superpixels
from soir_qdrant.models.detectors.proposals.scoring import BY_TOKENS
from soir_qdrant.models.tokens import LAYER, gridded, sized
from soir_qdrant.types import RGB, Detections

GRID_AREA = 616 * 826  # pixels at which the tokens are computed, whatever the shape of the image
TREE_AREA = 640 * 480  # pixels at which regions are grown
STEP = 12  # grid of the superpixels, in pixels
MIN_AREA, MAX_AREA, MAX_STRETCH = 0.0025, 0.08, 5.0  # boxes: share of the image, ratio of the sides
DIMS = 16  # principal components of the tokens that count when regions are compared
BY_COLOUR, BY_TOKEN, BY_SIZE = 0.5, 48.0, 0.5  # what makes regions alike
RING = 0.25  # width of the surroundings of a box, as a fraction of its sides
DECAY = 0.3
CANDIDATES = 800
FIRST_MAX_COUNT, FIRST_MIN_SCORE = 12, 0.25  # boxes of the first look, and the score they need


class ProposalsDetector(Detector):
    """Class-agnostic, without weights of its own.

    source: an encoder, whose features decide. threshold, iou, max_objects: see `DetectorSettings`.
    """

    name = "proposals"

    def __init__(
        self, source: FeatureSource, *, threshold: float = 0.2, iou: float = 0.4, max_objects: int = 25
    ) -> None:
        self.source = source
        self.scoring = BY_TOKENS
        self.threshold = threshold
        self.iou = iou
        self.max_objects = max_objects

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        if (image == image[:1, :1]).all():  # of one colour: the scores would be of rounding errors
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        boxes, features = self.candidates(image)
        scores = self.scoring.second(features)
        order = np.argsort(-scores, kind="stable")[:CANDIDATES]
        chosen, values = pick(
            boxes[order], scores[order], iou=self.iou, max_count=self.max_objects, decay=DECAY
        )
        final = self.scoring.calibrated(values)
        return finish(boxes[order][chosen], final, image.shape, threshold=self.threshold)

    def candidates(self, image: RGB) -> tuple[Floats, Floats]:
        """Boxes in pixels of the image, [n, 4], and their features, [n, 14], see `scoring.NAMES`."""
        height, width = image.shape[:2]
        grid = token_grid(self.source, image)
        coordinates, variance = saliency.principal(grid, 2 * DIMS)
        far = saliency.distance(saliency.whiten(coordinates, variance, 1.0))
        tokens = saliency.whiten(coordinates[..., :DIMS], variance[:DIMS], 0.3)
        cells = np.concatenate([np.stack([saliency.rarity(grid), far], axis=2), tokens], axis=2)
        size = sized(height, width, TREE_AREA)
        channels = saliency.resample(cells, size=size)
        tree = _tree(image, size, channels[..., 2:])
        nodes = _plausible(tree)
        features = _features(tree, nodes, channels)
        background = self._background(tree.boxes[nodes], features, size, grid.shape[:2])
        rare = saliency.resample(saliency.rarity(grid, background)[..., None], size=size)
        inside, ring = _inside_and_ring(tree, nodes, rare)
        scale = np.array([width / size[0], height / size[1]] * 2)
        return tree.boxes[nodes] * scale, np.concatenate([features, inside, ring], axis=1)

    def _background(
        self, boxes: NDArray[np.int64], features: Floats, size: tuple[int, int], shape: tuple[int, ...]
    ) -> NDArray[np.bool_]:
        """The cells outside what a first look takes for objects, bool [h, w]; all of them where few are left.

        boxes: [n, 4] in the image of `size` (width, height); features: [n, 12]; shape: h, w of the grid.
        """
        first = self.scoring.first(features)
        chosen, values = pick(
            boxes.astype(np.float64), first, iou=0.4, max_count=FIRST_MAX_COUNT, decay=DECAY
        )
        background = np.ones(shape[:2], np.bool_)
        scale = np.array([shape[1] / size[0], shape[0] / size[1]] * 2)
        for x0, y0, x1, y1 in (boxes[chosen[values > FIRST_MIN_SCORE]] * scale).tolist():
            background[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = False
        return background if background.mean() > 0.1 else np.ones_like(background)


def make(settings: DetectorSettings, parts: Parts) -> ProposalsDetector:
    """The kind `proposals`."""
    return ProposalsDetector(parts.source, **settings.limits)


def token_grid(source: FeatureSource, image: RGB) -> NDArray[np.float32]:
    """The features that an image is judged by, float32 [h, w, D]: those after the block `LAYER`."""
    fitted, _ = gridded(image, source.patch, GRID_AREA)
    grid: NDArray[np.float32] = source.features(fitted[None], [LAYER])[0]
    return grid


def _plausible(tree: Tree) -> NDArray[np.int64]:
    """Nodes whose box has the size and shape of an object; the root never."""
    sides = (tree.boxes[:, 2:] - tree.boxes[:, :2]).astype(float)
    share = sides.prod(axis=1) / tree.labels.size
    stretch = sides.max(axis=1) / sides.min(axis=1)
    sound = (share > MIN_AREA) & (share < MAX_AREA) & (stretch < MAX_STRETCH) & (tree.parent >= 0)
    return np.flatnonzero(sound)


def _tree(image: RGB, size: tuple[int, int], tokens: NDArray[np.float32]) -> Tree:
    """Regions of the image at `size` (width, height). tokens: [H, W, DIMS] at that size."""
    lab = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab.astype(np.float32), (0, 0), 0.7)
    edges = gradient(lab)
    alike = np.concatenate([BY_COLOUR * lab, BY_TOKEN * tokens], axis=2)
    return grow(superpixels(lab, edges, STEP), edges, alike, by_size=BY_SIZE)


def _features(tree: Tree, nodes: NDArray[np.int64], channels: NDArray[np.float32]) -> Floats:
    """channels: [H, W, C]: rarity, distance, tokens. Floats [n, 12]: the first of `scoring.NAMES`."""
    height, width = tree.labels.shape
    boxes = tree.boxes[nodes]
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(float)
    box_area = sides.prod(axis=1)
    inside, ring = _inside_and_ring(tree, nodes, channels)
    size = np.log(box_area / tree.labels.size / 0.012)
    return np.column_stack(
        [
            size,
            size**2,
            np.abs(np.log(sides[:, 0] / sides[:, 1])),
            (boxes[:, :2] <= 1).sum(axis=1) + (boxes[:, 2:] >= [width - 1, height - 1]).sum(axis=1),
            tree.size[nodes] / box_area,
            np.log(tree.height[tree.parent[nodes]] + 1e-3),
            np.log(tree.size[tree.parent[nodes]] / tree.size[nodes]),
            np.log(np.linalg.norm(inside[:, 2:] - ring[:, 2:], axis=1) + 0.05),
            inside[:, :2],
            ring[:, :2],
        ]
    )


def _inside_and_ring(
    tree: Tree, nodes: NDArray[np.int64], channels: NDArray[np.float32]
) -> tuple[Floats, Floats]:
    """Means of the channels over each region, and over the surroundings of its box. [n, C] each."""
    height, width = tree.labels.shape
    boxes = tree.boxes[nodes]
    sides = boxes[:, 2:] - boxes[:, :2]
    reach = np.maximum(4, np.round(RING * sides)).astype(int)
    outer = np.concatenate([boxes[:, :2] - reach, boxes[:, 2:] + reach], axis=1)
    outer = np.clip(outer, 0, [width, height, width, height])
    area = (outer[:, 2:] - outer[:, :2]).prod(axis=1) - sides.prod(axis=1)
    ring = (_box_sums(channels, outer) - _box_sums(channels, boxes)) / np.maximum(area, 1)[:, None]
    return tree.means(channels)[nodes], ring


def _box_sums(channels: NDArray[np.float32], boxes: NDArray[np.int64]) -> Floats:
    """Sum of each channel over each box. channels: [H, W, C]; boxes: int [n, 4]. Floats [n, C]."""
    x0, y0, x1, y1 = boxes.T
    sums = []
    for c in range(channels.shape[2]):
        table = cv2.integral(np.ascontiguousarray(channels[..., c]), sdepth=cv2.CV_64F)
        sums.append(table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0])
    return np.stack(sums, axis=1)
