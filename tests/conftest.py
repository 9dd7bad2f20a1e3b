"""A tiny pipeline, pictures, and the kinds of Qdrant."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from qdrant_client import QdrantClient
from stand_in import StandIn
from tritonserver import NoTriton, Triton

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.kinds import Parts, make_encoder
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.types import RGB, Box, IngestReport, LoadedImage, Mask, Scene, SceneObject, Vector


class ColourPipeline:
    """The interface of Pipeline, with histograms of colours for vectors: what is tested with it is the way
    into Qdrant and back, not the recognition. A picture that starts with (1, 2, 3) makes it fail."""

    dim = 12
    has_patches = False

    def __init__(self, version: str = "1", pause: float = 0.0) -> None:
        self.fingerprint: dict[str, Any] = {
            "encoder": "colours",
            "version": version,
            "crop": (0.1, 2),
            "dim": 12,
        }
        self.recipe: dict[str, Any] = {"detector": "none"}
        self.pause = pause
        self.calls: list[list[str]] = []  # names of the images of each batch

    def scenes(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> list[Scene]:
        objects, seconds = objects or [None] * len(images), {} if seconds is None else seconds
        self.calls.append([image.name for image in images])
        time.sleep(self.pause)
        seconds["encode"] = seconds.get("encode", 0.0) + 0.001
        return [self._scene(image, given) for image, given in zip(images, objects, strict=True)]

    def _scene(self, image: LoadedImage, given: list[SceneObject] | None) -> Scene:
        if (image.rgb[0, 0] == (1, 2, 3)).all():
            raise RuntimeError("the model choked")
        found = given or [SceneObject((0.0, 0.0, float(image.width), float(image.height)))]
        rows = np.stack([self.query(image.rgb, box=item.box) for item in found])
        mean = rows.mean(0)
        return Scene(image.width, image.height, tuple(found), mean / np.linalg.norm(mean), rows)

    def segment(self, image: RGB, objects: list[SceneObject]) -> list[SceneObject]:
        """The pixels that are not painted's grey."""
        return [replace(item, mask=(image != 100).any(-1)) for item in objects]

    def query_text(self, image: RGB, box: Box | None = None) -> str:
        return ""

    def text(self, words: str) -> Vector:
        raise ConfigError(f"text {words!r}: this encoder reads no text")

    def query(self, image: RGB, *, box: Box | None = None, mask: Mask | None = None) -> Vector:
        if box is not None:
            x0, y0, x1, y1 = (int(v) for v in box)
            image = image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            mask = None
        pixels = image.reshape(-1, 3) if mask is None else image[mask]
        levels = [np.histogram(pixels[:, c], 4, (0, 256))[0] for c in range(3)]
        vector = np.concatenate(levels).astype(np.float32) + 0.01
        return vector / np.linalg.norm(vector)


@pytest.fixture(autouse=True)
def levels_of_the_log() -> Iterator[None]:
    """The command line sets levels of the log, as a program may: a test leaves them as they were."""
    loggers = logging.root.manager.loggerDict
    before = {name: log.level for name, log in loggers.items() if isinstance(log, logging.Logger)}
    yield
    for name in list(loggers):
        if name.startswith("soir_qdrant"):
            logging.getLogger(name).setLevel(before.get(name, logging.NOTSET))


@pytest.fixture
def pipeline() -> ColourPipeline:
    return ColourPipeline()


def picture(seed: int, width: int = 40, height: int = 30) -> RGB:
    """Noise around one colour; another seed is another colour."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-20, 20, (height, width, 3))
    return np.clip(rng.integers(30, 226, 3) + noise, 0, 255).astype(np.uint8)


def painted(*patches: tuple[Box, tuple[int, int, int]], size: tuple[int, int] = (80, 60)) -> RGB:
    """A grey picture with coloured boxes. size: width, height."""
    image = np.full((size[1], size[0], 3), 100, np.uint8)
    for (x0, y0, x1, y1), colour in patches:
        image[int(y0) : int(y1), int(x0) : int(x1)] = colour
    return image


FINGERPRINT = ColourPipeline().fingerprint
QUICK = Retry(attempts=3, first=0.001, longest=0.002)


def video(file: Path, colours: list[tuple[int, int, int]]) -> Path:
    """A new clip of 64 x 48, four frames a second: a colour a second."""
    av = pytest.importorskip("av", reason="av is not installed: the extra video has it")
    file.parent.mkdir()
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour in colours:
            for _ in range(4):
                image = np.full((48, 64, 3), colour, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def scene(count: int = 2, dim: int = 12, seed: int = 0) -> Scene:
    objects = tuple(SceneObject((5.0 * i, 0.0, 5.0 * i + 4, 6.0), label=f"l{i}") for i in range(count))
    return Scene(40, 30, objects, unit(dim, seed=seed), unit(count, dim, seed=seed + 1))


def store(client: QdrantClient, **options: Any) -> Store:
    return Store(client, "images", retry=QUICK, **options)


def ingestor(client: QdrantClient, pipeline: Any = None, **options: Any) -> SoirIngestor:
    return SoirIngestor(client, pipeline=pipeline or ColourPipeline(), retry=QUICK, **options)


def counts(report: IngestReport) -> tuple[int, int, int]:
    return report.added, report.skipped, len(report.failed)


def stored(client: QdrantClient) -> dict[Any, dict[str, Any]]:
    """id -> payload of all points."""
    points, _ = client.scroll("images", limit=1000)
    return {point.id: point.payload or {} for point in points}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures in two folders, and files that are no pictures."""
    place = tmp_path / "pictures"
    (place / "sub").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(picture(i)).save(place / ("sub" if i % 2 else ".") / f"{i}.png")
    (place / "notes.txt").write_text("no picture")
    (place / ".hidden.png").write_bytes(b"no picture")
    return place


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """QDRANT_URL, else a container where Docker answers, else the test is skipped."""
    if os.environ.get("QDRANT_URL"):
        yield os.environ["QDRANT_URL"]
        return
    containers = pytest.importorskip("testcontainers.qdrant", reason="no QDRANT_URL, no testcontainers")
    try:
        answer = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        answer = 1
    if answer:
        pytest.skip("no QDRANT_URL, and Docker does not answer")
    compose = (Path(__file__).parents[1] / "docker" / "compose.yml").read_text()
    (image,) = re.findall(r"image: (qdrant/qdrant:\S+)", compose)
    with containers.QdrantContainer(image) as qdrant:
        yield f"http://{qdrant.rest_host_address}"


@pytest.fixture
def empty_server(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, without the collections that tests use, and without other workers of the tests meanwhile."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "server.lock"):
        opened = QdrantClient(url=server_url, timeout=60)
        for name in ("images", "other"):
            opened.delete_collection(name)
        opened.close()
        yield server_url


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


@contextmanager
def folder_in_memory() -> Iterator[str]:
    """A folder whose writes do not wait for a disk, where the system has such a place."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield folder


@pytest.fixture
def memory_folder() -> Iterator[str]:
    with folder_in_memory() as folder:
        yield folder


# Of images with one or two coloured things: their colours and places.
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
A, B = (4.0, 4.0, 28.0, 28.0), (44.0, 30.0, 76.0, 56.0)
SCENES = [[(A, RED)], [(A, GREEN), (B, RED)], [(B, BLUE)], [(A, BLUE), (B, GREEN)]]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The images of SCENES."""
    paths = [tmp_path / f"{i}.png" for i in range(len(SCENES))]
    for file, scene in zip(paths, SCENES, strict=True):
        Image.fromarray(painted(*scene)).save(file)
    return paths


CLIENTS = [
    "memory",
    pytest.param("path", marks=pytest.mark.slow),
    "http",
    pytest.param("edge", marks=pytest.mark.slow),
    pytest.param("server", marks=pytest.mark.server),
]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    """The same tests in memory, on disk, over HTTP (see stand_in.py), on Qdrant's own engine, and on a real
    server, where there is one; its collections are removed beforehand."""
    if request.param == "server":
        opened = QdrantClient(url=request.getfixturevalue("empty_server"), timeout=60)
    elif request.param == "http":
        opened = request.getfixturevalue("stand_in").client()
    elif request.param == "edge":
        pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed: the extra edge has it")
        from soir_qdrant.qdrant.edge.client import EdgeClient

        opened = EdgeClient(request.getfixturevalue("memory_folder"))
    elif request.param == "path":
        opened = QdrantClient(path=str(tmp_path / "db"))
    else:
        opened = QdrantClient(":memory:")
    yield opened
    opened.close()


MODELS = {"shipped_encoder", "tiny_settings", "tiny_models"}  # fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a model is slow, a tiny one too: importing its class takes seconds."""
    for item in items:
        if not MODELS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the slow tests, files that are slow as a whole are not even imported: what they import takes seconds."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return "\npytestmark = pytest.mark.slow" in collection_path.read_text() or None


def pytest_collection_finish() -> None:
    """What was imported stays: collecting garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shipped_encoder() -> Encoder:
    """That of the default profile, loaded once."""
    return make_encoder(Settings().encoder.model_copy(update={"dtype": "float32"}), Parts(Settings()))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker makes who needs it, and the others wait for."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # which the workers share
    folder, part = root / name, root / f"{name}.part"
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The paper's parts, all of them models, tiny ones with random weights."""
    from models import tiny_encoder, tiny_owlv2, tiny_sam

    def make(part: Path) -> None:
        tiny_encoder(part / "vit")
        tiny_owlv2(part / "owlv2")
        tiny_sam(part / "sam")

    folder = made_once(tmp_path_factory, "weights", make)
    return Settings.for_profile("paper").but(
        encoder={"weights": str(folder / "vit"), "input_size": 48, "dtype": "float32"},
        detector={"weights": str(folder / "owlv2"), "max_objects": 3, "threshold": 0.0},
        segmenter={"weights": str(folder / "sam")},
        vector={"pooling": "gmp"},
    )


@pytest.fixture(scope="session")
def tiny_models(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They, exported."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
    from soir_qdrant.serving.export import export

    return made_once(tmp_path_factory, "models", lambda part: export(tiny_settings, part, backend="tensorrt"))


@pytest.fixture(scope="module")
def exported(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the `settings` of a file of tests, whole scenes too, as soir export writes them."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra onnx has it")
    from soir_qdrant.serving.export import export

    folder = tmp_path_factory.mktemp("models")
    export(settings, folder, scene=True)
    return folder


# Put into the encoder's model.py, so that a test can make it slow while the server runs.
SLOWLY = """
import time
_execute = TritonPythonModel.execute

def _slowly(self, requests):
    file = Path(__file__).with_name("seconds")
    time.sleep(float(file.read_text()) if file.exists() else 0)
    return _execute(self, requests)

TritonPythonModel.execute = _slowly
"""


@pytest.fixture(scope="session")
def triton(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton that serves them. Its encoder holds few requests in its queue."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: the extra triton has it")
    folder = tmp_path_factory.mktemp("triton")
    models = shutil.copytree(tiny_models, folder / "models")
    with (models / "soir_encoder" / "1" / "model.py").open("a") as stream:
        stream.write(SLOWLY)
    config = models / "soir_encoder" / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 128", "max_queue_size: 2"))
    try:
        server = Triton(models, folder / "log").start()
    except NoTriton as reason:
        pytest.skip(str(reason))
    yield server
    server.kill()
