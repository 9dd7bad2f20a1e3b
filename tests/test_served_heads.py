"""Trained heads that are served whole, and whole scenes: the same objects and vectors as here."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_encoder
from PIL import Image
from test_serving import picture, same

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import load
from soir_qdrant.serving.check_images import DEMO
from soir_qdrant.types import SceneObject

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
pytestmark = pytest.mark.slow

# Blotches of 10 x 10 pixels, large enough for several tiles.
IMAGES = [np.kron(picture(i), np.ones((5, 5, 1), np.uint8)) for i in range(3)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A tiny encoder, and tiny heads with random weights that were "trained" for it."""
    from soir_qdrant.models.compatibility import trunk
    from soir_qdrant.models.encoders.vit import ViTEncoder
    from soir_qdrant.models.heads.boxes import Head
    from soir_qdrant.models.heads.masks import MaskHead

    folder = tmp_path_factory.mktemp("heads")
    weights = str(tiny_encoder(folder / "vit"))
    fitted_for = trunk(ViTEncoder(weights, input_size=48).fingerprint)
    torch.manual_seed(0)
    head = Head(24, (8, 8, 8))
    for out in head.out:
        torch.nn.init.normal_(out.weight[:1], std=0.5)  # scores; boxes about as large as each other
        torch.nn.init.normal_(out.weight[1:], std=0.1)
    head.save(folder / "detector.safetensors", fitted_for)
    MaskHead(24, (8, 8, 8)).save(folder / "segmenter.safetensors", fitted_for)
    return Settings().but(
        encoder={"weights": weights, "adapter": None, "input_size": 48, "dtype": "float32", "device": "cpu"},
        detector={
            "head": str(folder / "detector.safetensors"),
            "max_objects": 5,
            "threshold": 0.01,
            "everyday": True,
        },
        segmenter={"head": str(folder / "segmenter.safetensors")},
        vector={"whitening": None},
    )


@pytest.fixture(scope="module")
def scenes(settings):
    from soir_qdrant.pipeline import Pipeline

    return Pipeline(settings).scenes([load(image) for image in IMAGES])


def same_scenes(scenes, expected):
    for one, other in zip(scenes, expected, strict=True):
        assert len(one.objects) == len(other.objects) > 1
        for a, b in zip(one.objects, other.objects, strict=True):
            np.testing.assert_allclose(a.box, b.box, atol=1)
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert a.mask is not None
            assert abs(a.mask.mean() - b.mask.mean()) < 0.02
        same(one.object_vectors, other.object_vectors)
        same(one.vector, other.vector)


def test_heads_in_the_graphs(settings, exported, scenes):
    from soir_qdrant.serving.onnx import OnnxRuntime

    pipeline = OnnxRuntime(exported).pipeline(settings)
    assert pipeline.detector.name == "embedded"
    images = [load(image) for image in IMAGES]
    same_scenes(pipeline.scenes(images), scenes)
    boxes = [[SceneObject((40.0, 30.0, 200.0, 210.0)), SceneObject((220.0, 10.0, 300.0, 90.0))]] * 3
    from soir_qdrant.pipeline import Pipeline

    same_scenes(pipeline.scenes(images, boxes), Pipeline(settings).scenes(images, boxes))


def test_the_served_head_looks_at_several_areas_too(settings, exported):
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.onnx import OnnxRuntime

    twice = settings.but(detector={"scales": (1.0, 0.4)})
    images = [load(image) for image in IMAGES]
    expected = Pipeline(twice).scenes(images)
    same_scenes(OnnxRuntime(exported).pipeline(twice).scenes(images), expected)
    once = [item.box for scene in Pipeline(settings).scenes(images) for item in scene.objects]
    assert once != [item.box for scene in expected for item in scene.objects]


def test_the_detector_of_everyday_things_is_served_too(settings, exported):
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.onnx import OnnxRuntime

    chosen = settings.but(detector={"threshold": 0.3, "max_objects": 100})
    images = [load(DEMO / "gallery" / "fridge-01.jpg").rgb]
    (served,) = OnnxRuntime(exported).pipeline(chosen).detector.detect(images)
    (here,) = Pipeline(chosen).detector.detect(images)
    (without,) = Pipeline(chosen.but(detector={"everyday": False})).detector.detect(images)
    assert not np.allclose(here.scores, without.scores)
    np.testing.assert_allclose(served.boxes, here.boxes, atol=1)
    np.testing.assert_allclose(served.scores, here.scores, atol=1e-4)


def test_another_head_than_the_served_one_is_refused(settings, exported, tmp_path):
    from soir_qdrant.models.heads.masks import MaskHead
    from soir_qdrant.serving.onnx import OnnxRuntime

    other = MaskHead.load(settings.segmenter.head)
    other.save(tmp_path / "other.safetensors", other.fitted_for)
    with torch.no_grad():
        other.out.bias += 1
    other.save(tmp_path / "other.safetensors", other.fitted_for)
    with pytest.raises(ConfigError, match="soir_segmenter was exported with the trained head"):
        OnnxRuntime(exported).pipeline(settings.but(segmenter={"head": str(tmp_path / "other.safetensors")}))


def test_triton_describes_whole_images(settings, exported, scenes, tmp_path, caplog):
    """One request an image: its file there, objects and vectors back."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: the extra triton has it")
    from tritonserver import NoTriton, Triton

    from soir_qdrant.serving.scene import ScenePipeline
    from soir_qdrant.serving.triton import TritonRuntime

    try:
        server = Triton(exported, tmp_path / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    try:
        runtime = TritonRuntime(server.url)
        pipeline = runtime.pipeline(settings)
        assert isinstance(pipeline, ScenePipeline)
        images = [load(image) for image in IMAGES]
        same_scenes(pipeline.scenes(images), scenes)
        whole = runtime.connection.sent + runtime.connection.received
        cut_off = io.BytesIO()
        Image.fromarray(IMAGES[0]).save(cut_off, "JPEG")
        damaged = replace(images[0], name="room.jpg", data=cut_off.getvalue()[:500])
        with pytest.raises(ImageError, match=r"room\.jpg: .*damaged or cut off"):
            pipeline.scenes([damaged])

        other = runtime.pipeline(
            settings.but(detector={"max_objects": 4})
        )  # not what the scenes were exported for
        assert not isinstance(other, ScenePipeline)
        assert "exported for other settings" in caplog.text
        same_scenes(super(ScenePipeline, pipeline).scenes(images), scenes)
        assert runtime.connection.sent + runtime.connection.received > 5 * whole
        runtime.close()
    finally:
        server.kill()
