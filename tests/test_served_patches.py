"""Patches of late interaction through ONNX and Triton: the points, and the order of the hits, that torch here has."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import stored
from models import tiny_encoder
from qdrant_client import QdrantClient
from test_serving import CROPS, MASKS, picture, same

from soir_qdrant.components import Components
from soir_qdrant.config import Settings
from soir_qdrant.geometry.crops import Crops
from soir_qdrant.images import load
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.qdrant.payload import unpack_patches
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.serving import spec
from soir_qdrant.serving.runtime import Runtime
from soir_qdrant.serving.scene import ScenePipeline, packed, unpacked
from soir_qdrant.types import SceneObject

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
from soir_qdrant.serving.onnx import OnnxRuntime

pytestmark = pytest.mark.slow
IMAGES = [np.kron(picture(i), np.ones((5, 5, 1), np.uint8)) for i in range(3)]
BOXES = [(40.0, 30.0, 200.0, 210.0), (220.0, 10.0, 300.0, 90.0)]
QUERY = {"query": IMAGES[1], "box": BOXES[0]}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Settings of a tiny encoder, without a whitening."""
    weights = tiny_encoder(tmp_path_factory.mktemp("weights"))
    return Settings().but(
        encoder={
            "weights": str(weights),
            "adapter": None,
            "input_size": 48,
            "dtype": "float32",
            "device": "cpu",
        },
        detector={"kind": "none"},
        segmenter={"kind": "box"},
        vector={"whitening": None},
    )


def whitened(settings, file, seed=0):
    """The settings with a whitening of random directions, as if it had been fitted for their encoder."""
    parts = Components(settings)
    matrix = np.random.default_rng(seed).normal(size=(parts.dim, 64)).astype(np.float32)
    mean, variance = np.zeros(parts.dim, np.float32), np.ones(64, np.float32)
    Whitening(mean, matrix, variance, parts.whitened).save(file)
    return settings.but(vector={"whitening": str(file)})


@pytest.fixture(scope="module")
def settings(bare, tmp_path_factory):
    return whitened(bare, tmp_path_factory.mktemp("whitening") / "whitening.safetensors")


@pytest.fixture(scope="module")
def triton(exported, tmp_path_factory):
    """A runtime on a real Triton."""
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


def filled(pipeline, objects=None):
    client = QdrantClient(":memory:")
    report = SoirIngestor(client, "images", pipeline=pipeline).add(IMAGES, objects=objects)
    assert report.added == 3
    return client


def same_points(client, expected):
    """The same vectors, patches and recipe: either pipeline goes on with the collection of the other."""
    payloads, others = stored(client), stored(expected)
    assert payloads.keys() == others.keys()
    for key, payload in payloads.items():
        mine, other = payload["soir"], others[key]["soir"]
        assert (mine["encoder"], mine["recipe"]) == (other["encoder"], other["recipe"])
        assert len(mine["patches"]) == len(mine["objects"])
        for one, two in zip(mine["patches"], other["patches"], strict=True):
            signs = unpack_patches(one, 64) * unpack_patches(two, 64) > 0
            assert signs.mean() > 0.99  # a number next to zero turns here and there
    vectors = []
    for each in (client, expected):
        records, _ = each.scroll("images", with_vectors=True)
        vectors.append(np.array([record.vector for record in sorted(records, key=lambda r: str(r.id))]))
    same(*vectors)


def check(served, here):
    """Objects of the user's own, and whole images; and a search by either."""
    assert (served.fingerprint, served.recipe) == (here.fingerprint, here.recipe)
    same_points(filled(served), filled(here))
    objects = [[SceneObject(box) for box in BOXES]] * 3
    client, expected = filled(served, objects), filled(here, objects)
    same_points(client, expected)
    hits, others = (
        SoirSearcher(each, "images", pipeline=pipeline).search(**QUERY)
        for each, pipeline in ((expected, here), (client, served))
    )
    assert [(hit.id, hit.box) for hit in hits] == [(hit.id, hit.box) for hit in others]
    np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in others], atol=0.01)
    by_codes = SoirSearcher(client, "images", pipeline=served).search(**QUERY, rerank="codes")
    assert [hit.score for hit in by_codes] != [hit.score for hit in others]


def test_onnx_stores_the_same_points_and_orders_hits_alike(settings, exported):
    check(OnnxRuntime(exported).pipeline(settings), Pipeline(settings))


@pytest.mark.parametrize("background", ["grey", "drop"])
def test_the_patches_of_an_object_are_those_of_here(settings, exported, background):
    """Where a crop's background is left out, its patches lie at their places all the same."""
    chosen = settings.but(crop={"background": background})
    here, served = Pipeline(chosen), OnnxRuntime(exported).pipeline(chosen)
    crops = Crops(CROPS[:5], (np.arange(48) < 30) * MASKS[:5])
    expected = here._encode(crops, True)[1]
    for rows in (served._encode(crops, True)[1], served.patches(crops)):
        for one, two in zip(rows, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=0.001)


def test_patches_of_a_scene_travel_as_bits(settings):
    image = load(IMAGES[0])
    objects = [[SceneObject(box) for box in BOXES]]
    (scene,) = Pipeline(settings).scenes([image], objects, patches=True)
    answer = packed(scene)
    assert answer["patches"].nbytes == 8 * answer["counts"].sum()
    for one, two in zip(unpacked(answer, image).patches, scene.patches, strict=True):
        assert ((one > 0) == (two > 0)).all()


def test_the_text_of_a_scene_travels_with_its_objects(settings):
    image = load(IMAGES[0])
    objects = [[SceneObject(box, text=text) for box, text in zip(BOXES, ("Süß 甘", None), strict=True)]]
    (scene,) = Pipeline(settings).scenes([image], objects)
    there = unpacked(packed(replace(scene, text="on no object")), image)
    assert there.text == "on no object"
    assert [item.text for item in there.objects] == [item.text for item in scene.objects]
    assert "Süß 甘" in {item.text for item in there.objects}


def test_triton_stores_the_same_points_and_orders_hits_alike(settings, triton):
    """By whole images in one request, and model by model."""
    here, whole = Pipeline(settings), triton.pipeline(settings)
    assert isinstance(whole, ScenePipeline)
    check(whole, here)
    check(Runtime.pipeline(triton, settings), here)


def test_who_asks_for_no_patches_gets_none(settings, triton):
    encoder, pipeline = triton.make_encoder(settings), triton.pipeline(settings)
    image = load(IMAGES[0])

    def wire(run):
        before = triton.connection.sent + triton.connection.received
        answer = run()
        return triton.connection.sent + triton.connection.received - before, answer

    without, encoding = wire(lambda: encoder.encode(CROPS[:5], MASKS[:5]))
    with_patches, _ = wire(lambda: encoder.encode(CROPS[:5], MASKS[:5], with_patches=True))
    assert encoding.patches is None
    assert with_patches - without == 5 * 36 * 64 * 2  # crops, patches, numbers, bytes
    without, (scene,) = wire(lambda: pipeline.scenes([image]))
    with_patches, (described,) = wire(lambda: pipeline.scenes([image], patches=True))
    assert scene.patches is None
    assert (
        with_patches - without == 8 * len(described.patches[0]) + 8
    )  # a bit a number, and how many there are


def test_an_export_without_patches_goes_on_as_it_did(settings, exported, tmp_path, caplog):
    """Of settings without a whitening, or of an earlier version: its spec is the one of then."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: the extra export has it")
    before = spec.encoder(size=48, patch=8, dim=24, dim_out=24)
    fingerprint = OnnxRuntime(exported).session(spec.ENCODER).fingerprint
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    file = tmp_path / spec.ENCODER / "1" / "model.onnx"
    model = onnx.load(str(file))
    assert model.graph.output.pop().name == "rows"
    onnx.helper.set_model_props(model, spec.describe(before, fingerprint))
    onnx.save(model, str(file))
    assert before.hash == "57ca57d24445bc86"
    assert OnnxRuntime(tmp_path).session(spec.ENCODER).spec == before
    with caplog.at_level(logging.WARNING):
        served = OnnxRuntime(tmp_path).pipeline(settings)
    assert "export it again" in caplog.text
    assert all("patches" not in payload["soir"] for payload in stored(filled(served)).values())


def test_patches_of_another_whitening_are_not_taken(bare, settings, exported, tmp_path, caplog):
    changed = whitened(bare, tmp_path / "other.safetensors", seed=1)
    assert not OnnxRuntime(exported).pipeline(changed).has_patches
    assert "export it again" in caplog.text
    caplog.clear()
    assert OnnxRuntime(exported).pipeline(settings).has_patches
    assert not caplog.text
