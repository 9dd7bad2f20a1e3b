"""Which detector finds the boxes: the embedded one, which needs no weights of its own, or OWLv2."""

from __future__ import annotations

from soir_qdrant.config import DetectorSettings
from soir_qdrant.types import Detector, Encoder


def make_detector(settings: DetectorSettings, encoder: Encoder | None) -> Detector | None:
    """The detector that the settings name; None where the whole image is to be the one object.

    encoder: its tokens score the proposals of the embedded detector. Raises WeightsError where OWLv2's
    weights cannot be loaded.
    """
    if settings.kind == "none":
        return None
    if settings.kind == "owlv2":
        from soir_qdrant.vision.owlv2 import Owlv2Detector

        return Owlv2Detector(
            settings.weights, threshold=settings.threshold, iou=settings.iou, most=settings.most
        )
    from soir_qdrant.vision.embedded import EmbeddedDetector

    return EmbeddedDetector(encoder, threshold=settings.threshold, iou=settings.iou, most=settings.most)
