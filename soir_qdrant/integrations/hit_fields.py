"""A hit as plain JSON values, for programs that know none of our types."""

from __future__ import annotations

from typing import Any

from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.types import Hit


def hit_fields(hit: Hit) -> dict[str, Any]:
    """What other programs read of a hit: `id`, `score`, `uri`, `box` (x0, y0, x1, y1 in pixels, of the object that
    matched), `object` (its number), `label`, `width` and `height`, and `payload`, the user's own keys."""
    soir = hit.payload.get(KEY) or {}
    objects = soir.get("objects") or []
    matched = objects[hit.object] if hit.object is not None and hit.object < len(objects) else {}
    return {
        "id": hit.id,
        "score": round(float(hit.score), 4),
        "uri": hit.uri,
        "box": [round(float(side), 1) for side in hit.box] if hit.box else None,
        "object": hit.object,
        "label": matched.get("label"),
        "width": soir.get("width"),
        "height": soir.get("height"),
        "payload": {key: value for key, value in hit.payload.items() if key != KEY},
    }
