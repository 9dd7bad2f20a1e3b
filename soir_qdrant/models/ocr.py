"""Text inside images, by RapidOCR (PP-OCR models that come with the package; nothing is downloaded)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import OcrSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.resize import resized
from soir_qdrant.types import RGB, Box, Scene, SceneObject

AT_ONCE = 4  # images: one of three megapixels takes half a gigabyte while it is read
MIN_SIDE = 8  # pixels of an image that may hold letters
MAX_ASPECT = 4  # of what RapidOCR sees: it enlarges the short side, and with it the long one
EDGE = 0.3  # of a thing's longer side, put around it: letters that touch the edge of an image are not read
SURE = 0.8  # score of a line in a query, from which its words are looked for


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
                "reading text in images needs RapidOCR: pip install 'soir-qdrant[ocr]', or do without it: --no-ocr, "
                '{"ocr": null} in a profile'
            ) from error
        self.settings = settings
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.max_side_len": settings.longest,
                "Global.text_score": settings.threshold,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # threads that wait would spin
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __reduce__(self) -> tuple[type[TextReader], tuple[OcrSettings]]:
        return TextReader, (self.settings,)

    def read_all(self, images: Sequence[RGB]) -> list[list[TextLine]]:
        """What `read` says of each image, several at once."""
        threads = min(len(images), cv2.getNumThreads(), AT_ONCE)
        if threads < 2:
            return [self.read(image) for image in images]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.read, images))

    def written_on(self, thing: RGB) -> str:
        """The text that is read well on a thing which fills an image, uint8 [H, W, 3]; "" where there is none."""
        thing, _ = self._reduced(thing, self.settings.longest / (1 + 2 * EDGE))
        edge = round(EDGE * max(thing.shape[:2]))
        lines = self.read(cv2.copyMakeBorder(thing, edge, edge, edge, edge, cv2.BORDER_REPLICATE))
        return " ".join(line.text for line in lines if line.score >= SURE)

    def read(self, image: RGB) -> list[TextLine]:
        """The lines of an image, from top to bottom. image: uint8 [H, W, 3]."""
        image, scale = self._reduced(image, self.settings.longest)
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE:
            return []
        below, right = (max(-(-max(height, width) // MAX_ASPECT) - side, 0) for side in (height, width))
        padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
        answer = self._engine(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
        if answer.boxes is None or answer.txts is None:
            return []
        corners = np.clip(np.asarray(answer.boxes, np.float64).reshape(-1, 4, 2), 0, (width, height)) / scale
        lines = [
            TextLine(text, (*map(float, (*four.min(0), *four.max(0))),), float(score))  # type: ignore[arg-type]
            for four, text, score in zip(corners, answer.txts, answer.scores, strict=True)
            if np.ptp(four, axis=0).all()  # else it lies beside the image
        ]
        return [line for line in lines if line.score >= self.settings.threshold and line.text.strip()]

    def _reduced(self, image: RGB, longest: float) -> tuple[RGB, NDArray[np.float64]]:
        """The image with no side longer than that, and its size in shares of what it was, x and y."""
        height, width = image.shape[:2]
        share = min(1.0, longest / max(height, width))
        if share == 1:
            return image, np.ones(2)
        small = resized(image, max(round(width * share), 1), max(round(height * share), 1))
        return small, np.array([small.shape[1] / width, small.shape[0] / height])


def with_text(scene: Scene, lines: Sequence[TextLine]) -> Scene:
    """A scene with the text of its objects, and the rest of what was read in its image."""
    objects, rest = assigned(lines, scene.objects)
    return replace(scene, objects=objects, text=rest)


def pack_text(scene: Scene) -> NDArray[np.uint8]:
    """The text of a scene, and that of each object or null, as a JSON array in UTF-8, uint8 [n]."""
    return np.frombuffer(json.dumps([scene.text, *(item.text for item in scene.objects)]).encode(), np.uint8)


def unpack_text(packed: NDArray[np.uint8]) -> tuple[str, list[str | None]]:
    """What `pack_text` was made of: the text of no object, and that of each."""
    rest, *texts = json.loads(packed.tobytes())
    return rest, texts


def assigned(
    lines: Sequence[TextLine], objects: Sequence[SceneObject]
) -> tuple[tuple[SceneObject, ...], str]:
    """Each line to the smallest object whose box holds its middle, and to the line that is an object of its own; the
    lines of no object as one text.

    An object that has a text already keeps it.
    """
    texts: list[list[str]] = [[] for _ in objects]
    rest = []
    for line in lines:
        owners = [_smallest(line, objects, of_lines=of_lines) for of_lines in (False, True)]
        for owner in owners:
            if owner is not None:
                texts[owner].append(line.text)
        if owners == [None, None]:
            rest.append(line.text)
    listed = tuple(
        item if item.text is not None or not own else replace(item, text=" ".join(own))
        for item, own in zip(objects, texts, strict=True)
    )
    return listed, " ".join(rest)


def _smallest(line: TextLine, objects: Sequence[SceneObject], *, of_lines: bool) -> int | None:
    """The smallest object around the middle of a line, of those that are lines themselves or of the others."""
    x, y = (line.box[0] + line.box[2]) / 2, (line.box[1] + line.box[3]) / 2
    around = [
        ((b[2] - b[0]) * (b[3] - b[1]), i)
        for i, b in enumerate(item.box for item in objects)
        if b[0] <= x < b[2] and b[1] <= y < b[3] and objects[i].line is of_lines and not objects[i].stand_in
    ]
    return min(around)[1] if around else None
