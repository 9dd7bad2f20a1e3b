"""No masks: every pixel of a box is the object's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Segmenter
from soir_qdrant.geometry.crops import whole_box
from soir_qdrant.kinds import Parts, SegmenterSettings
from soir_qdrant.types import RGB, Mask


class BoxSegmenter(Segmenter):
    """Every pixel of the box."""

    name = "box"

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        frames = [
            whole_box(
                (float(row[0]), float(row[1]), float(row[2]), float(row[3])), image.shape[1], image.shape[0]
            )
            for row in boxes
        ]
        return [np.ones((y1 - y0, x1 - x0), np.bool_) for x0, y0, x1, y1 in frames]


def make(settings: SegmenterSettings, parts: Parts) -> BoxSegmenter:  # noqa: ARG001
    """The kind `box`."""
    return BoxSegmenter()
