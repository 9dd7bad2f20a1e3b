"""What a request can ask for and not get, beside the package's own errors. problems.py has their statuses."""

from __future__ import annotations

from soir_qdrant.errors import CollectionError, ImageError, SoirError


class Busy(SoirError):
    """The queue is full, or the service stops. retry_after: seconds after which to try again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoCollection(CollectionError):
    """There is no collection of this name, or it may not be used here."""


class NoImage(CollectionError):
    """The collection has no image of this id."""


class NotServed(ImageError):
    """A stored image whose file this service does not open, or no longer finds."""


class Forgotten(ImageError):
    """An upload or a search that the service no longer remembers."""


class NotAllowed(SoirError):
    """This service was started without the permission."""
