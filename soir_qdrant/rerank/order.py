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
    """Hits by descending new score.

    Args:
        hits: best first.
        scored: makes a hit with its new score of each. One for which it raises a SoirError stays as it is
            and where it is, and is logged.
        failed: gets those.

    Returns:
        As many hits.
    """
    scored_hits: list[Hit | None] = []
    for hit in hits:
        try:
            scored_hits.append(scored(hit))
        except SoirError as error:
            log.warning("hit %s keeps its place: %s", hit.id, error)
            if failed is not None:
                failed.append(Failure(str(hit.uri or hit.id), str(error)))
            scored_hits.append(None)
    best = iter(sorted((hit for hit in scored_hits if hit is not None), key=lambda hit: -hit.score))
    return [hit if new is None else next(best) for hit, new in zip(hits, scored_hits, strict=True)]
