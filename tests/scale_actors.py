"""Actors for tests, in a module of its own, which workers import: without models, and one that dies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from soir_qdrant import SoirIngestor
from soir_qdrant.scale import Embed
from soir_qdrant.types import Scene, SceneObject


class MeanColour:
    """A pipeline whose one object is the image, and whose vector its mean colour."""

    dim = 3
    has_patches = False
    fingerprint = {"encoder": "mean colour", "dim": 3}  # noqa: RUF012
    recipe = {"detector": "none"}  # noqa: RUF012

    def scenes(self, images, objects, seconds):
        time.sleep(0.1)
        return [self.scene(image) for image in images]

    def scene(self, image):
        vector = image.rgb.reshape(-1, 3).mean(0, dtype=np.float32)
        vector /= np.linalg.norm(vector)
        whole = SceneObject((0.0, 0.0, float(image.width), float(image.height)), stand_in=True)
        return Scene(image.width, image.height, (whole,), vector, vector[None])


class LightEmbed(Embed):
    def ingestor(self, target):
        return SoirIngestor(target.client(), target.collection, pipeline=MeanColour(), retry=target.retry)


class DyingEmbed(LightEmbed):
    """Dies with its first batch described, once. marker: a file that says that one has died already."""

    marker: Path

    def __call__(self, batch):
        rows = super().__call__(batch)
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return rows
        os._exit(1)

    @classmethod
    def once(cls, marker: Path) -> type[DyingEmbed]:
        return type("DyingEmbed", (cls,), {"marker": marker})
