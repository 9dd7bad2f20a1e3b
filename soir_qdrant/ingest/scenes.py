"""Pixels to scenes: a batch at once, and image by image where one is at fault."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from soir_qdrant.errors import CollectionError, ConfigError, ServerError, SoirError, WeightsError
from soir_qdrant.ingest.reading import decoded
from soir_qdrant.ingest.sources import Item
from soir_qdrant.types import Scene

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline

log = logging.getLogger(__name__)
_FATAL = (WeightsError, ConfigError, CollectionError, ServerError)  # would come back for every image


def scenes_of(
    items: list[Item],
    pipeline: Callable[[], Pipeline],
    seconds: dict[str, float],
    patches: bool,
    fail: Callable[[Item, str], None],
) -> list[tuple[Item, Scene]]:
    """The scene of each item; one that the models choke on fails alone.

    Args:
        items: decoded.
        pipeline: made on first use.
        seconds: what each stage took is added here.
        patches: also of each object.
        fail: called with an item and the reason.

    Raises:
        WeightsError, ConfigError, CollectionError, ServerError: what no other image would escape.
    """
    if not items:
        return []
    try:
        images, objects = [decoded(item) for item in items], [item.objects for item in items]
        scenes = pipeline().scenes(images, objects, seconds, **({"patches": True} if patches else {}))
        return list(zip(items, scenes, strict=True))
    except _FATAL:
        raise
    except Exception as error:  # whatever a model says to one odd image must not stop the others
        if len(items) > 1:
            return [pair for item in items for pair in scenes_of([item], pipeline, seconds, patches, fail)]
        log.info("%s failed", items[0].name, exc_info=True)
        kind = "" if isinstance(error, SoirError) else f"{type(error).__name__}: "
        fail(items[0], f"{kind}{error}")
        return []
