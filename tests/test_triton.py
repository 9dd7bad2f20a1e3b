"""A real Triton: the same points, and what happens when it is slow, full, killed or wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import counts
from qdrant_client import QdrantClient
from test_serving import CROPS, MASKS, picture, same
from tritonserver import NoTriton, Triton

from soir_qdrant.errors import ConfigError, ServerError
from soir_qdrant.ingest.ingestor import IngestStopped, SoirIngestor
from soir_qdrant.qdrant.transport import Retry

pytest.importorskip("tritonclient", reason="tritonclient is not installed: the extra triton has it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
from soir_qdrant.serving.onnx import OnnxRuntime
from soir_qdrant.serving.triton import (
    TritonConnection,
    TritonDetector,
    TritonEncoder,
    TritonRuntime,
    TritonSegmenter,
    TritonSession,
)
from soir_qdrant.serving.triton_connection import Tls

pytestmark = pytest.mark.slow


@pytest.fixture
def connect(triton):
    """Connections to the server, closed afterwards."""
    made = []

    def connection(**options):
        made.append(TritonConnection(triton.url, **options))
        return made[-1]

    yield connection
    for item in made:
        item.close()


@pytest.fixture
def slow(triton):
    """Makes the encoder take that many seconds longer for a batch."""
    file = triton.models / "soir_encoder" / "1" / "seconds"
    yield lambda seconds: file.write_text(str(seconds))
    file.unlink(missing_ok=True)


def vectors(client):
    points, _ = client.scroll("images", limit=1000, with_vectors=True)
    return np.array([p.vector for p in sorted(points, key=lambda p: str(p.id))])


def test_parts_by_themselves(connect):
    held = connect()
    assert TritonEncoder(held).encode(CROPS[:2], with_tokens=True).tokens.shape == (2, 37, 24)
    assert TritonEncoder(held).encode(CROPS[:2]).tokens is None
    assert TritonDetector(held).name == "owlv2"
    assert TritonSegmenter(held).segment(picture(0), np.array([[5, 5, 30, 30]], np.float32))[0].any()


def test_shared_memory_gives_the_same(connect):
    plain, shared = TritonEncoder(connect()), TritonEncoder(connect(shared_memory=True))
    for count in (3, 19, 1):
        expected = plain.encode(CROPS[:count], MASKS[:count])
        found = shared.encode(CROPS[:count], MASKS[:count])
        np.testing.assert_allclose(found.layers, expected.layers, atol=1e-5)


def test_slow_model_hits_the_deadline(connect, slow):
    encoder = TritonEncoder(connect(timeout=0.5, retry=Retry(attempts=3, first=0.01)))
    slow(1.5)
    with pytest.raises(ServerError, match=r"no answer within 0\.5 s, 2 times"):
        encoder.encode(CROPS[:1])
    slow(0)
    patient = TritonEncoder(connect(timeout=60))
    assert patient.encode(CROPS[:1]).descriptor.shape == (1, 24)


def test_overload_turns_requests_away_and_all_are_answered_in_the_end(connect, slow, caplog):
    """Sixteen clients, and a queue that holds two requests."""
    encoders = [TritonEncoder(connect(retry=Retry(attempts=30, first=0.1, longest=1))) for _ in range(16)]
    expected = encoders[0].encode(CROPS[:1]).descriptor
    slow(0.1)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda e: e.encode(CROPS[:1]).descriptor, encoders))
    assert "maximum queue size" in caplog.text  # else nothing was tested
    for row in found:
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_killed_in_mid_ingestion_and_restarted_loses_nothing(triton, tiny_settings, tiny_models):
    expected = QdrantClient(":memory:")
    SoirIngestor(expected, pipeline=OnnxRuntime(tiny_models).pipeline(tiny_settings)).add(
        map(picture, range(12))
    )

    def images():
        for i in range(12):
            if i == 8:
                triton.kill()
                threading.Timer(1, triton.start).start()
            yield picture(i)

    client, runtime = QdrantClient(":memory:"), TritonRuntime(triton.url, retry=Retry(attempts=40, longest=2))
    report = SoirIngestor(client, pipeline=runtime.pipeline(tiny_settings)).add(images(), batch_size=2)
    runtime.close()
    assert counts(report) == (12, 0, 0)
    same(vectors(client), vectors(expected))


def test_a_server_that_stays_away_stops_the_ingestion_which_goes_on_later(triton, tiny_settings):
    client = QdrantClient(":memory:")
    runtime = TritonRuntime(triton.url, retry=Retry(attempts=4, first=0.5, longest=1))
    ingestor = SoirIngestor(client, pipeline=runtime.pipeline(tiny_settings))

    def images():
        for i in range(6):
            if i == 4:
                triton.kill()
            yield picture(i)

    try:
        with pytest.raises(IngestStopped, match="Triton did not answer in 4 attempts") as stopped:
            ingestor.add(images(), batch_size=1)
    finally:
        triton.start()
    assert not stopped.value.report.failed
    before = stopped.value.report.added
    report = ingestor.add(map(picture, range(6)), batch_size=1)
    runtime.close()
    assert counts(report) == (6 - before, before, 0)


def test_another_export_behind_the_same_address_is_refused(connect, triton, tiny_models):
    """The look that follows a lost connection, without losing one."""
    session = TritonSession(connect(), "soir_encoder")
    session._still_the_same()
    session.fingerprint = "vit@000000000000/48px"
    with pytest.raises(ConfigError, match="is asked for"):
        session._still_the_same()


def test_says_what_is_wrong(connect, triton, tiny_settings):
    with pytest.raises(ConfigError, match=r"no_such_model.*soir export"):
        TritonSession(connect(), "no_such_model")
    with pytest.raises(ConfigError, match="is asked for"):
        TritonRuntime(triton.url, fingerprint="vit@1/48px").pipeline(tiny_settings)
    with pytest.raises(ConfigError, match=r"soir_trunk.*soir export"):
        TritonRuntime(triton.url).pipeline(tiny_settings.but(detector={"kind": "embedded"}))
    other = tiny_settings.but(encoder={"input_size": 224})
    with pytest.raises(ConfigError, match=r"encoder\.input_size is 224"):
        SoirIngestor(QdrantClient(":memory:"), runtime=TritonRuntime(triton.url, other))
    with pytest.raises(ServerError, match="did not answer in 1 attempts"):
        TritonEncoder(TritonConnection("127.0.0.1:9", retry=Retry(attempts=1)))
    with pytest.raises(ConfigError, match="host:port"):
        TritonConnection("http://triton:8000")


def test_shapes_that_were_edited_are_refused(tiny_models, tmp_path):
    """A configuration whose tensors are not those of its spec: Triton itself does not look."""
    models = tmp_path / "models"
    shutil.copytree(tiny_models / "soir_detector", models / "soir_detector")
    config = models / "soir_detector" / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 16, 4 ]", "dims: [ 4, 16 ]"))
    try:
        server = Triton(models, tmp_path / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    try:
        with pytest.raises(ConfigError, match="outputs are"):
            TritonDetector(server.url)
    finally:
        server.kill()


def test_tls_and_headers(tiny_models, tmp_path):
    """A server with a certificate of its own, which wants a header with every inference."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command = ["openssl", "req", *kind, "-keyout", str(key), "-out", str(chain), *subject]
    subprocess.run(command, check=True, capture_output=True)
    models = tmp_path / "models"
    shutil.copytree(tiny_models / "soir_detector", models / "soir_detector")
    tls = ["--grpc-use-ssl=true", f"--grpc-server-cert={chain}", f"--grpc-server-key={key}"]
    try:
        restricted = "--grpc-restricted-protocol=inference:word=open"
        server = Triton(models, tmp_path / "log", *tls, restricted).start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    url, once = f"grpcs://localhost:{server.ports['grpc']}", Retry(attempts=1)
    try:
        headers = {"triton-grpc-protocol-word": "open"}
        known = TritonConnection(url, tls=Tls(root=chain), headers=headers, retry=once)
        assert len(TritonDetector(known).detect([picture(0)])[0].boxes)
        with pytest.raises(ServerError, match="soir_detector"):
            TritonDetector(TritonConnection(url, tls=Tls(root=chain), retry=once)).detect([picture(0)])
        with pytest.raises(ServerError, match="did not answer"):
            TritonDetector(TritonConnection(url, headers=headers, retry=once))
        with pytest.raises(ConfigError, match="TLS files"):
            TritonConnection(url, tls=Tls(root=tmp_path / "none.pem"))
    finally:
        server.kill()


def test_the_embedded_profile_makes_the_same_points(tmp_path):
    """Real weights, real pictures, found and described once here in float32, once through Triton."""
    from test_end_to_end import PICTURES, draw
    from typer.testing import CliRunner

    from soir_qdrant.cli.main import app
    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.export import export

    settings = Settings.for_profile().but(encoder={"dtype": "float32", "device": "cpu"})
    export(settings, tmp_path / "models", scene=True)
    draw(tmp_path / "pictures")
    local, served = QdrantClient(":memory:"), QdrantClient(path=str(tmp_path / "db"))
    try:
        server = Triton(tmp_path / "models", tmp_path / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    try:
        runtime = TritonRuntime(server.url)
        assert counts(SoirIngestor(served, runtime=runtime).add(tmp_path / "pictures")) == (3, 0, 0)
        runtime.close()
        SoirIngestor(local, pipeline=Pipeline(settings)).add(tmp_path / "pictures")
        same(vectors(served), vectors(local), 0.9999)
        served.close()
        query = str(PICTURES / "cutouts" / "bucket.webp")
        command = ["search", query, "--path", str(tmp_path / "db"), "--triton", server.url, "--json"]
        hits = json.loads(CliRunner().invoke(app, command).output)
        assert Path(hits[0]["uri"]).name == "brick.jpg"
    finally:
        server.kill()
