"""Images by the text that was read in them: no model runs, a full-text index answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qdrant_client import models

from soir_qdrant.qdrant.filters import has_text, has_text_on_object, text_words
from soir_qdrant.qdrant.identity import KEY, both, point_id_of
from soir_qdrant.qdrant.payload import shown
from soir_qdrant.types import Box, Hit

if TYPE_CHECKING:
    from soir_qdrant.search.searcher import SoirSearcher


def find_text(
    searcher: SoirSearcher, words: str, *, limit: int = 10, filter: models.Filter | None = None
) -> list[Hit]:
    """Images in which these words were read, those first where one object has them all.

    Args:
        searcher: of the collection.
        words: all of them have to be there; case and order do not matter.
        limit: hits, at most.
        filter: on top of that.

    Returns:
        Hits whose score is the largest share of the words that one object has, with the box of that object.

    Raises:
        ConfigError: no words.
    """
    anywhere, window = with_text(words, filter), max(10 * limit, 100)
    searcher.store.open()
    points = searcher.store.matching(models.Filter(must=[has_text_on_object(words), anywhere]), limit=window)
    if len(points) < limit:
        points += searcher.store.matching(anywhere, limit=window)
    hits = {point.id: _hit(point, set(text_words(words))) for point in points}
    return sorted(hits.values(), key=lambda hit: -hit.score)[:limit]


def with_text(words: str, filter: models.Filter | None = None) -> models.Filter:
    """A filter that also asks for words read in the image."""
    return both(has_text(words), filter)


def _hit(point: models.Record, words: set[str]) -> Hit:
    payload = point.payload or {}
    soir = payload.get(KEY)
    objects = list(soir.get("objects") or []) if isinstance(soir, Mapping) else []
    shares = [len(words & set(text_words(item.get("text", "")))) / len(words) for item in objects]
    best = max(range(len(shares)), key=shares.__getitem__, default=None)
    box: Box | None = None
    if best is not None and shares[best] > 0:
        x0, y0, x1, y1 = objects[best]["box"]
        box = (float(x0), float(y0), float(x1), float(y1))
    return Hit(
        id=point_id_of(point),
        score=shares[best] if best is not None else 0.0,
        uri=soir.get("uri") if isinstance(soir, Mapping) else None,
        box=box,
        payload=shown(payload),
        object=best if box else None,
    )
