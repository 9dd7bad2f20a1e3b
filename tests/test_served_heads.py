"""Trained heads that are served whole, patches, and whole scenes: the same objects, vectors and points as here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import stored
from models import tiny_encoder
from qdrant_client import QdrantClient
from test_serving import CROPS, MASKS, picture, same

from soir_qdrant.components import Components
from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import load
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.qdrant.payload import unpack_patches
from soir_qdrant.search.searcher import SoirSearcher
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
    MaskHead(24, (8, 8, 8, 8)).save(folder / "segmenter.safetensors", fitted_for)
    settings = Settings().but(
        encoder={"weights": weights, "adapter": None, "input_size": 48, "dtype": "float32", "device": "cpu"},
        detector={"head": str(folder / "detector.safetensors"), "max_objects": 5, "threshold": 0.01},
        segmenter={"head": str(folder / "segmenter.safetensors")},
        vector={"whitening": None},
    )
    return settings.but(vector={"whitening": whitening(settings, folder / "whitening.safetensors", seed=0)})


def whitening(settings, file, seed):
    """Random directions, as if they had been fitted for this encoder."""
    parts = Components(settings)
    matrix = np.random.default_rng(seed).normal(size=(parts.dim, 64)).astype(np.float32)
    mean, variance = np.zeros(parts.dim, np.float32), np.ones(64, np.float32)
    Whitening(mean, matrix, variance, parts.whitened).save(file)
    return str(file)


@pytest.fixture(scope="module")
def exported(settings, tmp_path_factory):
    from soir_qdrant.serving.export import export

    folder = tmp_path_factory.mktemp("models")
    export(settings, folder, scene=True)
    return folder


@pytest.fixture(scope="module")
def scenes(settings):
    from soir_qdrant.pipeline import Pipeline

    return Pipeline(settings).scenes([load(image) for image in IMAGES])


@pytest.fixture(scope="module")
def runtime(exported, tmp_path_factory):
    """A real Triton that serves them."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: the extra triton has it")
    from tritonserver import NoTriton, Triton

    from soir_qdrant.serving.triton import TritonRuntime

    try:
        server = Triton(exported, tmp_path_factory.mktemp("triton") / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    runtime = TritonRuntime(server.url)
    yield runtime
    runtime.close()
    server.kill()


def wire(runtime):
    """Bytes since the start."""
    return runtime.connection.sent + runtime.connection.received


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


def points(pipeline):
    """A collection of the images, and what is stored of each: ids, payloads, and vectors in the order of the ids."""
    client = QdrantClient(":memory:")
    SoirIngestor(client, "images", pipeline=pipeline).add(IMAGES)
    records, _ = client.scroll("images", limit=10, with_vectors=True)
    return client, stored(client), np.array([r.vector for r in sorted(records, key=lambda r: str(r.id))])


def same_points(client, expected):
    """The same vectors, patches and recipe, and either pipeline goes on with the collection of the other."""
    (_, payloads, vectors), (_, theirs, others) = client, expected
    same(vectors, others)
    assert payloads.keys() == theirs.keys()
    for key, payload in payloads.items():
        mine, other = payload["soir"], theirs[key]["soir"]
        assert (mine["encoder"], mine["recipe"]) == (other["encoder"], other["recipe"])
        assert len(mine["patches"]) == len(mine["objects"]) > 1
        for one, two in zip(mine["patches"], other["patches"], strict=True):
            signs = unpack_patches(one, 64) * unpack_patches(two, 64) > 0
            assert signs.mean() > 0.99  # a number next to zero turns here and there


@pytest.mark.parametrize("background", ["grey", "drop"])
def test_the_patches_of_an_object_are_those_of_here(settings, exported, background):
    """Where a crop's background is left out, its patches lie at their places all the same."""
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.onnx import OnnxRuntime

    chosen = settings.but(crop={"background": background})
    here, served = Pipeline(chosen), OnnxRuntime(exported).pipeline(chosen)
    masks = (np.arange(48) < 30) * MASKS[:5]
    (_, expected), (_, rows) = (each._encode(CROPS[:5], masks, True) for each in (here, served))
    for one, two in zip(rows, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=0.01)
    for one, two in zip(served.patches(CROPS[:5], masks), expected, strict=True):
        np.testing.assert_allclose(one, two, atol=0.01)


def test_onnx_stores_the_same_points_and_orders_hits_alike(settings, exported):
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.onnx import OnnxRuntime

    here, served = Pipeline(settings), OnnxRuntime(exported).pipeline(settings)
    assert (here.fingerprint, here.recipe) == (served.fingerprint, served.recipe)
    expected, client = points(here), points(served)
    same_points(client, expected)
    query = {"query": IMAGES[1], "box": (40.0, 30.0, 200.0, 210.0)}
    hits, others = (
        SoirSearcher(each[0], "images", pipeline=pipeline).search(**query)
        for each, pipeline in ((expected, here), (client, served))
    )
    assert [hit.id for hit in hits] == [hit.id for hit in others]
    np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in others], atol=0.02)
    by_codes = SoirSearcher(expected[0], "images", pipeline=served).search(**query, rerank="codes")
    assert [hit.score for hit in by_codes] != [hit.score for hit in hits]


def test_an_export_without_patches_goes_on_as_it_did(settings, exported, tmp_path, caplog):
    """Of a version before 0.2, or of settings without a whitening: its spec is the one of then."""
    from soir_qdrant.serving import spec
    from soir_qdrant.serving.export import export
    from soir_qdrant.serving.onnx import OnnxRuntime

    export(settings.but(vector={"whitening": None}), tmp_path)
    before = spec.encoder(size=48, patch=8, dim=24, dim_out=24)
    assert "rows" not in [tensor.name for tensor in before.outputs]
    runtime = OnnxRuntime(tmp_path)
    assert runtime.session(spec.ENCODER).spec == before
    pipeline = runtime.pipeline(settings)
    assert "export it again" in caplog.text
    payloads = points(pipeline)[1]
    assert all("patches" not in payload["soir"] for payload in payloads.values())
    of_trunk = pipeline.patches(CROPS[:2], MASKS[:2])  # what `object_patches=True` stores
    of_graph = OnnxRuntime(exported).pipeline(settings).patches(CROPS[:2], MASKS[:2])
    for one, two in zip(of_trunk, of_graph, strict=True):
        np.testing.assert_allclose(one, two, atol=0.01)


def test_patches_of_another_whitening_are_not_taken(settings, exported, tmp_path, caplog):
    from soir_qdrant.serving.onnx import OnnxRuntime

    other = whitening(settings.but(vector={"whitening": None}), tmp_path / "other.safetensors", seed=1)
    changed = settings.but(vector={"whitening": other})
    pipeline = OnnxRuntime(exported).pipeline(changed)
    assert not pipeline.has_patches
    assert "export it again" in caplog.text
    caplog.clear()
    assert OnnxRuntime(exported).pipeline(settings).has_patches
    assert not caplog.text


def test_triton_describes_whole_images(settings, runtime, scenes, caplog):
    """One request an image: its file there, objects and vectors back."""
    from soir_qdrant.serving.scene import ScenePipeline

    pipeline, images, start = runtime.pipeline(settings), [load(image) for image in IMAGES], wire(runtime)
    assert isinstance(pipeline, ScenePipeline)
    same_scenes(pipeline.scenes(images), scenes)
    whole = wire(runtime) - start

    changed = settings.but(detector={"max_objects": 4})  # not what the scenes were exported for
    assert not isinstance(runtime.pipeline(changed), ScenePipeline)
    assert "exported for other settings" in caplog.text
    same_scenes(super(ScenePipeline, pipeline).scenes(images), scenes)
    assert wire(runtime) - start - whole > 5 * whole


def test_triton_stores_the_same_points(settings, runtime):
    """By whole images, and model by model."""
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime

    expected = points(Pipeline(settings))
    same_points(points(runtime.pipeline(settings)), expected)
    same_points(points(Runtime.pipeline(runtime, settings)), expected)


def test_who_asks_for_no_patches_gets_none(settings, runtime):
    encoder = runtime.make_encoder(settings)
    starts = [wire(runtime)]
    for asked in (False, True):
        encoding = encoder.encode(CROPS[:5], MASKS[:5], with_patches=asked)
        assert (encoding.patches is not None) == asked
        starts.append(wire(runtime))
    without, with_patches = np.diff(starts)
    assert with_patches - without == 5 * 36 * 64 * 2  # crops, patches, numbers, bytes

    pipeline, images = runtime.pipeline(settings), [load(image) for image in IMAGES]
    starts = [wire(runtime)]
    for asked in (False, True):
        scenes = pipeline.scenes(images, patches=asked)
        assert (scenes[0].patches is not None) == asked
        starts.append(wire(runtime))
    without, with_patches = np.diff(starts)
    rows = [len(one) for scene in scenes for one in scene.patches]
    assert with_patches - without == 8 * sum(rows) + 8 * len(rows)  # a bit a number, and their counts
