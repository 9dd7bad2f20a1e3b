"""What a search found, to look at: a page, or one image."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from soir_qdrant.errors import ImageError, SoirError
from soir_qdrant.images import GREY
from soir_qdrant.query import Query, as_vector, open_query
from soir_qdrant.report.html import Search, Shown, heat, sheet, write
from soir_qdrant.rerank import hit_image
from soir_qdrant.search import localization
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import RGB, Box, Composed, Hit, LoadedImage, Text

log = logging.getLogger(__name__)
SIDE, MAPPED = 224, 8  # pixels of the heat maps' cut-outs; hits that get one


def save(
    searcher: SoirSearcher,
    query: Query,
    box: Box | None,
    hits: list[Hit],
    *,
    html: Path | None = None,
    png: Path | None = None,
) -> None:
    """Write the hits as a page with boxes and heat maps, and/or as one image with boxes.

    A hit whose image cannot be opened is left out, and logged.

    Args:
        searcher: that searched.
        query: what was searched for; text and vectors have no heat maps, nor have encoders without a last block.
        box: the object in the query image.
        hits: what it returned.
        html: file of the page.
        png: file of the image; its suffix says the format.

    Raises:
        ImageError: for a suffix that is no format that can be written.
    """
    name, image, box = _query(searcher, query, box)
    look = None
    if html and image and searcher.pipeline.encoder.last_blocks:
        look = localization.look(searcher.pipeline, image, box)
    shown, maps = _drawable(searcher, hits, look)
    drawn = np.full((SIDE, SIDE, 3), GREY, np.uint8) if image is None else _meant(image, box)
    if html:
        lead = (
            "Thin boxes: the objects that were stored of each image. Green: the one that matched. Below: "
            "where the query looks, around the matched object."
        )
        write(
            html, f"Searched: {name}", lead, [("found", str(len(hits)))], [Search(name, drawn, shown, maps)]
        )
    if png:
        try:
            Image.fromarray(sheet(drawn, shown)).save(png)
        except (OSError, ValueError) as error:
            raise ImageError(f"{png}: cannot be written ({error}); name a .png or .jpg") from error


def _drawable(
    searcher: SoirSearcher, hits: list[Hit], look: localization.Look | None
) -> tuple[list[Shown], list[tuple[str, RGB]]]:
    """The hits whose images can be opened, and the heat maps of the first."""
    shown: list[Shown] = []
    maps: list[tuple[str, RGB]] = []
    for rank, hit in enumerate(hits, 1):
        try:
            opened, stored = hit_image.open_image(hit, searcher.max_pixels), hit_image.boxes(hit)
        except SoirError as error:
            log.warning("hit %s is not shown: %s", hit.id, error)
            continue
        if look and hit.box and len(maps) < MAPPED:
            weights = localization.heat(searcher.pipeline, look, opened, stored)
            maps.append((f"#{rank}", _around(opened.rgb, weights, opened.here(hit.box))))
        caption = f"#{rank}, score {hit.score:.2f}, {Path(str(hit.uri)).name}"
        match = None if hit.box is None else opened.here(hit.box)
        shown.append(Shown(opened.rgb, [opened.here(box) for box in stored], match, caption))
    return shown, maps


def _query(
    searcher: SoirSearcher, query: Query, box: Box | None
) -> tuple[str, LoadedImage | None, Box | None]:
    """What to call the query; its image, None for words or a vector; and the box in that."""
    if as_vector(query) is not None:
        return "a vector", None, None
    if isinstance(query, Text):
        return query.words, None, None
    if isinstance(query, Composed):
        name, image, place = _query(searcher, query.image, box)
        return f"{name}, {query.words}", image, place
    image, box = open_query(query, box, searcher.max_pixels)
    return Path(image.name).name, image, box


def _meant(image: LoadedImage, box: Box | None) -> RGB:
    """The part of the image that is searched for."""
    if box is None:
        return image.rgb
    x0, y0, x1, y1 = (round(v) for v in box)
    return image.rgb[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _around(image: RGB, weights: np.ndarray, box: Box) -> RGB:
    """The heat laid over the surroundings of a box, [SIDE, SIDE, 3]."""
    import cv2

    height, width = weights.shape
    side = min(round(2 * max(box[2] - box[0], box[3] - box[1])) + 2, height, width)
    x = round(min(max((box[0] + box[2] - side) / 2, 0), width - side))
    y = round(min(max((box[1] + box[3] - side) / 2, 0), height - side))
    cut = (slice(y, y + side), slice(x, x + side))
    size = (SIDE, SIDE)
    return heat(cv2.resize(image[cut], size), cv2.resize(weights[cut], size))
