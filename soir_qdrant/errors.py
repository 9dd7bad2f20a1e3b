"""One error tree. Each message says what was wrong, with which image or setting, and what to do."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")  # and the user before it


class SoirError(Exception):
    """Base of every error this package raises on purpose."""


class ImageError(SoirError):
    """An image could not be read or makes no sense as one."""


class ObjectsError(SoirError):
    """The boxes, masks or labels given for an image do not fit it."""


class WeightsError(SoirError):
    """Model weights are missing, damaged or not of the expected kind."""


class ConfigError(SoirError):
    """A setting is unknown, out of range or contradicts another."""


class CollectionError(SoirError):
    """The Qdrant collection is missing or was made with other settings."""


class ServerError(SoirError):
    """A server (Qdrant, Triton) did not answer, after the retries."""


class DatasetError(SoirError):
    """An evaluation folder or a published data set is not laid out as documented."""


def without_password(text: str) -> str:
    """A text that may repeat addresses, for messages: `https://***@host/a.png`."""
    return _PASSWORD.sub("***@", text)
