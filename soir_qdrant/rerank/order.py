"""Hits in a new order, where some of them may not be scored anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from soir_qdrant.errors import SoirError
from soir_qdrant.types import Failure, Hit

log = logging.getLogger(__name__)


def best_first(before: Sequence[Hit], after: Iterable[Hit]) -> list[Hit]:
    """Hits by descending new score; equal ones by the score before, then by id, so that pages of one search fit
    together.

    Args:
        before: with the scores that they had.
        after: the same, with the new ones.
    """
    both = sorted(
        zip(after, before, strict=True), key=lambda pair: (-pair[0].score, -pair[1].score, str(pair[0].id))
    )
    return [hit for hit, _ in both]


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
    earlier = [hit for hit, new in zip(hits, scored_hits, strict=True) if new is not None]
    best = iter(best_first(earlier, (new for new in scored_hits if new is not None)))
    return [hit if new is None else next(best) for hit, new in zip(hits, scored_hits, strict=True)]
