"""SAM on served models: the image encoder and the mask decoder."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Segmenter
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.crops import cut_mask
from soir_qdrant.serving.pixels import fitted, shrunk
from soir_qdrant.serving.session import Session, of_kind
from soir_qdrant.types import RGB, Mask


class ServedSegmenter(Segmenter):
    """`contracts.Segmenter`, SAM: the image is encoded once; all its boxes go through the decoder in one call."""

    name = "sam"

    def __init__(self, encoder: Session, decoder: Session) -> None:
        spec = of_kind(encoder, "sam_encoder")
        self.max_boxes = of_kind(decoder, "sam_decoder").fact("max_boxes")
        self.size = spec.fact("size")
        if encoder.fingerprint != decoder.fingerprint:
            raise ConfigError(
                f"{spec.name} was exported from {encoder.fingerprint}, and {decoder.spec.name} from "
                f"{decoder.fingerprint}: export both from the same weights"
            )
        self._encoder, self._decoder = encoder, decoder

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        if not len(boxes):
            return []
        height, width = image.shape[:2]
        inner = fitted(height, width, self.size)
        pixels = shrunk(image, inner, self.size)
        embeddings = self._encoder.run({"images": pixels[None]}, ["embeddings"])["embeddings"]
        scale = np.array([inner[1] / width, inner[0] / height] * 2, np.float32)
        prompts = np.asarray(boxes, np.float32) * scale
        masks = [
            self._decoder.run(
                {"embeddings": embeddings, "boxes": prompts[None, i : i + self.max_boxes]}, ["masks"]
            )["masks"][0]
            for i in range(0, len(prompts), self.max_boxes)
        ]
        return [
            in_frame(plane, row, (height, width), inner, self.size)
            for plane, row in zip(np.concatenate(masks), boxes, strict=True)
        ]


def in_frame(
    logits: NDArray[np.float32],
    box: NDArray[np.floating],
    shape: tuple[int, int],
    inner: tuple[int, int],
    size: int,
) -> Mask:
    """A low-resolution mask of the padded square, [m, m], as the bool mask of a box of the image.

    shape: H, W of the image; inner: of what of the square, `size` pixels wide, is not padding.
    """
    whole = cv2.resize(logits, (size, size), interpolation=cv2.INTER_LINEAR)[: inner[0], : inner[1]]
    whole = cv2.resize(whole, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return cut_mask(whole > 0, box)
