"""The trained segmenter on a served model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import FeatureSource
from soir_qdrant.models.segmenters.window_masks import WindowSegmenter
from soir_qdrant.models.segmenters.windows import FEW_CELLS, Array, Window, window_image, window_tokens
from soir_qdrant.models.token_grid import AREA, tiled_grid
from soir_qdrant.serving.session import Session, of_kind
from soir_qdrant.serving.spec import MAX_WINDOWS
from soir_qdrant.types import RGB, Box

CELL = 8  # pixels of a window along a token
WHOLE = (0.0, 0.0, 1.0, 1.0)  # of a grid that is the window's own


class ServedMasks(WindowSegmenter):
    """`contracts.Segmenter`: the trained head, served. source: the trunk whose tokens it reads."""

    name = "embedded"

    def __init__(self, session: Session, source: FeatureSource) -> None:
        model = of_kind(session, "token_unet")
        self._session, self._source = session, source
        self.side, self.reads_alone = model.fact("side"), bool(model.fact("alone"))
        self.fingerprint = session.fingerprint

    def window_chances(self, image: RGB, boxes: list[Box], windows: list[Window], *, alone: bool) -> Array:
        """See `WindowSegmenter`."""
        parts = [slice(i, i + MAX_WINDOWS) for i in range(0, len(boxes), MAX_WINDOWS)]
        answers = self._session.each(
            lambda part: self._part(image, boxes[part], windows[part], alone=alone), parts
        )
        return np.concatenate(answers)

    def _part(self, image: RGB, boxes: list[Box], windows: list[Window], *, alone: bool) -> Array:
        pixels = np.stack([window_image(image, at, self.side) for at in windows])
        at = np.array(windows, np.float64)
        corner, scale = at[:, :2], self.side / at[:, 2:]
        inside = (np.array(boxes, np.float64).reshape(-1, 2, 2) - corner[:, None]) * scale[:, None]
        if alone:
            tokens, places = self._own(image, windows), np.tile(np.array(WHOLE), (len(boxes), 1))
        else:
            tokens = tiled_grid(self._source, image, AREA)[None]
            places = at[:, [0, 1, 2, 2]] / np.array([image.shape[1], image.shape[0]] * 2)
        grids = len(tokens)  # with windows each
        inputs: dict[str, NDArray[Any]] = {
            "tokens": tokens,
            "windows": pixels.reshape(grids, -1, *pixels.shape[1:]),
            "places": places.astype(np.float32).reshape(grids, -1, 4),
            "boxes": inside.astype(np.float32).reshape(grids, -1, 4),
        }
        chances = self._session.run(inputs, ["chances"])["chances"]
        return np.asarray(chances.reshape(-1, self.side, self.side), np.float32)

    def _own(self, image: RGB, windows: list[Window]) -> Array:
        """The tokens of windows that are looked at alone, float32 [k, n, n, D]."""
        cells = self.side // CELL if self.reads_alone else FEW_CELLS
        tokens = window_tokens(self._source, [image] * len(windows), windows, cells)
        return tokens.reshape(len(windows), cells, cells, -1)
