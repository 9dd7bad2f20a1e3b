"""Detectors on served models: what the network says comes from there, the choice among boxes is made here."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import Owlv2Settings, TokenHeadSettings
from soir_qdrant.contracts import Detector
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import Floats, from_square
from soir_qdrant.geometry.resize import resized
from soir_qdrant.kinds import DetectorSettings
from soir_qdrant.models.detectors import everyday
from soir_qdrant.models.detectors.choice import IOU, THRESHOLD, chosen, combined
from soir_qdrant.models.padding import padded
from soir_qdrant.models.token_grid import AREA, places, remember
from soir_qdrant.models.tokens import gridded
from soir_qdrant.serving import spec
from soir_qdrant.serving.model_spec import ModelSpec
from soir_qdrant.serving.served import ServedTrunk
from soir_qdrant.serving.session import Session
from soir_qdrant.types import RGB, Detections

GREY = 128  # OWLv2 was trained with 0.5
SERVED: dict[str, DetectorSettings] = {"token_head": TokenHeadSettings(), "owlv2": Owlv2Settings()}


class ServedDetector(Detector):
    """`contracts.Detector` on a served model: the trained head with its trunk, or OWLv2. Several images are
    looked at at once.

    Args:
        session: of the model.
        settings: their kind must be one that this model serves; None takes the model's.
        source: the trunk whose tokens the segmenter will ask for: those of the detector are remembered for it.
        other: a session of the detector of everyday things, whose word counts as one more look of the head.

    Raises:
        ConfigError: the model serves another kind.
    """

    def __init__(
        self,
        session: Session,
        settings: DetectorSettings | None = None,
        *,
        source: ServedTrunk | None = None,
        other: Session | None = None,
    ) -> None:
        served = SERVED.get(session.spec.kind)
        chosen = settings or served
        if chosen is None or served is None or chosen.kind != served.kind:
            raise ConfigError(
                f"{session.spec.name} serves a model of kind {session.spec.kind!r}, and the setting "
                f"detector.kind is {chosen and chosen.kind!r}: was it exported for another profile?"
            )
        self.name = chosen.kind
        self._session, self._settings, self._source = session, chosen, source
        self._other = other
        self._detect = self._owlv2 if session.spec.kind == "owlv2" else self._token_head

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return self._session.each(self._detect, images)

    def _owlv2(self, image: RGB) -> Detections:
        pixels = padded(image, self._session.spec.fact("size"), GREY)
        answer = self._session.run({"images": pixels[None]}, ["boxes", "scores"])
        boxes, scores = (answer[name][0].astype(np.float64) for name in ("boxes", "scores"))
        return from_square(boxes, scores, image.shape, **self._settings.limits)

    def _token_head(self, image: RGB) -> Detections:
        scales = self._settings.scales if isinstance(self._settings, TokenHeadSettings) else (1.0,)
        named = [self._named(image, round(AREA * scale)) for scale in scales]
        scores, boxes = combined(named, None if self._other is None else _said(self._other, image))
        limits = {"threshold": THRESHOLD, "iou": IOU, **self._settings.limits}
        return chosen(scores, boxes, (image.shape[1], image.shape[0]), **limits)

    def _named(self, image: RGB, area: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the cells say of an image at about this area: scores [n], boxes [n, 4] in pixels of the image."""
        inputs, (width, height) = looks(image, self._session.spec, area)
        source = self._source if area == AREA else None  # the segmenter reads the tokens of the usual area
        answer = self._session.run(inputs, ["boxes", "scores", *(["tokens"] if source else [])])
        if source is not None:
            remember(source, inputs["image"], answer["tokens"])
        scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2, np.float32)
        return answer["scores"], answer["boxes"] * scale


def _said(session: Session, image: RGB) -> tuple[Floats, Floats]:
    """What the detector of everyday things says of an image: scores [n], boxes [n, 4] in pixels of it."""
    return everyday.named(session.run({"images": everyday.looks(image)}, everyday.OUTPUTS), image)


def looks(image: RGB, model: ModelSpec, area: int = AREA) -> tuple[dict[str, NDArray[Any]], tuple[int, int]]:
    """The inputs of a served trained detector, at about this area, and width and height of its grid in tokens.

    A panorama beyond what the model was exported for is looked at smaller: a TensorRT engine would refuse it.
    """
    fitted, (width, height) = gridded(image, model.fact("patch"), area, model.fact("max_cells"))
    small = resized(image, width * spec.SMALL, height * spec.SMALL, cv2.INTER_AREA)
    inputs = {"image": fitted, "small": small, "rows": places(height), "columns": places(width)}
    return inputs, (width, height)
