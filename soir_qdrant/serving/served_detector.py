"""Detectors on served models: heads on a served trunk, whose work is done here, and OWLv2."""

from __future__ import annotations

import numpy as np

from soir_qdrant.config import Owlv2Settings, Settings, TokenHeadSettings
from soir_qdrant.contracts import Detector
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import from_square
from soir_qdrant.kinds import DETECTORS, SEGMENTERS, DetectorSettings, Parts, kind_of, make_detector
from soir_qdrant.serving.pixels import padded
from soir_qdrant.serving.served import ServedTrunk
from soir_qdrant.serving.session import Session
from soir_qdrant.types import RGB, Detections

TRUNK = "tokens"  # kind of the served model that detectors which read features look through
SERVED: dict[str, DetectorSettings] = {TRUNK: TokenHeadSettings(), "owlv2": Owlv2Settings()}


def served_as(settings: DetectorSettings) -> str | None:
    """The kind of served model that a kind of detector needs; None for one that runs here."""
    if kind_of(DETECTORS, settings.kind).reads_features:
        return TRUNK
    return settings.kind if settings.kind in SERVED else None


def reads_trunk(settings: Settings) -> bool:
    """Whether a trunk is to be served: its place, the detector's, must not be taken by another model."""
    served = served_as(settings.detector)
    reads = kind_of(SEGMENTERS, settings.segmenter.kind).reads_features
    return served == TRUNK or (served is None and reads)


class ServedDetector(Detector):
    """`contracts.Detector` on a served model: one that reads features, made here on the served trunk, or OWLv2,
    whose suppression is done here. Several images are looked at once.

    Args:
        session: of the model.
        settings: their kind must be one that this model serves; None takes the model's.

    Raises:
        ConfigError: the model serves another kind.
    """

    def __init__(self, session: Session, settings: DetectorSettings | None = None) -> None:
        chosen = settings or SERVED.get(session.spec.kind)
        if chosen is None or served_as(chosen) != session.spec.kind:
            raise ConfigError(
                f"{session.spec.name} serves a model of kind {session.spec.kind!r}, and the setting "
                f"detector.kind is {chosen and chosen.kind!r}: was it exported for another profile?"
            )
        self.name = chosen.kind
        self._session = session
        self._detector = _Owlv2(session, chosen) if session.spec.kind != TRUNK else _on_trunk(session, chosen)

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return self._session.each(lambda image: self._detector.detect([image])[0], images)


class _Owlv2(Detector):
    """One image at a time."""

    name = "owlv2"

    def __init__(self, session: Session, settings: DetectorSettings) -> None:
        self._session, self._settings = session, settings

    def detect(self, images: list[RGB]) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: RGB) -> Detections:
        pixels = padded(image, self._session.spec.fact("size"))
        answer = self._session.run({"images": pixels[None]}, ["boxes", "scores"])
        boxes, scores = (answer[name][0].astype(np.float64) for name in ("boxes", "scores"))
        return from_square(boxes, scores, image.shape, **self._settings.limits)


def _on_trunk(session: Session, settings: DetectorSettings) -> Detector:
    trunk = ServedTrunk(session)
    detector = make_detector(settings, Parts(Settings(detector=settings), lambda: trunk))
    if detector is None:
        raise ConfigError(f"setting detector.kind {settings.kind!r}: it makes no detector")
    return detector
