"""A hierarchy of regions of an image, grown by merging superpixels: each node is a proposal for an object."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """n nodes: the superpixels first, then the merged regions in the order of merging; parents come later.

    parent: int [n], -1 at a root. height: float [n], dissimilarity at which the node came about, never
    above its parent's. size: float [n], pixels. boxes: int [n, 4], x0 y0 x1 y1, x1 and y1 exclusive.
    labels: int [H, W], the superpixel of each pixel.
    """

    parent: NDArray[np.int64]
    height: NDArray[np.float64]
    size: NDArray[np.float64]
    boxes: NDArray[np.int64]
    labels: Labels

    def means(self, channels: Floats) -> NDArray[np.float64]:
        """Mean of each channel over each node. channels: [H, W, C]. Floats [n, C]."""
        sums = np.zeros((len(self.parent), channels.shape[2]))
        leaves = int(self.labels.max()) + 1
        sums[:leaves] = _sums(self.labels, channels, leaves)
        for node, parent in enumerate(self.parent.tolist()):
            if parent >= 0:
                sums[parent] += sums[node]
        return np.asarray(sums / self.size[:, None])


def gradient(lab: Floats) -> Floats:
    """Colour change per pixel, over all channels. lab: float32 [H, W, 3]. Float32 [H, W]."""
    steps = [cv2.Sobel(lab, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8) for dx, dy in ((1, 0), (0, 1))]
    return np.asarray(np.sqrt(sum((step**2).sum(axis=2) for step in steps)), np.float32)


def superpixels(lab: Floats, edges: Floats, step: int) -> Labels:
    """Watershed from the calmest pixel of each cell of a grid. lab: [H, W, 3]; edges: [H, W]; step: of the
    grid, in pixels. Int32 [H, W], labels 0, 1, ... without gaps."""
    height, width = edges.shape
    calm = cv2.GaussianBlur(edges, (0, 0), 1.0)
    rows = np.linspace(0, height, max(1, round(height / step)) + 1).astype(int)
    columns = np.linspace(0, width, max(1, round(width / step)) + 1).astype(int)
    markers = np.zeros((height, width), np.int32)
    label = 0
    for y0, y1 in pairwise(rows.tolist()):
        for x0, x1 in pairwise(columns.tolist()):
            label += 1
            y, x = divmod(int(calm[y0:y1, x0:x1].argmin()), x1 - x0)
            markers[y0 + y, x0 + x] = label
    if min(height, width) > 2:  # it marks the outermost pixels as borders
        cv2.watershed(np.clip(lab, 0, 255).astype(np.uint8), markers)
    return np.unique(_filled(markers), return_inverse=True)[1].reshape(height, width).astype(np.int32)


def _filled(markers: Labels) -> Labels:
    """Give the borders between the basins (and pixels that none reached) to a neighbour."""
    labels = np.maximum(markers, 0)
    if not labels.any():  # the only markers were on the outermost pixels
        return np.ones_like(labels)
    while not labels.all():
        grown = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
        labels = np.where(labels == 0, grown, labels)
    return labels


def grow(labels: Labels, edges: Floats, channels: Floats, *, by_size: float) -> Tree:
    """Merge the most alike neighbours until one region is left.

    labels: int [H, W]; edges: [H, W]; channels: [H, W, C], what makes regions alike. The dissimilarity of
    two regions is the mean edge along their border plus the distance of their mean channels, times
    (pixels of the smaller one / all pixels) ** by_size, so that fragments are absorbed first.
    """
    leaves = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel(), minlength=leaves)
    means = _sums(labels, channels, leaves) / sizes[:, None]
    forest = _Forest(labels, edges, means, sizes.tolist(), by_size)
    parent, height = forest.merge()
    size = np.concatenate([sizes, forest.sizes[leaves:]]).astype(np.float64)
    return Tree(parent, height, size, _boxes(labels, parent), labels)


class _Forest:
    """State of the merging. borders: per node, neighbour -> (length of the border, sum of edges on it)."""

    def __init__(
        self, labels: Labels, edges: Floats, means: NDArray[np.float64], sizes: list[float], by_size: float
    ) -> None:
        self.leaves = len(sizes)
        self.sizes = sizes
        self.means = list(means)
        self.pixels = labels.size
        self.by_size = by_size
        self.borders: list[dict[int, tuple[float, float]]] = [{} for _ in sizes]
        for one, other, length, total in zip(*_adjacency(labels, edges), strict=True):
            self.borders[one][other] = self.borders[other][one] = (length, total)

    def merge(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Parent and height of all nodes."""
        parent, height = [-1] * self.leaves, [0.0] * self.leaves
        heap = [(self._distance(i, j), i, j) for i in range(self.leaves) for j in self.borders[i] if i < j]
        heapq.heapify(heap)
        highest = 0.0
        while heap:
            distance, one, other = heapq.heappop(heap)
            if parent[one] >= 0 or parent[other] >= 0:
                continue
            node = self._join(one, other)
            parent[one] = parent[other] = node
            highest = max(highest, distance)
            parent.append(-1)
            height.append(highest)
            for near in self.borders[node]:
                heapq.heappush(heap, (self._distance(near, node), near, node))
        return np.array(parent, np.int64), np.array(height, np.float64)

    def _distance(self, one: int, other: int) -> float:
        length, total = self.borders[one][other]
        step = self.means[one] - self.means[other]
        share = min(self.sizes[one], self.sizes[other]) / self.pixels
        return float((total / length + float(step @ step) ** 0.5) * share**self.by_size)

    def _join(self, one: int, other: int) -> int:
        node, size = len(self.sizes), self.sizes[one] + self.sizes[other]
        self.means.append((self.means[one] * self.sizes[one] + self.means[other] * self.sizes[other]) / size)
        self.sizes.append(size)
        joined: dict[int, tuple[float, float]] = {}
        for part in (one, other):
            for near, (length, total) in self.borders[part].items():
                if near not in (one, other):
                    before = joined.get(near, (0.0, 0.0))
                    joined[near] = (before[0] + length, before[1] + total)
                    self.borders[near].pop(part)
            self.borders[part] = {}
        self.borders.append(joined)
        for near, border in joined.items():
            self.borders[near][node] = border
        return node


def _adjacency(labels: Labels, edges: Floats) -> tuple[list[int], list[int], list[float], list[float]]:
    """Pairs of neighbouring labels, the length of their border in pixels and the sum of the edges on it."""
    codes, weights = [], []
    count = int(labels.max()) + 1
    for near, far in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        one, other = labels[near].astype(np.int64), labels[far].astype(np.int64)
        differ = one != other
        one, other = one[differ], other[differ]
        codes.append(np.minimum(one, other) * count + np.maximum(one, other))
        weights.append(np.maximum(edges[near], edges[far])[differ])
    code, place = np.unique(np.concatenate(codes), return_inverse=True)
    lengths = np.bincount(place, minlength=len(code)).astype(float)
    totals = np.bincount(place, np.concatenate(weights), minlength=len(code))
    return (code // count).tolist(), (code % count).tolist(), lengths.tolist(), totals.tolist()


def _sums(labels: Labels, channels: Floats, leaves: int) -> NDArray[np.float64]:
    flat = labels.ravel()
    columns = (channels[..., c].ravel() for c in range(channels.shape[2]))
    return np.stack([np.bincount(flat, column, leaves) for column in columns], axis=1)


def _boxes(labels: Labels, parent: NDArray[np.int64]) -> NDArray[np.int64]:
    height, width = labels.shape
    flat = labels.ravel()
    y, x = np.divmod(np.arange(flat.size), width)
    boxes = np.full((len(parent), 4), 0, np.int64)
    boxes[:, :2] = max(height, width)
    np.minimum.at(boxes[:, 0], flat, x)
    np.minimum.at(boxes[:, 1], flat, y)
    np.maximum.at(boxes[:, 2], flat, x + 1)
    np.maximum.at(boxes[:, 3], flat, y + 1)
    for node, above in enumerate(parent.tolist()):
        if above >= 0:
            boxes[above, :2] = np.minimum(boxes[above, :2], boxes[node, :2])
            boxes[above, 2:] = np.maximum(boxes[above, 2:], boxes[node, 2:])
    return boxes
