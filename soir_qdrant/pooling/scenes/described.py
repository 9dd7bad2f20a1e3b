"""Whole images to what is stored of them, where a scene encoder describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from soir_qdrant.config import Settings
from soir_qdrant.contracts import SceneEncoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.pooling.pool import normalize, pool_scenes
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.types import LoadedImage, Regions, Scene, SceneObject

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline


def scenes_of(
    pipeline: Pipeline,
    encoder: SceneEncoder,
    images: list[LoadedImage],
    objects: Sequence[list[SceneObject] | None],
    patches: bool,
) -> list[Scene]:
    """One Scene per image: a vector for each region, and one of all; see `SceneSettings.vector`.

    objects: per image those that the user gave; those images are described by crops. None: the whole image is.
    Raises ConfigError where patches of objects are wanted.
    """
    if patches:
        raise ConfigError("a scene encoder makes no crops: leave object_patches out")
    whole = [i for i, items in enumerate(objects) if items is None]
    rest = [i for i, items in enumerate(objects) if items is not None]
    described = encoder.regions([images[i].rgb for i in whole])
    scenes = {
        i: _scene(images[i], regions, pipeline.settings, pipeline.whitening)
        for i, regions in zip(whole, described, strict=True)
    }
    if rest:
        others = [images[i] for i in rest]
        listed = pipeline.find(others, [objects[i] for i in rest], lines=[[] for _ in rest])
        scenes |= zip(rest, pipeline.by_crops(others, listed, {}), strict=True)
    return [scenes[i] for i in range(len(images))]


def _scene(image: LoadedImage, regions: Regions, settings: Settings, whitening: Whitening | None) -> Scene:
    project = whitening or normalize
    rows = project(regions.vectors)
    if settings.scene is not None and settings.scene.vector == "whole":
        vector = project(regions.whole[None])[0]
    else:
        scores = np.array([item.score for item in regions.objects], np.float32)
        vector = pool_scenes(rows, np.zeros(len(rows), np.int64), scores, settings.vector)[0]
    return Scene(image.width, image.height, regions.objects, vector, rows)
