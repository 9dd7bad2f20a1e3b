"""The page in a real browser: pages of hits, and images that are dropped or pasted."""

import numpy as np
import pytest
from browser import choose, chromium, hit_names, running, shoot, status, watched
from conftest import ColourPipeline
from PIL import Image
from qdrant_client import QdrantClient
from service_app import BLUE, GREEN, RED, fill, png, shelf

from soir_qdrant import Pipeline, SoirIngestor

pytestmark = pytest.mark.slow
# What a browser hands to a page with a drop, or with a paste.
HAND_OVER = """([kind, bytes, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "query", { type }));
  const own = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(own);
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as running_browser:
        yield running_browser


@pytest.fixture
def page(browser):
    opened_page = browser.new_page(viewport={"width": 1280, "height": 860})
    opened_page.set_default_timeout(60_000)
    yield opened_page
    opened_page.close()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(page, tmp_path, kind):
    client = QdrantClient(":memory:")
    fill(client, tmp_path)
    with running(client, rate=0) as origin:
        page.goto(origin)
        status(page, "3 pictures")
        page.evaluate(HAND_OVER, [kind, list(png(shelf(RED, BLUE))), "image/png"])
        status(page, "Draw a box round one thing.")
        page.click("#search")
        assert len(hit_names(page)) == 3
        page.evaluate(HAND_OVER, ["drop", [1, 2], "application/pdf"])
        status(page, "holds no picture")


def test_hits_follow_on_the_next_page_and_the_address_knows_which(page, tmp_path):
    for i in range(30):  # each less red than the one before: of equal ones, the order is not certain
        image = np.full((60, 80, 3), (200, 0, 40), np.uint8)
        image[: 2 * i] = BLUE
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    client = QdrantClient(":memory:")
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(tmp_path, progress=False)
    with running(client, rate=0) as origin:
        page.goto(origin)
        choose(page, np.full((60, 80, 3), (200, 0, 40), np.uint8))
        page.click("#search")
        first = hit_names(page)
        assert len(first) == 24
        assert page.locator("#previous").is_disabled()
        page.click("#next")
        page.locator(".card strong", has_text="25").wait_for()
        assert "offset=24" in page.url
        assert len(hit_names(page)) == 6
        assert not set(hit_names(page)) & set(first)
        assert page.locator("#next").is_disabled()
        page.click("#previous")
        page.locator(".card strong", has_text="24").wait_for()
        assert hit_names(page) == first
        page.click("[data-view=browse]")
        status(page, "24 pictures")
        page.click("#next")
        status(page, "6 pictures")


def test_hits_are_shown_before_their_heat_maps_are_there(page, tmp_path, tiny_settings):
    client, pipeline = QdrantClient(":memory:"), Pipeline(tiny_settings)
    for name, things in {"a.png": (RED, BLUE), "b.png": (GREEN, RED)}.items():
        Image.fromarray(shelf(*things)).save(tmp_path / name)
    SoirIngestor(client, "shelves", pipeline=pipeline).add(tmp_path, progress=False)
    with running(client, pipeline, rate=0) as origin:
        wrong, waiting, released = watched(page, origin), [], []
        page.route("**/heat?*", lambda route: route.continue_() if released else waiting.append(route))
        page.goto(origin)
        choose(page, shelf(RED, GREEN))
        page.click("#search")
        hit_names(page)
        page.get_by_label("Heat maps").check()
        page.wait_for_selector(".picture.busy")
        page.click("#search")
        assert len(hit_names(page)) == 2
        images = page.locator(".picture > img:not(.overlay)").element_handles()
        page.wait_for_function("all => all.every((one) => one.complete && one.naturalWidth)", arg=images)
        assert page.locator("img.heat").evaluate_all("all => all.every((one) => !one.naturalWidth)")
        released.append(True)
        for route in waiting:
            route.continue_()
        page.wait_for_function("() => document.querySelectorAll('.card img.heat').length === 2")
        page.wait_for_selector(".picture.busy", state="detached")
        shoot(page, "heat")
    assert not wrong
