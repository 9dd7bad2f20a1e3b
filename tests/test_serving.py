"""Exported models: what is written, and that they are the local ones. Those of Triton: see test_triton.py."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_encoder
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant.config import Settings, TokenHeadSettings
from soir_qdrant.contracts import Detector, Encoder, Segmenter
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.geometry.crops import Crops
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.serving import last_block, repository, spec

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
ROOT = Path(__file__).parents[1]
TREES = {"model_repository": "paper", "model_repository_embedded": "embedded"}
CROPS = np.random.default_rng(0).integers(0, 256, (19, 48, 48, 3), np.uint8)
MASKS = np.random.default_rng(1).random((19, 48, 48), np.float32)


class TestRepository:
    @pytest.mark.parametrize("tree", TREES)
    def test_the_checked_in_tree_is_what_the_specs_say(self, tree):
        """After a change of spec or repository: python -m soir_qdrant.serving.repository."""
        expected = {}
        for model in repository.PROFILES[TREES[tree]]:
            expected |= repository.files(model)
        tracked = [f for f in (ROOT / tree).rglob("*") if f.suffix in (".pbtxt", ".py")]
        assert {str(f.relative_to(ROOT / tree)): f.read_text() for f in tracked} == expected

    @pytest.mark.parametrize(
        "model", repository.PROFILES["paper"] + repository.PROFILES["embedded"], ids=lambda m: m.kind
    )
    def test_triton_can_read_them_and_only_the_backend_differs(self, model):
        grpc = pytest.importorskip("tritonclient.grpc", reason="the extra triton is not installed")
        text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf is not installed")
        read = {}
        for variant in repository.FILES:
            text = repository.config(model, variant)
            read[variant] = text_format.Parse(text, grpc.model_config_pb2.ModelConfig())
            for field in ("backend", "default_model_filename", "instance_group", "optimization"):
                read[variant].ClearField(field)
        assert read["ort_trt"] == read["cpu"] == read["ort_cpu"] == read["trt"]

    def test_shape_profiles_name_every_input(self):
        (model,) = (m for m in repository.PROFILES["embedded"] if m.name == "soir_encoder")
        assert repository.profile(model, "max") == "crops:32x224x224x3,patches:32x256,weights:32x256"

    def test_engines_are_of_the_weights_that_they_were_built_from(self, tmp_path):
        """onnxruntime takes an engine for that of any model with the same graph."""
        model = repository.PROFILES["embedded"][0]
        file = tmp_path / model.name / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        configurations = set()
        for weights in (b"one", b"other"):
            file.write_bytes(weights)
            repository.write([model], tmp_path, {model.name: "weights@1"})
            configurations.add((tmp_path / model.name / "config.pbtxt").read_text())
        assert len(configurations) == 2
        assert all(f'"/engines/{model.name}-' in text for text in configurations)

    def test_the_documented_line_removes_engines_that_no_configuration_names(self, tmp_path):
        first, second = repository.PROFILES["embedded"][:2]
        models, engines = tmp_path / "models", tmp_path / "engines"
        file = models / first.name / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
        repository.write([first, second], models, {first.name: "weights@1"})
        current = re.search(
            rf'"/engines/({first.name}-\w+)"', (models / first.name / "config.pbtxt").read_text()
        )[1]
        for name in (current, second.name, f"{first.name}-000000000000", current[:-1]):
            (engines / name).mkdir(parents=True)
            (engines / name / "engine").touch()
        text = (ROOT / "docs" / "how-to" / "production.md").read_text()
        line = re.search(r"exec triton sh -c \\\n +'(.*)'\n", text)[1]
        line = line.replace("cd /engines", f"cd {engines}").replace("/models/", f"{models}/")
        subprocess.run(["sh", "-c", line], check=True)
        assert {folder.name for folder in engines.iterdir()} == {current, second.name}

    @pytest.mark.parametrize("profile", ["paper", "sum-siglip2"])
    def test_scenes_that_cannot_be_served_are_refused_before_anything_is_written(self, profile, tmp_path):
        from soir_qdrant.serving.export import export

        with pytest.raises(ConfigError, match=r"soir_scene .* export without it"):
            export(Settings.for_profile(profile), tmp_path / "models", scene=True)
        assert not (tmp_path / "models").exists()

    def test_trained_files_travel_with_a_scene_and_what_ships_stays_a_name(self, tmp_path):
        from soir_qdrant.serving import scene_server

        head = tmp_path / "mine.safetensors"
        head.write_bytes(b"trained")
        settings = Settings.for_profile("embedded-0.1").but(detector={"head": str(head)})
        file = tmp_path / "models" / scene_server.FILE
        scene_server.save(settings, {}, file)
        there, _ = scene_server.read(file)
        assert Path(there.detector.head).read_bytes() == b"trained"
        assert there == settings.but(detector={"head": str(file.with_name("detector.safetensors"))})

    def test_a_model_of_another_version_is_refused(self):
        model = repository.PROFILES["paper"][0]
        told = spec.describe(model, "weights@1")
        assert spec.read(told, "there") == (model, "weights@1")
        with pytest.raises(ConfigError, match="speaks"):
            spec.read(told | {"soir_spec": "0" * 16}, "there")
        with pytest.raises(ConfigError, match="soir_fingerprint"):
            spec.read(spec.describe(model), "there")

    def test_the_hash_is_of_what_both_sides_must_agree_on(self):
        model = repository.PROFILES["paper"][0]
        assert replace(model, delay_us=1).hash == model.hash
        assert spec.owlv2(size=768, patch=16).hash != model.hash


def test_a_client_of_triton_reads_the_last_block_where_it_was_exported(tmp_path):
    """`soir search --triton host:8001 --models models`, on a machine without the weights."""
    pytest.importorskip("tritonclient.grpc", reason="the extra triton is not installed")
    from soir_qdrant.cli.groups import Models
    from soir_qdrant.models.last_block import LastBlock

    block = LastBlock(2, 1e-6, "gelu", 1, {"norm.weight": torch.ones(4)})
    last_block.save(block, "tiny@1", tmp_path / spec.ENCODER / last_block.FILE)
    runtime = Models(triton="localhost:8001", exports=tmp_path).runtime()
    assert runtime.last_block(Settings(), "tiny@1").dim == 4
    with pytest.raises(WeightsError, match="last block of tiny@1"):
        runtime.last_block(Settings(), "other@1")


@pytest.mark.slow
class TestExport:
    def test_every_model_has_its_files(self, tiny_models):
        for name in (spec.ENCODER, spec.DETECTOR, spec.SEGMENTER_ENCODER, spec.SEGMENTER_DECODER):
            files = {str(f.relative_to(tiny_models / name)) for f in (tiny_models / name).rglob("*.*")}
            assert {"config.pbtxt", "configs/cpu.pbtxt", "1/model.onnx", "1/model.py"} <= files
            script = (tiny_models / name / "1" / "build_plan.sh").read_text()
            assert "--minShapes=" in script
            assert "--maxShapes=" in script

    def test_the_file_says_which_weights_and_which_spec(self, tiny_models, tiny_settings):
        from soir_qdrant.models.encoders.vit import ViTEncoder

        file = tiny_models / "soir_encoder" / "1" / "model.onnx"
        told = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
        held = tiny_settings.encoder
        local = ViTEncoder(held.weights, input_size=held.input_size)
        assert told["soir_fingerprint"] == local.fingerprint
        assert local.fingerprint in (tiny_models / "soir_encoder" / "config.pbtxt").read_text()

    def test_one_that_differs_from_torch_is_refused_and_not_written(self, tiny_settings, tmp_path):
        from soir_qdrant.serving.export import _export, parts

        part = next(iter(parts(tiny_settings.but(detector={"kind": "none"}), "fp32")))
        other = replace(part, expected=lambda *given: tuple(1.01 * x for x in part.expected(*given)))
        plan = tmp_path / part.spec.name / "1" / "model.plan"
        plan.parent.mkdir(parents=True)
        plan.write_bytes(b"of the weights before")
        with pytest.raises(ConfigError, match="differs from torch"):
            _export(other, tmp_path)
        assert [file.name for file in tmp_path.rglob("*.*")] == ["model.plan"]
        _export(part, tmp_path)
        assert not plan.exists()

    @pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
    def test_half_precision_keeps_its_inputs_and_outputs(self, kind, tmp_path, tiny_settings):
        from soir_qdrant.models.encoders.vit import ViTEncoder
        from soir_qdrant.serving.export import export
        from soir_qdrant.serving.onnx import OnnxEncoder

        weights = str(tiny_encoder(tmp_path / "weights", kind))
        settings = tiny_settings.but(
            encoder={"weights": weights}, detector={"kind": "none"}, segmenter={"kind": "box"}
        )
        (made,) = export(settings, tmp_path / "models", precision="fp16")
        assert 0 < made.error < 0.05
        served = OnnxEncoder(made.file)
        local = ViTEncoder(weights, input_size=48, dtype="float32")
        same(served.encode(CROPS[:3]).descriptor, local.encode(CROPS[:3]).descriptor, 0.9999)
        tokens = local.encode(CROPS[:2], with_tokens=True).tokens
        expected = local.last_block.descriptor(tokens)
        assert torch.allclose(served.last_block.descriptor(tokens), expected, atol=1e-5)

    def test_integers_are_near_and_of_one_crop_whatever_comes_with_it(self, tmp_path, tiny_settings):
        from soir_qdrant.models.encoders.vit import ViTEncoder
        from soir_qdrant.serving.export import export
        from soir_qdrant.serving.onnx import OnnxEncoder

        settings = tiny_settings.but(detector={"kind": "none"}, segmenter={"kind": "box"})
        exported = {
            precision: export(settings, tmp_path / precision, precision=precision)[0]
            for precision in ("fp32", "int8")
        }
        assert exported["int8"].bytes < exported["fp32"].bytes
        local = ViTEncoder(settings.encoder.weights, input_size=48, dtype="float32")
        served = OnnxEncoder(exported["int8"].file)
        assert served.fingerprint == local.fingerprint
        rows = served.encode(CROPS[:3]).descriptor
        same(rows, local.encode(CROPS[:3]).descriptor, 0.99)
        np.testing.assert_allclose(served.encode(CROPS[1:2]).descriptor, rows[1:2], atol=1e-5)

    def test_integers_are_refused_for_tensorrt(self, tmp_path, tiny_settings):
        from soir_qdrant.serving.export import export

        with pytest.raises(ConfigError, match="fp16 for TensorRT"):
            export(tiny_settings, tmp_path, backend="tensorrt", precision="int8")
        assert not list(tmp_path.iterdir())


def same(one, other, cosine=0.9999):
    """Rows of equal direction and length."""
    one, other = (np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in (one, other))
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    assert ((one * other).sum(1) / (lengths[0] * lengths[1])).min() >= cosine
    np.testing.assert_allclose(*lengths, rtol=1e-2)


@pytest.fixture(params=["torch", "onnx", "triton"])
def parts(request, tiny_settings, tiny_models):
    """Encoder, detector and segmenter of one runtime, and those of torch."""
    from soir_qdrant.pipeline import Pipeline

    local = Pipeline(tiny_settings)
    if request.param == "torch":
        yield local, local
    elif request.param == "onnx":
        from soir_qdrant.serving.onnx import OnnxRuntime

        yield OnnxRuntime(tiny_models, tiny_settings), local
    else:
        server = request.getfixturevalue("triton")
        from soir_qdrant.serving.triton import TritonRuntime

        file = tiny_models / spec.ENCODER / last_block.FILE
        runtime = TritonRuntime(server.url, tiny_settings, last_block=file)
        yield runtime, local
        runtime.close()


@pytest.mark.slow
class TestProtocols:
    """What the local parts do, the served ones do."""

    def test_encoder(self, parts):
        runtime, local = parts
        encoder = runtime.encoder
        assert isinstance(encoder, Encoder)
        assert (encoder.name, encoder.dim, encoder.input_size, encoder.fingerprint) == (
            local.encoder.name, local.encoder.dim, 48, local.encoder.fingerprint,
        )  # fmt: skip
        for count in (1, 8, 19):
            found, expected = (
                e.encode(CROPS[:count], MASKS[:count], with_tokens=True) for e in (encoder, local.encoder)
            )
            same(found.descriptor, expected.descriptor)
            same(found.layers, expected.layers)
            same(found.tokens, expected.tokens)

    def test_encoder_of_no_crops_and_of_wrong_ones(self, parts):
        encoder = parts[0].encoder
        assert encoder.encode(CROPS[:0]).descriptor.shape == (0, 24)
        with pytest.raises(ConfigError, match="expected"):
            encoder.encode(CROPS[:, :40])
        with pytest.raises(ConfigError, match="masks of shape"):
            encoder.encode(CROPS[:2], MASKS[:1])

    def test_last_block(self, parts):
        """It is local whatever serves the trunk, and goes on where the tokens end."""
        encoder = parts[0].encoder
        found = encoder.encode(CROPS[:2], with_tokens=True)
        same(encoder.last_block.descriptor(torch.as_tensor(found.tokens)).numpy(), found.descriptor)

    def test_detector(self, parts):
        runtime, local = parts
        assert isinstance(runtime.detector, Detector)
        images = [picture(0), picture(1)[:, :70], picture(2)]
        for found, expected in zip(
            runtime.detector.detect(images), local.detector.detect(images), strict=True
        ):
            assert len(found.boxes) == len(expected.boxes) > 0
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=1)
            np.testing.assert_allclose(found.scores, expected.scores, atol=0.01)
        assert runtime.detector.detect([]) == []

    def test_segmenter(self, parts):
        runtime, local = parts
        assert isinstance(runtime.segmenter, Segmenter)
        boxes = np.array([[10, 5, 80, 50], [30.5, 20, 61, 59], [0, 0, 90, 60]], np.float32)
        masks = runtime.segmenter.segment(picture(3), boxes)
        for found, expected in zip(masks, local.segmenter.segment(picture(3), boxes), strict=True):
            assert found.shape == expected.shape
            assert (found == expected).mean() > 0.97
        assert runtime.segmenter.segment(picture(3), boxes[:0]) == []


def picture(seed):
    """60 x 90 pixels of blotches."""
    blotches = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return np.kron(blotches, np.ones((10, 10, 1), np.uint8))


@pytest.mark.slow
class TestOnnxRuntime:
    def test_fills_a_collection_that_torch_reads(self, tiny_settings, tiny_models):
        from soir_qdrant.pipeline import Pipeline
        from soir_qdrant.search.searcher import SoirSearcher
        from soir_qdrant.serving.onnx import OnnxRuntime

        client = QdrantClient(":memory:")
        pipeline = OnnxRuntime(tiny_models).pipeline(tiny_settings)
        assert SoirIngestor(client, pipeline=pipeline).add([picture(i) for i in range(4)]).added == 4
        searcher = SoirSearcher(client, pipeline=Pipeline(tiny_settings))
        served = OnnxRuntime(tiny_models, settings=tiny_settings)
        assert SoirSearcher(client, runtime=served).search(picture(2))
        assert len(searcher.search(picture(2), limit=3)) == 3

    def test_refinement_reads_the_tokens(self, tiny_settings, tiny_models):
        from soir_qdrant.pipeline import Pipeline
        from soir_qdrant.serving.onnx import OnnxRuntime

        settings = tiny_settings.but(vector={"pooling": "mao", "iterations": 3})
        encoding_of = np.array([0, 0, 1])
        rows = []
        for pipeline in (OnnxRuntime(tiny_models).pipeline(settings), Pipeline(settings)):
            encoding = pipeline.encode_whole(Crops(CROPS[:3], MASKS[:3]))
            vectors = pipeline.describe(encoding)
            rows.append(pipeline.pool(vectors, encoding_of, np.ones(3, np.float32), encoding, MASKS[:3]))
        same(*rows)
        assert OnnxRuntime(tiny_models).pipeline(tiny_settings).encoder.encode(CROPS[:1]).tokens is None

    def test_what_reads_tokens_is_sent_them(self, tiny_settings, tiny_models, tmp_path):
        """Heat maps and Q-Perturbation, through a pipeline that fetches none by itself."""
        from soir_qdrant.pipeline import Pipeline
        from soir_qdrant.search.searcher import SoirSearcher
        from soir_qdrant.serving.onnx import OnnxRuntime

        for i in range(2):
            Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
        client, maps = QdrantClient(":memory:"), []
        SoirIngestor(client, pipeline=Pipeline(tiny_settings)).add(tmp_path)
        for pipeline in (OnnxRuntime(tiny_models).pipeline(tiny_settings), Pipeline(tiny_settings)):
            searcher = SoirSearcher(client, pipeline=pipeline)
            hit = searcher.search(picture(0), limit=1, rerank="q-perturbation")[0]
            maps.append(searcher.heat(picture(0), hit))
        np.testing.assert_allclose(*maps, atol=1e-3)

    def test_says_what_is_wrong(self, tiny_settings, tiny_models, tmp_path):
        from soir_qdrant.serving.onnx import OnnxRuntime, OnnxSession
        from soir_qdrant.serving.served_detector import ServedDetector

        with pytest.raises(WeightsError, match="soir export"):
            OnnxSession(tmp_path / "model.onnx")
        runtime = OnnxRuntime(tiny_models)
        with pytest.raises(ConfigError, match=r"encoder\.input_size"):
            runtime.pipeline(tiny_settings.but(encoder={"input_size": 64}))
        with pytest.raises(ConfigError, match="another profile"):
            ServedDetector(runtime.session(spec.DETECTOR), TokenHeadSettings())
        with pytest.raises(WeightsError, match="last block of"):
            last_block.load(tiny_models / spec.ENCODER / last_block.FILE, "another@1")
        with pytest.raises(ConfigError, match="a pipeline or a runtime"):
            SoirIngestor(QdrantClient(":memory:"), pipeline=object(), runtime=runtime)


@pytest.mark.slow
def test_trunk_inference_needs_no_torch(tiny_models):
    """In a process of its own, as this one has long imported it."""
    code = f"""
import sys
import numpy as np
from soir_qdrant.serving.onnx import OnnxEncoder
encoder = OnnxEncoder({str(tiny_models / "soir_encoder" / "1" / "model.onnx")!r})
assert encoder.encode(np.zeros((2, 48, 48, 3), np.uint8)).descriptor.shape == (2, 24)
assert "torch" not in sys.modules, "torch was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
