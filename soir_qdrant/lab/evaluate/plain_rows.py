"""The rows of `soir evaluate` that the pipeline itself does not make: whole images, and the paper's crops, plain and
refined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import Settings, VitSettings
from soir_qdrant.contracts import Encoder
from soir_qdrant.geometry.crops import whole_box
from soir_qdrant.geometry.user_objects import clip_box
from soir_qdrant.models.weights import EMBEDDED, WHOLE
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import mean_pool, normalize
from soir_qdrant.types import RGB, Box, Mask, SceneObject, Vector

REFINED = ("paper-plain-query", "paper")
OF_PAPER = ("paper-mean", *REFINED)
PLAIN = ("global", "global-untuned", "mean", *OF_PAPER)


class PlainRows:
    """Vectors of images and queries for some of PLAIN, unit length.

    Args:
        pipeline: that is evaluated; its objects, masks and weights are used.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def image(self, image: RGB, objects: Sequence[SceneObject], rows: Iterable[str]) -> dict[str, Vector]:
        """By row, float32 [D]. image: uint8 [H, W, 3]; objects: with their masks."""
        rows, listed = set(rows), [list(objects)]
        whole = sorted(rows & {"global", "global-untuned"})
        vectors: dict[str, Vector] = {name: self._whole(image, name) for name in whole}
        if "mean" in rows:
            crops = self.paper_crops.crops([image], listed)
            vectors["mean"] = mean_pool(self.paper_crops.encoder.encode(crops.pixels).descriptor)
        if not rows & set(OF_PAPER):
            return vectors
        crops = self.paper.crops([image], listed)
        encoding = self.paper.encode(crops, with_tokens=bool(rows & set(REFINED)))
        if "paper-mean" in rows:
            vectors["paper-mean"] = mean_pool(encoding.descriptor)
        if rows & set(REFINED):
            count = len(crops.pixels)
            scene_of, ones = np.zeros(count, np.int64), np.ones(count, np.float32)
            (joint,) = self.paper.pool(encoding.descriptor, scene_of, ones, encoding, crops.masks)
            vectors |= dict.fromkeys(rows & set(REFINED), joint)
        return vectors

    def query(
        self, image: RGB, rows: Iterable[str], *, box: Box | None = None, mask: Mask | None = None
    ) -> dict[str, Vector]:
        """By row, float32 [D]. image: uint8 [H, W, 3]; box, mask: of the thing in it, see `Pipeline.query_crop`."""
        rows = set(rows)
        whole = image if box is None else _cut(image, box)
        vectors: dict[str, Vector] = {}
        if rows & {"global", "mean"}:
            vectors |= dict.fromkeys(rows & {"global", "mean"}, self._whole(whole, "global"))
        if "global-untuned" in rows:
            vectors["global-untuned"] = self._whole(whole, "global-untuned")
        if rows & {"paper-mean", "paper-plain-query"}:
            plain = self.plain_paper.query(image, box=box, mask=mask)
            vectors |= dict.fromkeys(rows & {"paper-mean", "paper-plain-query"}, plain)
        if "paper" in rows:
            vectors["paper"] = self.paper.query(image, box=box, mask=mask)
        return vectors

    def _whole(self, image: RGB, row: str) -> Vector:
        """The descriptor of a whole image by the encoder of a row."""
        encoder = self.untuned if row == "global-untuned" else self.pipeline.encoder
        descriptor: Vector = normalize(encoder.encode(whole_crop(image, encoder.input_size)).descriptor)[0]
        return descriptor

    @cached_property
    def untuned(self) -> Encoder:
        """The encoder without its adapter."""
        encoder = self.pipeline.settings.encoder
        if not isinstance(encoder, VitSettings) or encoder.adapter is None:
            return self.pipeline.encoder
        return Pipeline(self.pipeline.settings.but(encoder={"adapter": None})).encoder

    @cached_property
    def paper_crops(self) -> Pipeline:
        """The pipeline, but with the paper's crops."""
        crop = Settings.for_profile("paper").crop.model_dump()
        return Pipeline(self.pipeline.settings.but(crop=crop), encoder=self.pipeline.encoder)

    @cached_property
    def paper(self) -> Pipeline:
        """The profile `paper` on the weights that are evaluated: the whole model, untuned."""
        evaluated, settings = self.pipeline.settings.encoder, Settings.for_profile("paper")
        if not isinstance(evaluated, VitSettings):
            encoder = self.pipeline.encoder
            return Pipeline(settings, encoder=encoder, segmenter=self.pipeline.segmenter)
        weights = WHOLE if evaluated.weights == EMBEDDED else evaluated.weights
        whole = {**evaluated.model_dump(), "weights": weights, "adapter": None}
        return Pipeline(settings.but(encoder=whole), segmenter=self.pipeline.segmenter)

    @cached_property
    def plain_paper(self) -> Pipeline:
        """The same, but that queries are not refined."""
        settings = self.paper.settings.but(vector={"refine_query": False})
        return Pipeline(settings, encoder=self.paper.encoder, segmenter=self.pipeline.segmenter)


def _cut(image: RGB, box: Box) -> RGB:
    """The pixels of the box, rounded outwards."""
    x0, y0, x1, y1 = whole_box(clip_box(box, image.shape[1], image.shape[0]), image.shape[1], image.shape[0])
    return image[y0:y1, x0:x1]


def whole_crop(image: RGB, size: int) -> NDArray[np.uint8]:
    """The whole image, squeezed into one crop, uint8 [1, size, size, 3]."""
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))[None]
