"""Which features of whole images detector and segmenter read, and the size at which images are looked at."""

from __future__ import annotations

import math

import cv2

from soir_qdrant.geometry.resize import resized
from soir_qdrant.types import RGB

LAYER = -4  # blocks, counted from the last: these features tell objects from their surroundings best
AFTER = -1 - LAYER  # blocks that follow
MAX_ENLARGED = 4.0


def gridded(image: RGB, cell: int, area: int, max_cells: int | None = None) -> tuple[RGB, tuple[int, int]]:
    """The image at about this area in whole cells, and how many of them: width, height. max_cells: along a side; a
    panorama beyond them is looked at smaller."""
    fit = sized(image.shape[0], image.shape[1], area)
    width, height = (min(max(1, round(side / cell)), max_cells or area) for side in fit)
    return resized(image, width * cell, height * cell, cv2.INTER_AREA), (width, height)


def sized(height: int, width: int, area: int) -> tuple[int, int]:
    """Width and height of the image at about this area, enlarged no more than `MAX_ENLARGED` times."""
    scale = min(math.sqrt(area / (height * width)), MAX_ENLARGED)
    return min(max(1, round(width * scale)), area), min(max(1, round(height * scale)), area)
