"""Which detector finds the boxes: the embedded one, on the encoder's own tokens, or OWLv2."""

from __future__ import annotations

from typing import Any

from soir_qdrant.config import DetectorSettings
from soir_qdrant.models.compatibility import fitting, trunk
from soir_qdrant.models.detectors.proposals import EmbeddedDetector
from soir_qdrant.models.tokens import TokenSource
from soir_qdrant.types import Detector, Encoder


def make_detector(
    settings: DetectorSettings, encoder: Encoder | None, device: str = "auto"
) -> Detector | None:
    """The detector that the settings name; None where the whole image is to be the one object.

    encoder: its tokens are what the embedded detector reads. device: of OWLv2. Raises WeightsError
    where OWLv2's weights cannot be loaded, ConfigError for a head of another encoder.
    """
    if settings.kind == "none":
        return None
    if settings.kind == "owlv2":
        from soir_qdrant.models.detectors.owlv2 import Owlv2Detector

        return Owlv2Detector(settings.weights, device=device, **given(settings))
    return on_tokens(settings, encoder, str(getattr(encoder, "fingerprint", "")), device)


def on_tokens(
    settings: DetectorSettings, source: object | None, fingerprint: str, device: str = "auto"
) -> Detector:
    """The embedded detector: with its head, where that was trained on the tokens of this encoder.

    source: anything; a `TokenSource` to be of use. fingerprint: of the encoder whose tokens they are.
    """
    if not isinstance(source, TokenSource):
        return EmbeddedDetector(source, **given(settings))
    from soir_qdrant.models.detectors.token_head import LearnedDetector
    from soir_qdrant.models.encoders.vit import pick_device
    from soir_qdrant.models.heads.boxes import TrainedHead

    head = fitting(settings.head, "detector.head", TrainedHead.load, trunk(fingerprint))
    if head is None:
        return EmbeddedDetector(source, **given(settings))
    return LearnedDetector(source, head, device=pick_device(device), **given(settings))


def given(settings: DetectorSettings) -> dict[str, Any]:
    """most, and threshold and iou where they are set."""
    held = {"threshold": settings.threshold, "iou": settings.iou, "most": settings.most}
    return {name: value for name, value in held.items() if value is not None}
