"""Images to scenes, with the text inside them where the settings ask for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from soir_qdrant.ingest.reading import decoded
from soir_qdrant.ingest.sources import Item
from soir_qdrant.types import Scene

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline


def read_scenes(
    pipeline: Pipeline, items: list[Item], seconds: dict[str, float], *, patches: bool
) -> list[tuple[Item, Scene]]:
    """What `Pipeline.scenes` makes of images, with the text that was read in them. patches: of objects too.
    seconds: stage -> seconds, added to in place."""
    images, objects = [decoded(item) for item in items], [item.objects for item in items]
    scenes = pipeline.scenes(images, objects, seconds, **({"patches": True} if patches else {}))
    if reader := pipeline.text_reader:
        start = time.perf_counter()
        scenes = [reader.scene(image.rgb, scene) for image, scene in zip(images, scenes, strict=True)]
        seconds["read text"] = seconds.get("read text", 0.0) + time.perf_counter() - start
    return list(zip(items, scenes, strict=True))
