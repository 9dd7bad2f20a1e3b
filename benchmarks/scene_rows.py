"""The rows of benchmarks/scene_queries.py: what an image can be searched by, our own vector and scene encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from scene_queries_training import COUNTS, FEATURE, Looks, SceneQueries, looked_at

from soir_qdrant import images as image_io
from soir_qdrant.config import VectorSettings
from soir_qdrant.geometry.resize import resized
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.features import sizes
from soir_qdrant.pooling.pool import generalized_max_pool, mean_pool, normalize
from soir_qdrant.pooling.scenes.cluster import clustered
from soir_qdrant.pooling.scenes.dense import dense_grid
from soir_qdrant.pooling.scenes.grids import look, peak, placed
from soir_qdrant.types import Box, LoadedImage, Scene, Vector

ADDED, WEIGHT = 0.5, 0.25  # of the best vector's score beside ours; of vectors as objects
SIDES = (8, 16)  # of the grids of dense vectors
LAYERS = ("patches-3", "patches-2", "patches-1", "patches")  # after each of the last four blocks
OURS = "ours: crops, generalized max pooling"
MEAN = "the mean of the detector's tokens, nothing trained"


@dataclass(frozen=True)
class Row:
    """A way to search. one: float32 [n, D], of each image; many: its vectors, float32 [k, D]; boxes: where each of
    these looks; added: vectors whose best similarity is added to both scores, times ADDED."""

    one: Vector
    many: list[Vector]
    boxes: list[list[Box]]
    added: list[Vector] | None = None

    @property
    def vectors(self) -> float:
        """Of an image, in the mean."""
        return sum(map(len, [*self.many, *(self.added or [])])) / len(self.many)

    def scores(self, queries: Vector) -> tuple[Vector, Vector]:
        """By the one vector, and by the best, float32 [m, n]. queries: float32 [m, D]."""
        bonus = ADDED * best(queries, self.added) if self.added else np.float32(0)
        return queries @ self.one.T + bonus, best(queries, self.many) + bonus


def best(queries: Vector, images: Sequence[Vector]) -> Vector:
    """The similarity to the most similar vector of each image, float32 [m, n]."""
    return np.stack([(queries @ rows.T).max(1) for rows in images], 1)


@dataclass(frozen=True)
class Places:
    """What a scene encoder says of an image. vectors: float32 [k, D], unit rows; boxes: where each looks."""

    vectors: Vector
    boxes: list[Box]


@dataclass(frozen=True)
class Described:
    """A folder. scenes: what is stored of each image; others: by title, what else describes each."""

    scenes: list[Scene]
    others: dict[str, list[Places]]

    @property
    def ours(self) -> Vector:
        """The one vector of each image, float32 [n, D]."""
        return np.stack([scene.vector for scene in self.scenes])


def described(bench: Bench, looks: Looks, head: SceneQueries | None) -> Described:
    """The images of a folder. head: trained queries; None leaves them out."""
    folder = Described([], {})
    for entry in track(bench.gallery, bench.root.name):
        image = image_io.load(entry.file)
        folder.scenes.append(looks.described(image))
        everywhere = [(0.0, 0.0, float(image.width), float(image.height))]
        others = {"whole image": Places(looks.whole(image)[None], everywhere)}
        others |= patch_places(image, looks)
        others |= token_places(image, looks, head, everywhere)
        for title, places in others.items():
            folder.others.setdefault(title, []).append(places)
    return folder


@torch.inference_mode()
def patch_places(image: LoadedImage, looks: Looks) -> dict[str, Places]:
    """Dense vectors and clusters of the image, nothing trained."""
    shape, places = image.rgb.shape, {}
    for title, (grid, features) in grids(image, looks).items():
        regions = {f"dense, {title}, {side**2}": cells(averaged(grid, side), shape) for side in SIDES}
        for k in COUNTS:
            rows, objects = clustered(grid, k, shape)
            regions[f"clusters, {title}, {k}"] = rows, [item.box for item in objects]
        for name, (rows, boxes) in regions.items():
            places[name] = Places(projected(rows, features, looks.pipeline), boxes)
    return places


def grids(image: LoadedImage, looks: Looks) -> dict[str, tuple[Vector, Sequence[str]]]:
    """Patches of the image, float32 [h, w, F], unit rows, and the features that they are: of `cls`, what each says in
    the place of the model's descriptor, by itself or with the last block as it was trained; of `layers`, its tokens;
    these of the image squeezed to a square, as `look` does; and the detector's tokens, which are more."""
    encoder = looks.pipeline.encoder
    tiles = look(encoder, [image.rgb], 1)
    square = resized(image.rgb, encoder.input_size, encoder.input_size)
    tokens = torch.from_numpy(encoder.features(square[None], range(-len(LAYERS), 0))[0])
    layers = torch.cat([encoder.last_block.norm(x) for x in tokens.chunk(len(LAYERS), -1)], -1).numpy()
    return {
        "`cls`": (dense_grid(tiles, "own")[0], ("cls",)),
        "`cls`, last block as trained": (dense_grid(tiles, "all")[0], ("cls",)),
        "`layers`": (parts_normalized(layers, len(LAYERS)), LAYERS),
        "the detector's tokens": (normalize(looks.grid(image)), (FEATURE,)),
    }


def averaged(grid: Vector, side: int) -> Vector:
    """A grid, [h, w, F], as one of `side` by `side` means of unit rows; the same where it is that large."""
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(grid).permute(2, 0, 1), side)
    return normalize(pooled.permute(1, 2, 0).numpy())


def cells(grid: Vector, shape: tuple[int, ...]) -> tuple[Vector, list[Box]]:
    """Each vector of a grid, [h, w, D], by itself: [h * w, D], and its box in an image of this shape."""
    h, w, dim = grid.shape
    alone = np.eye(h * w, dtype=np.bool_).reshape(-1, h, w)
    return grid.reshape(-1, dim), [placed(cell, shape, 1.0).box for cell in alone]


def projected(rows: Vector, features: Sequence[str], pipeline: Pipeline) -> Vector:
    """Some of the features of places, float32 [k, F], side by side, in the space of our vectors: [k, D], unit rows.
    The others are the mean that the projection takes away, so that they say nothing."""
    names, whitening = pipeline.settings.vector.features, pipeline.whitening
    assert whitening is not None
    means = np.split(whitening.mean, np.cumsum(sizes(names, pipeline.encoder))[:-1])
    parts = parts_normalized(rows, len(features)) * (len(features) / len(names)) ** 0.5
    present = dict(zip(features, np.split(parts, len(features), -1), strict=True))
    every = [
        present.get(name, np.broadcast_to(mean, (len(rows), len(mean))))
        for name, mean in zip(names, means, strict=True)
    ]
    return whitening(np.concatenate(every, -1))


def parts_normalized(rows: Vector, parts: int) -> Vector:
    """Unit rows [..., F], in which each of `parts` equal parts is of the same length."""
    return normalize(normalize(rows.reshape(*rows.shape[:-1], parts, -1)).reshape(rows.shape))


def token_places(
    image: LoadedImage, looks: Looks, head: SceneQueries | None, everywhere: list[Box]
) -> dict[str, Places]:
    """The mean of the detector's tokens, and what trained queries say that read them."""
    grid = torch.from_numpy(looks.grid(image))
    mean = grid.float().mean((0, 1))[None].numpy()
    places = {MEAN: Places(projected(mean, [FEATURE], looks.pipeline), everywhere)}
    if head is not None:
        vectors, maps = looked_at(head, grid)
        boxes = [placed(peak(heat), image.rgb.shape, 1.0).box for heat in maps.numpy()]
        places |= {f"`sum`, {k}": Places(vectors[:k].numpy(), boxes[:k]) for k in COUNTS}
    return places


def rows_of(folder: Described, settings: VectorSettings) -> Iterator[tuple[str, Row]]:
    """What is compared, with its title; settings: of our vector."""
    crops = [scene.object_vectors for scene in folder.scenes]
    boxes = [[item.box for item in scene.objects] for scene in folder.scenes]
    ours = folder.ours
    yield "crops, mean", Row(np.stack([mean_pool(rows) for rows in crops]), crops, boxes)
    yield OURS, Row(ours, crops, boxes)
    for title, places in folder.others.items():
        one = np.stack([generalized_max_pool(x.vectors, settings.ridge) for x in places])
        yield title, Row(one, [x.vectors for x in places], [x.boxes for x in places])
    for title, places in folder.others.items():
        added = [x.vectors for x in places]
        yield f"ours, and {ADDED:g} times the best of {title}", Row(ours, crops, boxes, added)
    for title, places in folder.others.items():
        both = [np.concatenate([rows, x.vectors]) for rows, x in zip(crops, places, strict=True)]
        weights = [
            np.array([item.score**settings.by_score for item in scene.objects] + [WEIGHT] * len(x.boxes))
            for scene, x in zip(folder.scenes, places, strict=True)
        ]
        pooled = zip(both, weights, strict=True)
        one = np.stack([generalized_max_pool(rows, settings.ridge, weight) for rows, weight in pooled])
        all_boxes = [mine + x.boxes for mine, x in zip(boxes, places, strict=True)]
        yield f"ours, {title}, as more objects of weight {WEIGHT:g}", Row(one, both, all_boxes)
