"""All that a query object is looked at as: upright, under one light or two, and turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from soir_qdrant.config import CropSettings, Settings
from soir_qdrant.geometry.crops import object_pixels
from soir_qdrant.geometry.lit import lit
from soir_qdrant.geometry.turned import turned
from soir_qdrant.types import RGB, SceneObject, Vector


@dataclass(frozen=True, slots=True, eq=False)
class QueryViews:
    """images: uint8 [H, W, 3] each, and the one object in each that is looked at. upright: so many of them, the first,
    show it as it stands, in the image that asks for it; the others turned."""

    images: list[RGB]
    objects: list[list[SceneObject]]
    upright: int

    @property
    def pixels(self) -> float:
        """Of the image that asks, those that are the object's."""
        height, width = self.images[0].shape[:2]
        return object_pixels(self.objects[0][0], width, height)

    @property
    def aspect(self) -> float:
        """Width by height of the object's box."""
        x0, y0, x1, y1 = self.objects[0][0].box
        return (x1 - x0) / (y1 - y0)

    def upright_mean(self, rows: Vector | Sequence[Vector]) -> Vector:
        """The mean of what was read of the object as it stands. rows: an array for each view."""
        mean: Vector = np.mean(rows[: self.upright], axis=0)
        return mean

    def looks(self, rows: Vector) -> Vector:
        """float32 [L, F], one row as it stands and one for each turn. rows: float32 [V, F], of the views."""
        return np.concatenate([self.upright_mean(rows)[None], rows[self.upright :]])


def query_views(image: RGB, item: SceneObject, settings: Settings, size: int) -> QueryViews:
    """An object of an image, uint8 [H, W, 3], as `CropSettings` has it looked at; as it is alone, where its token is
    refined. size: see `turned`."""
    crop = CropSettings() if settings.vector.refines_queries else settings.crop
    upright = lit(image, item) if crop.query_lights else [image]
    askew = turned(image, item, [side * angle for angle in crop.query_turns for side in (-1, 1)], size)
    images = upright + [rgb for rgb, _ in askew]
    objects = [[item]] * len(upright) + [[view] for _, view in askew]
    return QueryViews(images, objects, len(upright))
