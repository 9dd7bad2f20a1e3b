"""Text towers that are served: words become what they become here, and the tokenizer is the client's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import painted
from models import BOTH, tiny_words
from PIL import Image
from test_text import settings as settings_of
from typer.testing import CliRunner

from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.encoders.text import TextEncoder
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.serving import served_text, spec
from soir_qdrant.serving.served_text import ServedText

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
from soir_qdrant.serving.export import _export, export, parts
from soir_qdrant.serving.onnx import OnnxRuntime, OnnxSession

pytestmark = pytest.mark.slow
TEXTS = ["a red mug <end>", "blue", "a " * 50]


def settings(weights: Path):
    return settings_of(weights).but(segmenter={"kind": "box"})


def text_model(weights: Path, folder: Path):
    """The text tower alone, exported."""
    (part,) = (part for part in parts(settings(weights), "fp32") if part.spec.name == spec.TEXT)
    return _export(part, folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Settings of a small CLIP, and the repository of its models."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_words(folder / "weights", "clip")
    export(settings(folder / "weights"), folder / "models")
    return settings(folder / "weights"), folder / "models"


@pytest.mark.parametrize("kind", BOTH)
def test_words_are_the_same_vectors_without_the_weights(kind, tmp_path):
    tiny_words(tmp_path / "weights", kind)
    here = Pipeline(settings(tmp_path / "weights")).text_encoder
    assert isinstance(here, TextEncoder)
    exported = text_model(tmp_path / "weights", tmp_path / "models")
    expected = here.encode(TEXTS)
    shutil.rmtree(tmp_path / "weights")
    tokenizer = tmp_path / "models" / spec.TEXT / "tokenizer"
    served = ServedText(OnnxSession(exported.file), lambda: served_text.load(tokenizer))
    np.testing.assert_allclose(served.encode(TEXTS), expected, atol=1e-4)
    with pytest.raises(ConfigError, match="empty"):
        served.encode([" "])


def test_onnx_reads_words_and_an_export_without_them_leaves_them_here(clip, tmp_path):
    chosen, models = clip
    expected = Pipeline(chosen).text("blue")
    pipeline = OnnxRuntime(models).pipeline(chosen)
    assert isinstance(pipeline.text_encoder, ServedText)
    np.testing.assert_allclose(pipeline.text("blue"), expected, atol=1e-4)

    before = shutil.copytree(models, tmp_path / "before")
    shutil.rmtree(before / spec.TEXT / "tokenizer")
    with pytest.raises(WeightsError, match="soir export"):
        OnnxRuntime(before).pipeline(chosen).text("blue")
    shutil.rmtree(before / spec.TEXT)
    pipeline = OnnxRuntime(before).pipeline(chosen)
    assert isinstance(pipeline.text_encoder, TextEncoder)
    np.testing.assert_allclose(pipeline.text("blue"), expected, atol=1e-4)


def test_a_text_tower_of_other_weights_is_refused(clip, tmp_path):
    chosen, models = clip
    mixed = shutil.copytree(models, tmp_path / "mixed")
    tiny_words(tmp_path / "other", "metaclip2")
    text_model(tmp_path / "other", mixed)
    with pytest.raises(ConfigError, match="cannot be compared"):
        OnnxRuntime(mixed).pipeline(chosen)


def test_triton_reads_words(clip, tmp_path):
    """As `soir search --text --triton` does; the tokenizer is the exported one, or that beside the weights."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: the extra triton has it")
    from tritonserver import NoTriton, Triton

    from soir_qdrant.serving.triton import TritonRuntime

    chosen, models = clip
    profile, db, mug = tmp_path / "mine.json", tmp_path / "db", tmp_path / "mug.png"
    profile.write_text(chosen.model_dump_json())
    Image.fromarray(painted(((5, 5, 30, 30), (250, 0, 0)))).save(mug)
    try:
        server = Triton(models, tmp_path / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    try:
        runtime = TritonRuntime(server.url, tokenizer=models / spec.TEXT / "tokenizer")
        pipeline = runtime.pipeline(chosen)
        assert isinstance(pipeline.text_encoder, ServedText)
        np.testing.assert_allclose(pipeline.text("a red mug"), Pipeline(chosen).text("a red mug"), atol=1e-4)
        runtime.close()
        common = ["--path", str(db), "--profile", str(profile), "--triton", server.url, "--json"]
        assert CliRunner().invoke(app, ["ingest", str(mug), *common]).exit_code == 0
        done = CliRunner().invoke(app, ["search", "--text", "a red mug", *common])
        assert [Path(hit["uri"]).name for hit in json.loads(done.stdout)] == ["mug.png"]

        (models.parent / "weights").rename(tmp_path / "elsewhere")  # a machine without them
        words = CliRunner().invoke(app, ["search", "--text", "a red mug", *common, "--models", str(models)])
        assert words.stdout == done.stdout
        page = tmp_path / "page.html"
        drawn = ["search", str(mug), "--save-html", str(page), *common, "--models", str(models)]
        assert CliRunner().invoke(app, drawn).exit_code == 0
        assert "mug.png" in page.read_text()
    finally:
        if (tmp_path / "elsewhere").exists():
            (tmp_path / "elsewhere").rename(models.parent / "weights")
        server.kill()
