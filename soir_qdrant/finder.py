"""image -> objects: where things are, their masks, and what is written on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import soir_qdrant.models.forked  # noqa: F401  # what forked children need is set up with the first pipeline
from soir_qdrant.components import Components
from soir_qdrant.contracts import Segmenter
from soir_qdrant.geometry.boxes import areas, finish, pick
from soir_qdrant.geometry.crops import is_whole, whole_box
from soir_qdrant.models.ocr import TextLine
from soir_qdrant.timing import timed
from soir_qdrant.types import RGB, Box, Detections, LoadedImage, SceneObject


class Finder(Components):
    """Images to objects and their text: the part of a pipeline before anything is encoded."""

    def find(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None],
        seconds: dict[str, float] | None = None,
        lines: Sequence[Sequence[TextLine]] | None = None,
    ) -> list[list[SceneObject]]:
        """The objects of each image with their masks, at least one: the user's, else those detected, their
        boxes fitted to them where the segmenter can, and beside them the lines of text, and of those that then are
        much the same the best, else the whole image. seconds: see `scenes`. lines: what `read` returns; None reads
        them."""
        seconds = {} if seconds is None else seconds
        lines = self.read(images, seconds) if lines is None else lines
        unknown = [i for i, items in enumerate(objects) if items is None]
        detected: dict[int, Detections] = {}
        with timed(seconds, "detect"):
            if unknown and self.detector is not None:
                detections = self.detector.detect([images[i].rgb for i in unknown])
                detected = dict(zip(unknown, detections, strict=True))
        with timed(seconds, "segment"):
            listed = []
            for i, (image, items) in enumerate(zip(images, objects, strict=True)):
                if boxed := self.fitted(image.rgb, detected.get(i)):
                    items = self._different([*boxed, *self._printed(image, lines[i])])
                whole = SceneObject((0.0, 0.0, float(image.width), float(image.height)), stand_in=True)
                listed.append(self.segment(image.rgb, items or [whole]))
        return listed

    def read(
        self, images: Sequence[LoadedImage], seconds: dict[str, float] | None = None
    ) -> list[list[TextLine]]:
        """The lines of text in each image; none of it where the settings do not ask for them. seconds: see `scenes`."""
        reader = self.text_reader
        if reader is None:
            return [[] for _ in images]
        with timed({} if seconds is None else seconds, "read text"):
            return reader.read_all([image.rgb for image in images])

    def query_text(self, image: RGB, box: Box | None = None) -> str:
        """What is written on the thing in a query image, uint8 [H, W, 3], and can be read well; "" where the settings
        do not ask for text. box: around the thing."""
        reader = self.text_reader
        if reader is None:
            return ""
        height, width = image.shape[:2]
        x0, y0, x1, y1 = whole_box(box or (0.0, 0.0, float(width), float(height)), width, height)
        return reader.written_on(image[y0:y1, x0:x1])

    def _printed(self, image: LoadedImage, lines: Sequence[TextLine]) -> list[SceneObject]:
        """Lines of text as objects, where the settings say so; the largest, for at most half of the places."""
        settings = self.settings.ocr
        if settings is None or not settings.object_score:
            return []
        boxes = np.array([line.box for line in lines], np.float32).reshape(-1, 4)
        boxes = boxes[np.argsort(-areas(boxes), kind="stable")[: self.settings.detector.max_objects // 2]]
        inside = finish(boxes, np.full(len(boxes), settings.object_score), image.rgb.shape, threshold=0.0)
        rows = zip(inside.boxes.tolist(), inside.scores.tolist(), strict=True)
        return [SceneObject((x0, y0, x1, y1), score=score, line=True) for (x0, y0, x1, y1), score in rows]

    def fitted(self, image: RGB, detections: Detections | None) -> list[SceneObject]:
        """What was detected, boxes fitted to their masks where the segmenter can. image: uint8 [H, W, 3]."""
        if detections is None or not len(detections.boxes):
            return []
        refined = self.segmenter.refine_boxes(image, detections.boxes)
        return [
            SceneObject(box, mask, score=float(score))
            for (box, mask), score in zip(refined, detections.scores, strict=True)
        ]

    def _different(self, items: list[SceneObject]) -> list[SceneObject]:
        """Suppressed again: two boxes of one object may be the same only once they are fitted."""
        boxes = np.array([item.box for item in items]).reshape(-1, 4)
        scores = np.array([item.score for item in items])
        settings = self.settings.detector
        best, _ = pick(boxes, scores, iou=settings.fitted_iou, max_count=settings.max_objects)
        return [items[i] for i in best]

    def segment(
        self, image: RGB, objects: list[SceneObject], segmenter: Segmenter | None = None
    ) -> list[SceneObject]:
        """The same objects, each with a mask. image: uint8 [H, W, 3]."""
        segmenter = segmenter or self.segmenter
        parts = [item for item in objects if item.mask is None and not is_whole(item.box, image.shape)]
        if not parts:
            return objects
        boxes = np.array([item.box for item in parts], np.float64)  # rounded, a frame may lose a pixel
        masks = dict(zip(map(id, parts), segmenter.segment(image, boxes), strict=True))
        return [replace(item, mask=masks.get(id(item), item.mask)) for item in objects]
