"""Text inside images, by RapidOCR (PP-OCR models that come with the package; nothing is downloaded)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from soir_qdrant.config import OcrSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.types import RGB, Box, Scene, SceneObject


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text in an image. box: x0, y0, x1, y1 in pixels. score: 0..1."""

    text: str
    box: Box
    score: float


class TextReader:
    """Reads the text of whole images.

    Args:
        settings: see `OcrSettings`.

    Raises:
        ConfigError: the extra `ocr` is not installed.
    """

    def __init__(self, settings: OcrSettings) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ConfigError(
                "reading text in images needs RapidOCR: pip install 'soir-qdrant[ocr]'"
            ) from error
        self.settings = settings
        self._engine = RapidOCR(
            params={"Global.log_level": "critical", "Global.max_side_len": settings.longest}
        )

    def read(self, image: RGB) -> list[TextLine]:
        """The lines of an image, from top to bottom. image: uint8 [H, W, 3]."""
        answer = self._engine(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if answer.boxes is None or answer.txts is None:
            return []
        corners = np.asarray(answer.boxes, np.float64).reshape(-1, 4, 2)
        lines = [
            TextLine(text, (*map(float, (*four.min(0), *four.max(0))),), float(score))  # type: ignore[arg-type]
            for four, text, score in zip(corners, answer.txts, answer.scores, strict=True)
        ]
        return [line for line in lines if line.score >= self.settings.threshold and line.text.strip()]

    def scene(self, image: RGB, scene: Scene) -> Scene:
        """A scene with the text of its objects, and the rest. image: uint8 [H, W, 3], what it is of."""
        objects, rest = assigned(self.read(image), scene.objects)
        return replace(scene, objects=objects, text=rest)


def assigned(
    lines: Sequence[TextLine], objects: Sequence[SceneObject]
) -> tuple[tuple[SceneObject, ...], str]:
    """Each line to the smallest object whose box holds its middle; the lines of no object as one text.

    An object that has a text already keeps it.
    """
    texts: list[list[str]] = [[] for _ in objects]
    rest = []
    for line in lines:
        x, y = (line.box[0] + line.box[2]) / 2, (line.box[1] + line.box[3]) / 2
        around = [
            ((b[2] - b[0]) * (b[3] - b[1]), i)
            for i, b in enumerate(item.box for item in objects)
            if b[0] <= x < b[2] and b[1] <= y < b[3] and not objects[i].stand_in
        ]
        if around:
            texts[min(around)[1]].append(line.text)
        else:
            rest.append(line.text)
    listed = tuple(
        item if item.text is not None or not own else replace(item, text=" ".join(own))
        for item, own in zip(objects, texts, strict=True)
    )
    return listed, " ".join(rest)
