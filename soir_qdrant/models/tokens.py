"""An encoder's tokens of whole images: what detector and segmenter read, wherever the encoder runs."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.types import RGB

SKIP = 2  # blocks before the last: these tell objects from their surroundings best
MAX_ENLARGED = 4.0


@runtime_checkable
class TokenSource(Protocol):
    """What the detector asks of an encoder; one without it is not asked."""

    patch: int

    def tokens(self, images: NDArray[np.uint8], *, skip: int = 0) -> Any:
        """images: uint8 [B, H, W, 3], H and W multiples of `patch`. [B, N, D], the grid at the end of N,
        `skip` blocks before the last, or as many as there are."""
        ...


def tokens_of(source: TokenSource, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tokens `SKIP` blocks before the last, float32 [B, N, D], wherever the encoder runs."""
    found = source.tokens(images, skip=SKIP)
    return np.asarray(found.cpu() if hasattr(found, "cpu") else found, np.float32)


def gridded(image: RGB, cell: int, area: int) -> tuple[RGB, tuple[int, int]]:
    """The image at about this area in whole cells, and how many of them: width, height."""
    fit = sized(image.shape[0], image.shape[1], area)
    width, height = (max(1, round(side / cell)) for side in fit)
    fitted = cv2.resize(image, (width * cell, height * cell), interpolation=cv2.INTER_AREA)
    return np.asarray(fitted, np.uint8), (width, height)


def sized(height: int, width: int, area: int) -> tuple[int, int]:
    """Width and height of the image at about this area, enlarged no more than `MAX_ENLARGED` times."""
    scale = min(math.sqrt(area / (height * width)), MAX_ENLARGED)
    return min(max(1, round(width * scale)), area), min(max(1, round(height * scale)), area)
