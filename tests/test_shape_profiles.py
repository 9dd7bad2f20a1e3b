"""What clients send to trained heads lies within the shapes that TensorRT's engines are built for."""

from __future__ import annotations

import numpy as np
import pytest

from soir_qdrant.contracts import FeatureSource
from soir_qdrant.serving import spec
from soir_qdrant.serving.served import ServedTrunk
from soir_qdrant.serving.served_detector import ServedDetector
from soir_qdrant.serving.served_masks import ServedMasks

SHAPES = [(400, 600), (8, 8), (3, 4000), (4000, 3), (100, 3000), (60, 2400), (1080, 1920)]


class Engine:
    """A session that takes what an engine of the model's shape profile takes, and answers zeros."""

    fingerprint = "weights@1"

    def __init__(self, model: spec.ModelSpec) -> None:
        self.spec, self.requests = model, 0

    def run(self, inputs, outputs):
        self.requests += 1
        for tensor in self.spec.inputs:
            shape = inputs[tensor.name].shape[1 if self.spec.max_batch else 0 :]
            low, high = tensor.at("min"), tensor.at("max")
            fits = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            assert fits, f"{tensor.name}: {shape}, not within {low} and {high}"
        return self.zeros(inputs)

    def zeros(self, inputs):
        if self.spec.kind == "tokens":
            n, height, width, _ = inputs["images"].shape
            return {"tokens": np.zeros((n, (height // 14) * (width // 14), 384), np.float32)}
        if self.spec.kind == "token_unet":
            return {"chances": np.zeros((*inputs["windows"].shape[:2], 96, 96), np.float32)}
        return {"boxes": np.zeros((1000, 4), np.float32), "scores": np.zeros(1000, np.float32)}

    def each(self, action, items):
        return [action(item) for item in items]


@pytest.fixture
def trunk() -> FeatureSource:
    return ServedTrunk(Engine(spec.tokens(patch=14, dim=384, skip=2)))


def boxes(shape, count: int):
    """Boxes all over an image, float64 [count, 4]."""
    corners = np.random.default_rng(0).random((count, 2)) * 0.8
    return np.hstack([corners, corners + 0.2]) * np.tile(shape[1::-1], 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windows_around_boxes(trunk, shape):
    image = np.zeros((*shape, 3), np.uint8)
    segmenter = ServedMasks(Engine(spec.token_unet(dim=384, side=96)), trunk)
    assert len(segmenter.segment(image, boxes(shape, 3))) == 3
    for alone in (False, True):
        assert len(segmenter.refine_boxes(image, boxes(shape, 3), alone=alone)) == 3


def test_windows_of_one_grid_share_a_request(trunk):
    engine = Engine(spec.token_unet(dim=384, side=96))
    count = spec.MAX_WINDOWS + 1
    ServedMasks(engine, trunk).refine_boxes(np.zeros((40, 60, 3), np.uint8), boxes((40, 60), count))
    assert engine.requests == 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_the_detector(shape):
    engine = Engine(spec.token_head(patch=14, dim=384))
    ServedDetector(engine).detect([np.zeros((*shape, 3), np.uint8)])
    assert engine.requests == 1
