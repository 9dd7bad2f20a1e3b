"""Which segmenter makes the masks: trained (token_unet.py, the default), GrabCut, SAM (sam.py), or none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import SegmenterSettings
from soir_qdrant.geometry.crops import whole_box
from soir_qdrant.models.compatibility import fitting, trunk
from soir_qdrant.models.segmenters.grabcut import GrabCutSegmenter
from soir_qdrant.models.tokens import TokenSource
from soir_qdrant.types import RGB, Mask, Segmenter


def make_segmenter(
    settings: SegmenterSettings, source: object | None = None, encoder: str = "", device: str = "auto"
) -> Segmenter:
    """The segmenter that the settings name.

    source: whose tokens the learned one reads, a `TokenSource` to be of use; encoder: its fingerprint.
    device: of SAM, and of the trained head. Raises ConfigError or WeightsError where it cannot be had.
    """
    if settings.kind == "box":
        return BoxSegmenter()
    if settings.kind == "grabcut":
        return GrabCutSegmenter()
    if settings.kind == "embedded":
        return _on_tokens(settings, source, encoder, device)
    from soir_qdrant.models.segmenters.sam import SamSegmenter, SegmentAnythingSegmenter

    if settings.kind == "sam":
        return SamSegmenter(settings.weights, device=device)
    return SegmentAnythingSegmenter(settings.weights, device=device)


def _on_tokens(settings: SegmenterSettings, source: object | None, encoder: str, device: str) -> Segmenter:
    if not isinstance(source, TokenSource):
        return GrabCutSegmenter()
    from soir_qdrant.models.encoders.vit import pick_device
    from soir_qdrant.models.heads.masks import MaskHead
    from soir_qdrant.models.segmenters.token_unet import LearnedSegmenter

    head = fitting(settings.head, "segmenter.head", MaskHead.load, trunk(encoder))
    if head is None:
        return GrabCutSegmenter()
    return LearnedSegmenter(source, head, device=pick_device(device))


class BoxSegmenter:
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
