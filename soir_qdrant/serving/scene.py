"""An image in, its objects and vectors out: what travels of it, and the pipeline that asks for it.

The server runs the same pipeline as a client would, beside its models (`scene_server`); only the file of the
image and the result are on the wire.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Detector, Encoder, Segmenter, TextTower
from soir_qdrant.errors import ImageError
from soir_qdrant.geometry.crops import full_mask, whole_box
from soir_qdrant.images import MAX_PIXELS
from soir_qdrant.images.formats import is_common
from soir_qdrant.models.ocr import pack_text, unpack_text
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.payload import pack_signs, unpack_signs
from soir_qdrant.serving.session import Arrays, InputRefused, Session, of_kind
from soir_qdrant.timing import timed
from soir_qdrant.types import LoadedImage, Scene, SceneObject

OF_PATCHES = ("patches", "counts")  # outputs
FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


class ScenePipeline(Pipeline):
    """A pipeline that has whole images described by the server. Images with objects of the user's own, and queries,
    take the way through the single models.

    Args:
        settings: those of the served scenes.
        session: of the model `soir_scene`.
        detector, segmenter, encoder, text_encoder: served too.
    """

    def __init__(
        self,
        settings: Settings,
        session: Session,
        *,
        detector: Detector | None,
        segmenter: Segmenter,
        encoder: Encoder,
        text_encoder: TextTower | None = None,
    ) -> None:
        super().__init__(
            settings,
            detector=detector,
            segmenter=segmenter,
            encoder=encoder,
            text_encoder=text_encoder,
            as_named=True,
        )
        of_kind(session, "scene")
        self._session = session

    def scenes(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None] | None = None,
        seconds: dict[str, float] | None = None,
        *,
        patches: bool = False,
    ) -> list[Scene]:
        """See `Pipeline.scenes`. The time is that of the stage "scene". Raises ImageError for an image that the server
        cannot describe, as the others are described without it."""
        with_objects = any(items is not None for items in objects or ())
        too_large = any(image.width * image.height > MAX_PIXELS for image in images)
        missing = patches and not self._session.spec.fact("row_dim", 0)
        if missing or with_objects or too_large:
            return super().scenes(images, objects, seconds, patches=patches)
        outputs = (tensor.name for tensor in self._session.spec.outputs)
        names = [name for name in outputs if patches or name not in OF_PATCHES]
        with timed({} if seconds is None else seconds, "scene"):
            return self._session.each(lambda image: self._scene(image, names), images)

    def _scene(self, image: LoadedImage, names: list[str]) -> Scene:
        try:
            return unpacked(self._session.run({"image": encoded(image)}, names), image)
        except InputRefused as error:
            raise ImageError(f"{image.name}: {error}") from error


def encoded(image: LoadedImage) -> NDArray[np.uint8]:
    """The bytes of an image's file, uint8 [n], where any server decodes the same pixels from it; else, and where the
    file is larger than its pixels, those of a PNG."""
    data = image.data
    if data is not None and image.full_size is None and is_common(data) and len(data) <= image.rgb.nbytes:
        return np.frombuffer(data, np.uint8)
    _, png = cv2.imencode(".png", cv2.cvtColor(image.rgb, cv2.COLOR_RGB2BGR), FAST)
    return np.asarray(png, np.uint8).ravel()


def packed(scene: Scene) -> dict[str, NDArray[Any]]:
    """What the server answers, as far as the scene has it; see `spec.scene`."""
    bits = []
    for item in scene.objects:
        x0, y0, x1, y1 = whole_box(item.box, scene.width, scene.height)
        bits.append(full_mask(item, scene.width, scene.height)[y0:y1, x0:x1].ravel())
    patches: dict[str, NDArray[Any]] = {}
    if scene.patches is not None:
        counts = np.array([len(rows) for rows in scene.patches], np.int64)
        patches = {"patches": pack_signs(np.concatenate(scene.patches)), "counts": counts}
    return {
        **patches,
        "texts": pack_text(scene),
        "boxes": np.array([item.box for item in scene.objects], np.float32),
        "scores": np.array([item.score for item in scene.objects], np.float32),
        "masks": np.packbits(np.concatenate(bits)),
        "detected": np.array([not scene.objects[0].stand_in], np.uint8),
        "vectors": scene.object_vectors,
        "vector": scene.vector,
    }


def unpacked(answer: Arrays, image: LoadedImage) -> Scene:
    """The scene of an image, out of the server's answer."""
    detected, start, objects = bool(answer["detected"][0]), 0, []
    bits = np.unpackbits(answer["masks"]).view(np.bool_)
    boxes, scores = answer["boxes"].tolist(), answer["scores"].tolist()
    rest, texts = unpack_text(answer["texts"]) if "texts" in answer else ("", [None] * len(boxes))
    for row, score, text in zip(boxes, scores, texts, strict=True):
        box = (row[0], row[1], row[2], row[3])
        x0, y0, x1, y1 = whole_box(box, image.width, image.height)
        stop = start + (y1 - y0) * (x1 - x0)
        mask = bits[start:stop].reshape(y1 - y0, x1 - x0).copy() if detected else None
        objects.append(SceneObject(box, mask, score=score, stand_in=not detected, text=text))
        start = stop
    patches = None
    if "patches" in answer:
        patches = tuple(np.split(unpack_signs(answer["patches"]), np.cumsum(answer["counts"])[:-1]))
    vector, vectors = answer["vector"], answer["vectors"]
    return Scene(image.width, image.height, tuple(objects), vector, vectors, patches, rest)
