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
from test_text import settings
from typer.testing import CliRunner

from soir_qdrant.cli.main import app
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.encoders.text import TextEncoder
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.serving import spec
from soir_qdrant.serving.served_text import ServedText

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
from soir_qdrant.serving.export import export
from soir_qdrant.serving.onnx import OnnxRuntime

pytestmark = pytest.mark.slow
TEXTS = ["a red mug <end>", "blue", "a " * 50]


def exported(folder: Path, kind: str) -> Path:
    """A repository without the weights that it was made from."""
    tiny_words(folder / "weights", kind)
    export(settings(folder / "weights").but(segmenter={"kind": "box"}), folder / "models")
    return folder / "models"


@pytest.mark.parametrize("kind", BOTH)
def test_words_are_the_same_vectors_without_the_weights(kind, tmp_path):
    models, chosen = exported(tmp_path, kind), settings(tmp_path / "weights").but(segmenter={"kind": "box"})
    local, served = Pipeline(chosen), OnnxRuntime(models).pipeline(chosen)
    assert isinstance(local.text_encoder, TextEncoder)
    expected = local.text_encoder.encode(TEXTS)
    shutil.rmtree(tmp_path / "weights")
    assert isinstance(served.text_encoder, ServedText)
    np.testing.assert_allclose(served.text_encoder.encode(TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(served.text("blue"), expected[1], atol=1e-4)
    with pytest.raises(ConfigError, match="empty"):
        served.text(" ")
    shutil.rmtree(models / spec.TEXT / "tokenizer")
    with pytest.raises(WeightsError, match="soir export"):
        OnnxRuntime(models).make_text_encoder(chosen).encode(["blue"])


def test_triton_reads_words_and_an_export_without_them_leaves_them_here(tmp_path):
    """As `soir search --text --triton` does; the tokenizer is that beside the weights, or the exported one."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: the extra triton has it")
    from tritonserver import NoTriton, Triton

    from soir_qdrant.serving.triton import TritonRuntime

    models, chosen = exported(tmp_path, "clip"), settings(tmp_path / "weights").but(segmenter={"kind": "box"})
    profile, db, mug = tmp_path / "mine.json", tmp_path / "db", tmp_path / "mug.png"
    profile.write_text(chosen.model_dump_json())
    Image.fromarray(painted(((5, 5, 30, 30), (250, 0, 0)))).save(mug)
    try:
        server = Triton(models, tmp_path / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    try:
        runtime = TritonRuntime(server.url, tokenizer=models / spec.TEXT / "tokenizer")
        assert isinstance(runtime.pipeline(chosen).text_encoder, ServedText)
        expected = Pipeline(chosen).text("a red mug")
        np.testing.assert_allclose(runtime.pipeline(chosen).text("a red mug"), expected, atol=1e-4)
        runtime.close()
        common = ["--path", str(db), "--profile", str(profile), "--triton", server.url, "--json"]
        assert CliRunner().invoke(app, ["ingest", str(mug), *common]).exit_code == 0
        done = CliRunner().invoke(app, ["search", "--text", "a red mug", *common])
        assert [Path(hit["uri"]).name for hit in json.loads(done.stdout)] == ["mug.png"]
    finally:
        server.kill()
    shutil.rmtree(models / spec.TEXT)
    assert isinstance(OnnxRuntime(models).pipeline(chosen).text_encoder, TextEncoder)


def test_a_text_tower_of_other_weights_is_refused(tmp_path):
    one, other = exported(tmp_path / "one", "clip"), exported(tmp_path / "other", "metaclip2")
    shutil.rmtree(one / spec.TEXT)
    shutil.copytree(other / spec.TEXT, one / spec.TEXT)
    with pytest.raises(ConfigError, match="cannot be compared"):
        OnnxRuntime(one).pipeline(settings(tmp_path / "one" / "weights").but(segmenter={"kind": "box"}))
