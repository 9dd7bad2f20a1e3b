"""A running service and a real browser for tests of the page."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ColourPipeline
from qdrant_client import QdrantClient
from service_app import png

from soir_qdrant.types import RGB

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = Path("build") / "page"  # a picture of each state, to be looked at


@contextmanager
def running(client: QdrantClient, pipeline: Any = None, **settings: Any) -> Iterator[str]:
    """A service under uvicorn; its address."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from soir_qdrant.service.app import create_app
    from soir_qdrant.service.run import configuration, listener
    from soir_qdrant.service.settings import ServiceSettings

    chosen = ServiceSettings(port=0, **settings)
    app = create_app(client, lambda: pipeline or ColourPipeline(), chosen)
    socket = listener(chosen)
    server = uvicorn.Server(configuration(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        app.state.backend.stopping.set()
        server.should_exit = True
        thread.join(30)


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium under Playwright; skips where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None and os.environ.get("SOIR_BROWSER") == "required":
        pytest.fail("no Chromium here: apt-get install chromium")
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


def watched(page: Any, origin: str) -> list[str]:
    """What must not happen on a page, as it happens: requests to other hosts, errors, refused content."""
    wrong: list[str] = []
    page.on("request", lambda request: request.url.startswith(origin) or wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    return wrong


def drag(page: Any, box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """Draw with the mouse. box: in pixels of an image of this size."""
    frame = page.locator("#boxes").bounding_box()
    scale = frame["width"] / size[0]
    corners = [(frame["x"] + x * scale, frame["y"] + y * scale) for x, y in (box[:2], box[2:])]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=5)
    page.mouse.up()


def shoot(page: Any, name: str) -> None:
    """Keep a picture of the page."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def choose(page: Any, image: RGB) -> None:
    """Choose an image of the user's."""
    page.set_input_files("#file", {"name": "query.png", "mimeType": "image/png", "buffer": png(image)})
    status(page, "Draw a box round one thing.")


def hit_names(page: Any) -> list[str]:
    """Names of the images on the page, once a search is through."""
    page.wait_for_selector("#results:not([aria-busy])")
    page.wait_for_selector(".card")
    return page.locator(".card .name").all_inner_texts()


def rows(buttons: Any) -> int:
    """How many rows they take, none of them cut off."""
    assert buttons.evaluate_all("all => all.every((one) => one.scrollWidth <= one.clientWidth)")
    return len({round(button.bounding_box()["y"]) for button in buttons.all()})


def status(page: Any, text: str) -> None:
    """Wait until the page says so."""
    page.locator("#status", has_text=text).wait_for()
