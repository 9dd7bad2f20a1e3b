"""A detector of another package: it finds one object, in a corner of every image."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from soir_qdrant import Kind
from soir_qdrant.kinds import DetectorSettings, Parts
from soir_qdrant.types import RGB, Detections


class CornerSettings(DetectorSettings):
    """share: of the image's sides that the corner has."""

    kind: str = "corner"
    share: float = Field(0.5, gt=0, le=1)


class CornerDetector:
    name = "corner"

    def __init__(self, settings: CornerSettings, parts: Parts) -> None:
        self.share = settings.share

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]."""
        return [self._corner(image.shape[1] * self.share, image.shape[0] * self.share) for image in images]

    def _corner(self, width: float, height: float) -> Detections:
        return Detections(np.array([[0, 0, width, height]], np.float32), np.ones(1, np.float32))


CORNER = Kind(CornerDetector, CornerSettings)
NO_KIND = CornerDetector
