"""What a small detector of everyday things (the 80 kinds of COCO) says of an image, beside the trained head.

It knows chairs, cups and plants as wholes, of which the head, learnt on few photographs, often boxes a part.
DEIMv2-Femto (arXiv 2509.20787), in onnxruntime: docs/concepts/detector.md, docs/reference/weights.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import Floats
from soir_qdrant.geometry.resize import resized
from soir_qdrant.models.cache import digest_of
from soir_qdrant.models.compatibility import DATA
from soir_qdrant.types import RGB

FILE = DATA / "everyday.onnx"
OUTPUTS = ("boxes", "scores")  # [B, n, 4] as shares of the sides, [B, n]
SIDE = 416  # pixels of the square that it sees
QUARTER = 5 / 9  # of an image's sides, so that quarters overlap by a fifth of theirs
MARGIN = 0.01  # of a quarter's longer side: what lies so near to an edge within the image goes on beyond it
POWER, OF_QUARTERS = 0.65, 0.8  # of its scores, which are lower than the head's where as many boxes are right


def say(image: RGB) -> tuple[Floats, Floats]:
    """Scores [n], 0..1, and boxes [n, 4] in pixels of an image, uint8 [H, W, 3]; a tenth of a core-second.

    Raises ConfigError where onnxruntime is missing.
    """
    return named(dict(zip(OUTPUTS, session().run(OUTPUTS, {"images": looks(image)}), strict=True)), image)


@cache
def session() -> Any:
    """The network, loaded once. Raises ConfigError where onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "the detector of everyday things needs onnxruntime: pip install 'soir-qdrant[embedded]', or do without it: "
            '{"detector": {"everyday": false}}'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # more gain nothing on so small a network, and do not survive a fork
    return onnxruntime.InferenceSession(str(FILE), options, providers=["CPUExecutionProvider"])


@cache
def fingerprint() -> str:
    """Of the network, as an export carries it."""
    return f"everyday@{digest_of([FILE])[:12]}"


def looks(image: RGB) -> NDArray[np.uint8]:
    """What it sees: the image and its quarters, their sides made equal, uint8 [B, SIDE, SIDE, 3]."""
    windows = _windows(image).astype(int).tolist()
    return np.stack([resized(image[y0:y1, x0:x1], SIDE, SIDE) for x0, y0, x1, y1 in windows])


def named(answer: Mapping[str, NDArray[Any]], image: RGB) -> tuple[Floats, Floats]:
    """Its `OUTPUTS` on the `looks` at an image, as the head would say it: scores [n] and boxes [n, 4]."""
    windows = _windows(image)
    sides = windows[:, 2:] - windows[:, :2]
    boxes = answer["boxes"] * np.tile(sides, 2)[:, None] + np.tile(windows[:, :2], 2)[:, None]
    scores = np.clip(answer["scores"], 0, 1)
    scores = np.concatenate([scores[:1] ** POWER, scores[1:] ** OF_QUARTERS])
    near = MARGIN * sides.max(1)[:, None, None]
    inner = (windows > 0) & (windows < np.tile(image.shape[1::-1], 2))  # edges within the image
    cut = (inner[:, None] & (np.abs(boxes - windows[:, None]) < near)).any(2)
    return scores[~cut].astype(np.float32), boxes[~cut].astype(np.float32)


def _windows(image: RGB) -> NDArray[np.float64]:
    """x0, y0, x1, y1 in whole pixels [B, 4]: the image, and quarters of one that is larger than the square it sees."""
    height, width = image.shape[:2]
    if max(height, width) <= SIDE:
        return np.array([[0.0, 0, width, height]])
    w, h = np.ceil(QUARTER * width), np.ceil(QUARTER * height)
    return np.array(
        [[0, 0, width, height], *([x, y, x + w, y + h] for y in (0, height - h) for x in (0, width - w))]
    )
