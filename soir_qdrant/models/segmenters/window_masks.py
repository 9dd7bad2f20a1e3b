"""Masks out of what a network says of the windows around boxes, wherever that network runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Segmenter
from soir_qdrant.models.segmenters.windows import Array, Window, around, in_box, likely, window
from soir_qdrant.types import RGB, Box, Mask


class WindowSegmenter(Segmenter):
    """A mask for each box, by a network that reads windows and tokens.

    Detected boxes take their tokens from those of the whole image, which the detector has computed; other boxes, such
    as a query's, are looked at alone, smaller.
    """

    name = "learned"

    @abstractmethod
    def window_chances(self, image: RGB, boxes: list[Box], windows: list[Window], *, alone: bool) -> Array:
        """The chance of each pixel of k windows to be the object's, float32 [k, side, side].

        Args:
            image: uint8 [H, W, 3].
            boxes: k of them, x0, y0, x1, y1 in pixels.
            windows: theirs; see `windows.window`.
            alone: whether the tokens are those of the windows, else of the whole image.
        """

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        return [
            in_box(pieces, box, at, image.shape)
            for box, at, pieces in self._windows(image, boxes, alone=True)
        ]

    def refine_boxes(
        self, image: RGB, boxes: NDArray[np.floating], *, alone: bool = False
    ) -> list[tuple[Box, Mask | None]]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        refined: list[tuple[Box, Mask | None]] = []
        for box, at, pieces in self._windows(image, boxes, alone=alone):
            moved = around(pieces, box, at, image.shape)
            refined.append((moved, in_box(pieces, moved, at, image.shape)))
        return refined

    def _windows(
        self, image: RGB, boxes: NDArray[np.floating], *, alone: bool
    ) -> Iterator[tuple[Box, Window, Mask]]:
        """Of each box: itself, its window, and what of that is its object's, as `likely` has it."""
        if not len(boxes):
            return
        corners = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]
        windows = [window(box, image.shape) for box in corners]
        chances = self.window_chances(image, corners, windows, alone=alone)
        for box, at, chance in zip(corners, windows, chances, strict=True):
            yield box, at, likely(chance, at[2])
