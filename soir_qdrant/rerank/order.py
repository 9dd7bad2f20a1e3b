"""Hits in a new order, where some of them may not be scored anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from soir_qdrant.errors import SoirError
from soir_qdrant.types import Failure, Hit

log = logging.getLogger(__name__)


def reordered(
    hits: Sequence[Hit], scored: Callable[[Hit], Hit], failed: list[Failure] | None = None
) -> list[Hit]:
    """What `scored` makes of the hits, by falling score. One for which it raises a SoirError stays as it is
    and where it is; it is added to `failed` and logged."""
    found: list[Hit | None] = []
    for hit in hits:
        try:
            found.append(scored(hit))
        except SoirError as error:
            log.warning("hit %s keeps its place: %s", hit.id, error)
            if failed is not None:
                failed.append(Failure(str(hit.uri or hit.id), str(error)))
            found.append(None)
    best = iter(sorted((hit for hit in found if hit is not None), key=lambda hit: -hit.score))
    return [hit if new is None else next(best) for hit, new in zip(hits, found, strict=True)]
