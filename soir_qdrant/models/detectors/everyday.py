"""What a small detector of everyday things (the 80 kinds of COCO) says of an image, beside the trained head.

It knows chairs, cups and plants as wholes, of which the head, learnt on few photographs, often boxes a part.
DEIMv2-Femto (arXiv 2509.20787) in onnxruntime: docs/concepts/detector.md, docs/reference/weights.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import Floats
from soir_qdrant.geometry.resize import resized
from soir_qdrant.models.compatibility import DATA
from soir_qdrant.types import RGB

FILE = DATA / "everyday.onnx"
OUTPUTS = ("boxes", "scores")  # [1, n, 4] as shares of the sides, [1, n]
SIDE = 416  # pixels of the square that an image is made to fit
POWER = 0.65  # of its scores, which are lower than the head's where as many boxes are right


def say(image: RGB) -> tuple[Floats, Floats]:
    """Scores [n], 0..1, and boxes [n, 4] in pixels of an image, uint8 [H, W, 3]; a fiftieth of a core-second.

    Raises ConfigError where onnxruntime is missing.
    """
    answer = session().run(OUTPUTS, {"images": squashed(image)[None]})
    return named(dict(zip(OUTPUTS, answer, strict=True)), image)


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
    return f"everyday@{hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]}"


def squashed(image: RGB) -> RGB:
    """What it looks at: the image, its sides made equal."""
    return resized(image, SIDE, SIDE)


def named(answer: Mapping[str, NDArray[Any]], image: RGB) -> tuple[Floats, Floats]:
    """Its `OUTPUTS` on one image, as the head would say it: scores [n] and boxes [n, 4]."""
    boxes, scores = (answer[name][0] for name in OUTPUTS)
    sides = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
    return np.clip(scores, 0, 1) ** np.float32(POWER), boxes * sides
