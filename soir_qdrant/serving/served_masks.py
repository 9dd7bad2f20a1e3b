"""The trained segmenter on a served model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import FeatureSource
from soir_qdrant.geometry.resize import Halves
from soir_qdrant.models.segmenters.window_masks import WindowSegmenter
from soir_qdrant.models.segmenters.windows import FEW_CELLS, Array, Window, window_image, window_tokens
from soir_qdrant.models.token_grid import AREA, tiled_grid
from soir_qdrant.serving.session import Session, of_kind
from soir_qdrant.serving.spec import MAX_CELLS, MAX_WINDOWS
from soir_qdrant.types import RGB, Box

CELL = 8  # pixels of a window along a token
WHOLE = (0.0, 0.0, 1.0, 1.0)  # of a grid that is the window's own


class ServedMasks(WindowSegmenter):
    """`contracts.Segmenter`: the trained head, served. source: the trunk whose tokens it reads."""

    name = "embedded"

    def __init__(self, session: Session, source: FeatureSource) -> None:
        self.side = of_kind(session, "token_unet").fact("side")
        self._session, self._source = session, source
        self.fingerprint = session.fingerprint

    def window_chances(self, image: RGB, boxes: list[Box], windows: list[Window], *, alone: bool) -> Array:
        """See `WindowSegmenter`. A request is one grid of tokens, with its windows."""
        at = np.array(windows, np.float64)
        scale = self.side / at[:, 2:]
        inside = (np.array(boxes, np.float64).reshape(-1, 2, 2) - at[:, None, :2]) * scale[:, None]
        if alone:
            tokens, places = self._own(image, windows), np.tile(np.array(WHOLE), (len(boxes), 1))
        else:
            tokens = tiled_grid(self._source, image, AREA, max_cells=MAX_CELLS)[None]
            places = at[:, [0, 1, 2, 2]] / np.array([image.shape[1], image.shape[0]] * 2)
        halves = Halves(image)
        rows: dict[str, NDArray[Any]] = {
            "windows": np.stack([window_image(halves, each, self.side) for each in windows]),
            "places": places.astype(np.float32),
            "boxes": inside.reshape(-1, 4).astype(np.float32),
        }

        def run(part: slice) -> NDArray[Any]:
            inputs = {"tokens": tokens[part] if alone else tokens}
            inputs |= {name: values[None, part] for name, values in rows.items()}
            return self._session.run(inputs, ["chances"])["chances"]

        step = 1 if alone else MAX_WINDOWS
        parts = [slice(i, i + step) for i in range(0, len(boxes), step)]
        return np.asarray(np.concatenate(self._session.each(run, parts), axis=1)[0], np.float32)

    def _own(self, image: RGB, windows: list[Window]) -> Array:
        """The tokens of windows that are looked at alone, float32 [k, n, n, D]."""
        tokens = window_tokens(self._source, [image] * len(windows), windows, FEW_CELLS)
        return tokens.reshape(len(windows), FEW_CELLS, FEW_CELLS, -1)
