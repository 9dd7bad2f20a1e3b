"""The trained heads of the settings, as far as a client must know them: whose they are, and which."""

from __future__ import annotations

from pathlib import Path

from soir_qdrant.config import Settings, TokenHeadSettings, TokenUnetSettings
from soir_qdrant.kinds import DETECTORS, SEGMENTERS, kind_of
from soir_qdrant.models import artifacts
from soir_qdrant.models.compatibility import fitting, trunk
from soir_qdrant.recipe import content


class HeadFile:
    """Of a head: what it was trained for; see `compatibility.trunk`."""

    def __init__(self, file: Path) -> None:
        self.fitted_for = artifacts.load(file, "head", "soir train")[1]["fitted_for"]


def detector_head(settings: Settings, encoder: str) -> str | None:
    """The fingerprint of the detector that is served whole: trunk and head. None where the settings name
    another kind, or have no head for the encoder: then the detector runs at the client.

    Args:
        settings: whose detector.
        encoder: its fingerprint.

    Raises:
        ConfigError: the settings name a head of another encoder.
    """
    part = settings.detector
    return _head("detector", part.head, encoder) if isinstance(part, TokenHeadSettings) else None


def segmenter_head(settings: Settings, encoder: str) -> str | None:
    """The same of the segmenter."""
    part = settings.segmenter
    return _head("segmenter", part.head, encoder) if isinstance(part, TokenUnetSettings) else None


def _head(group: str, named: str | None, encoder: str) -> str | None:
    if fitting(named, f"{group}.head", HeadFile, trunk(encoder)) is None:
        return None
    return f"{trunk(encoder)} {content(group, named)}"


def reads_trunk(settings: Settings) -> bool:
    """Whether the trunk alone is to be served too: for windows, patches, and detectors at the client."""
    detector, segmenter = settings.detector.kind, settings.segmenter.kind
    return kind_of(DETECTORS, detector).reads_features or kind_of(SEGMENTERS, segmenter).reads_features
