"""TIPSv2's vision tower: DINOv2's architecture with one register, its CLS token in the space of the texts."""

from __future__ import annotations

from soir_qdrant.models.encoders.backbone import Normalisation
from soir_qdrant.models.encoders.dinov2 import Dinov2Registers


class Tipsv2(Dinov2Registers):
    """`transformers.Tipsv2VisionModel`. Its pixels are 0..1 as they are."""

    loader = "Tipsv2VisionModel"
    normalisation: Normalisation = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
