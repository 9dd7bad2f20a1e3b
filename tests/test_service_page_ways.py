"""The page in a real browser: where one begins, the way back, and controls that are there when they do something."""

import numpy as np
import pytest
from browser import choose, chromium, drag, hit_names, running, shoot, status, watched
from conftest import ColourPipeline
from PIL import Image
from qdrant_client import QdrantClient
from service_app import BLUE, GREEN, RED, TOP, fill, shelf

from soir_qdrant import SoirIngestor

SIZE, VIEW = (80, 60), {"width": 1280, "height": 860}
pytestmark = pytest.mark.slow
PIXEL = "canvas => [...canvas.getContext('2d').getImageData(10, 10, 1, 1).data].slice(0, 3)"


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened_browser:
        yield opened_browser


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    client, folder = QdrantClient(":memory:"), tmp_path_factory.mktemp("photos")
    fill(client, folder)
    client.create_collection("empty", client.get_collection("shelves").config.params.vectors)
    with running(client, rate=0) as address:
        yield address


@pytest.fixture
def page(browser, origin):
    opened_page = browser.new_page(viewport=VIEW)
    opened_page.set_default_timeout(20_000)
    wrong = watched(opened_page, origin)
    opened_page.goto(origin)
    status(opened_page, "3 pictures")
    yield opened_page
    opened_page.close()
    assert not wrong


def withheld(page, address):
    """The requests to an address, to be answered later."""
    waiting = []
    page.route(address, lambda route: waiting.append(route))
    return waiting


def test_one_begins_with_the_pictures_of_the_collection_and_a_click_in_one_searches(page):
    assert sorted(hit_names(page)) == ["green-blue.png", "red-blue.png", "red-green.png"]
    assert page.get_by_role("heading", name="In the collection").is_visible()
    shoot(page, "begin")
    page.locator(".card", has_text="red-blue.png").hover()
    page.locator(".card", has_text="red-blue.png").locator("rect[data-object='1']").click()
    page.get_by_role("heading", name="Found").wait_for()
    assert set(hit_names(page)[:2]) == {"red-blue.png", "green-blue.png"}
    page.click("#another")
    status(page, "3 pictures")
    page.locator("#paging").wait_for(state="hidden")


def test_back_leads_to_the_picture_that_was_searched_with(page):
    choose(page, shelf(RED, GREEN))
    drag(page, TOP, SIZE)
    first = hit_names(page)
    choose(page, shelf(BLUE, GREEN))
    drag(page, TOP, SIZE)
    page.wait_for_url(lambda url: "upload=" in url)
    assert set(hit_names(page)[:2]) == {"red-blue.png", "green-blue.png"}
    page.locator(".card").first.get_by_text("Search from here").click()
    page.wait_for_selector("#stored:not([hidden])")
    with page.expect_response("**/search"):
        page.go_back()
    hit_names(page)
    assert page.locator("#canvas").evaluate(PIXEL) == list(BLUE)
    with page.expect_response("**/search"):
        page.go_back()
    assert hit_names(page) == first
    assert page.locator("#canvas").evaluate(PIXEL) == list(RED)
    assert page.locator("#boxes .a9s-inner").count() == 1


def test_a_picture_that_is_chosen_while_a_search_runs_is_not_answered_by_it(page):
    choose(page, shelf(RED, GREEN))
    waiting = withheld(page, "**/search")
    page.click("#search")
    status(page, "Searching")
    page.wait_for_timeout(100)
    choose(page, shelf(BLUE, GREEN))
    waiting[0].continue_()
    page.wait_for_selector("#results:not([aria-busy])")
    page.wait_for_timeout(300)
    status(page, "Draw a box round one thing.")
    assert page.locator(".card").count() == 0


@pytest.mark.parametrize("view", ["", "?c=shelves&browse="])
def test_pictures_that_come_late_are_not_shown_in_another_collection(page, origin, view):
    facets, images = withheld(page, "**/empty/facets*"), withheld(page, "**/shelves/images?*")
    page.goto(f"{origin}{view}")
    status(page, "Looking through" if view else "3 pictures")
    page.wait_for_timeout(300)
    page.select_option("#collection", "empty")
    page.wait_for_timeout(100)
    images[0].continue_()
    page.wait_for_timeout(500)
    assert "went wrong" not in page.locator("#status").inner_text()
    assert page.locator(".card").count() == 0
    facets[0].continue_()
    status(page, "soir ingest FOLDER --collection empty")


def test_objects_that_come_late_are_not_those_of_another_picture(page):
    choose(page, shelf(RED, GREEN))
    waiting = withheld(page, "**/objects*")
    page.click("#detect")
    status(page, "Looking for objects")
    page.wait_for_timeout(100)
    page.click("#another")
    status(page, "3 pictures")
    waiting[0].fulfill(json={"upload": "u", "objects": [{"box": [0, 0, 10, 10], "score": 1}]})
    page.wait_for_selector("#detect:not([disabled])", state="attached")
    page.wait_for_timeout(300)
    status(page, "3 pictures")


def test_a_filter_holds_for_the_pictures_that_one_begins_with(page):
    page.click("#filters > summary")
    page.get_by_label("south").check()
    page.wait_for_url(lambda url: "south" in url)
    page.wait_for_selector("#results:not([aria-busy])")
    page.locator(".card", has_text="red-green.png").wait_for(state="detached")
    assert sorted(hit_names(page)) == ["green-blue.png", "red-blue.png"]


def test_an_empty_collection_says_what_to_do_in_every_view(page):
    page.select_option("#collection", "empty")
    for view in ("browse", "map", "duplicates"):
        page.click(f"[data-view={view}]")
        page.wait_for_url(lambda url, view=view: view in url)
        page.wait_for_selector("#results:not([aria-busy])")
        assert page.locator("#status code").inner_text() == "soir ingest FOLDER --collection empty"
        assert not page.locator(".map").count()


def test_another_collection_is_searched_with_the_same_picture_only_where_that_is_ones_own(page):
    choose(page, shelf(RED, GREEN))
    drag(page, TOP, SIZE)
    hit_names(page)
    page.select_option("#collection", "empty")
    page.wait_for_url("**/?c=empty&upload=*")
    page.select_option("#collection", "shelves")
    hit_names(page)
    page.locator(".card").first.get_by_text("Search from here").click()
    page.wait_for_url(lambda url: "id=" in url)
    page.select_option("#collection", "empty")
    page.wait_for_url("**/?c=empty")
    page.wait_for_selector("#stage", state="hidden")


def test_what_would_do_nothing_is_not_there(page):
    heat, masks = page.get_by_label("Heat maps"), page.get_by_label("Masks")
    page.click("[data-view=browse]")
    hit_names(page)
    assert not heat.is_visible()
    assert not masks.is_visible()
    choose(page, shelf(RED, GREEN))
    assert page.locator("#whole").is_disabled()
    drag(page, TOP, SIZE)
    hit_names(page)
    assert heat.is_visible()
    assert masks.is_visible()
    page.click("#whole")
    assert page.locator("#whole").is_disabled()


def test_what_is_enlarged_stays_around_the_object_until_one_scrolls(page):
    choose(page, shelf(GREEN, BLUE))
    drag(page, TOP, SIZE)
    hit_names(page)
    page.locator(".card", has_text="red-green.png").get_by_text(
        "Enlarge"
    ).click()  # there at the bottom right
    matched, pane = page.locator("#viewer rect.matched"), page.locator("#viewer-scroll")
    for _ in range(4):
        page.click("#viewer-in")
        assert matched.evaluate(
            """(box, pane) => {
              const [inner, outer] = [box.getBoundingClientRect(), pane.getBoundingClientRect()];
              const [x, y] = [(inner.left + inner.right) / 2, (inner.top + inner.bottom) / 2];
              return x > outer.left && x < outer.right && y > outer.top && y < outer.bottom;
            }""",
            pane.element_handle(),
        )
    pane.evaluate("pane => pane.scrollTo(0, 0)")
    page.click("#viewer-out")
    assert pane.evaluate("pane => pane.scrollTop") < 10


def test_hits_of_a_new_search_are_shown_from_the_first(browser, tmp_path):
    for i in range(30):
        Image.fromarray(np.full((60, 80, 3), (200 - 6 * i, 6 * i, 40), np.uint8)).save(
            tmp_path / f"{i:02}.png"
        )
    client = QdrantClient(":memory:")
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(tmp_path, progress=False)
    with running(client, rate=0) as address:
        page = browser.new_page(viewport=VIEW)
        page.goto(f"{address}?c=shelves&browse=")
        hit_names(page)
        page.locator(".card").nth(20).get_by_text("Search from here").click()
        page.wait_for_url(lambda url: "id=" in url)
        hit_names(page)
        assert page.evaluate("document.getElementById('results').getBoundingClientRect().top") > -1
        page.close()
