"""A service for tests: pictures in a folder, ingested with the pipeline of conftest.py."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ColourPipeline, painted
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant import SoirIngestor
from soir_qdrant.types import RGB, SceneObject, Vector

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
TOP, BOTTOM = (5.0, 5.0, 25.0, 25.0), (50.0, 30.0, 75.0, 55.0)
# What each picture shows at the top left and at the bottom right, and its shop.
SHELVES = {
    "red-green.png": (RED, GREEN, "north"),
    "red-blue.png": (RED, BLUE, "south"),
    "green-blue.png": (GREEN, BLUE, "south"),
}


class Reading(ColourPipeline):
    """Reads the words red, green and blue."""

    def text(self, words: str) -> Vector:
        colours = {"red": RED, "green": GREEN, "blue": BLUE}
        known = [colours[word] for word in words.split() if word in colours]
        return self.query(np.full((20, 20, 3), known[0] if known else (100, 100, 100), np.uint8))


def shelf(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> RGB:
    return painted((TOP, top), (BOTTOM, bottom))


def png(image: RGB) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def fill(client: QdrantClient, folder: Path, collection: str = "shelves") -> None:
    """Three pictures with two objects each; the third picture's objects have labels."""
    folder.mkdir(exist_ok=True)
    for name, (top, bottom, _) in SHELVES.items():
        Image.fromarray(shelf(top, bottom)).save(folder / name)
    objects = {
        name: [SceneObject(TOP, label=_label(top)), SceneObject(BOTTOM, label=_label(bottom))]
        for name, (top, bottom, _) in SHELVES.items()
    }
    payloads = {
        name: {"shop": shop, "price": 10 * i} for i, (name, (_, _, shop)) in enumerate(SHELVES.items())
    }
    SoirIngestor(client, collection, pipeline=ColourPipeline()).add(
        folder, objects=objects, payloads=payloads, progress=False
    )


def _label(colour: tuple[int, int, int]) -> str:
    return ("red", "green", "blue")[int(np.argmax(colour))]


@contextmanager
def service(
    folder: Path,
    *,
    pipeline: Any = None,
    make_pipeline: Any = None,
    ready: bool = True,
    filled: bool = True,
    client: QdrantClient | None = None,
    tracer_provider: Any = None,
    **settings: Any,
) -> Iterator[Any]:
    """A client of a started service; `service` is its backend."""
    testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")
    from soir_qdrant.service.app import create_app
    from soir_qdrant.service.settings import ServiceSettings

    client = client or QdrantClient(":memory:")
    if filled:
        fill(client, folder)
    app = create_app(
        client,
        make_pipeline or (lambda: pipeline or ColourPipeline()),
        ServiceSettings(**settings),
        tracer_provider=tracer_provider,
    )
    with testclient.TestClient(app, base_url="http://127.0.0.1") as made:
        if ready:
            app.state.backend.ready.wait(20)
        made.service = app.state.backend
        yield made


def search(web: Any, image: bytes | None = None, collection: str = "shelves", **request: Any) -> Any:
    """A search: with an image, a form; else JSON."""
    address = f"/v1/collections/{collection}/search"
    if image is None:
        return web.post(address, json=request)
    return web.post(address, files={"image": ("query.png", image)}, data={"request": json.dumps(request)})


def names(answer: Any) -> list[str]:
    """Of the images found."""
    assert answer.status_code == 200, answer.text
    return [hit["name"] for hit in answer.json()["hits"]]


def ids(web: Any, collection: str = "shelves") -> Mapping[str, str]:
    """Name -> id of all images."""
    page = web.get(f"/v1/collections/{collection}/images").json()
    return {image["name"]: image["id"] for image in page["images"]}


def wait_until(is_so: Callable[[], bool], seconds: float = 4) -> None:
    """Look again and again; fails where it is not so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never was")
