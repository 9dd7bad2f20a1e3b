"""The box over the image, by mouse and by finger: what is shown is what is searched for, inside the image."""

from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import choose, chromium, running, shoot, status, watched
from conftest import ColourPipeline
from qdrant_client import QdrantClient
from service_app import BLUE, BOTTOM, RED, TOP, fill, png, shelf

from soir_qdrant.service.system_api import PAGE
from soir_qdrant.types import SceneObject

SIZE = (80, 60)
VIEW = {"width": 1280, "height": 860}
pytestmark = pytest.mark.slow


class Looking(ColourPipeline):
    """Detects two objects in everything."""

    def find(self, images, objects):
        return [[SceneObject(TOP), SceneObject(BOTTOM)] for _ in images]


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    client = QdrantClient(":memory:")
    fill(client, tmp_path_factory.mktemp("photos"))
    with running(client, Looking(), rate=0) as address:
        yield address


class Hand:
    """A page with an image, and what draws on it. Points are pixels of the image."""

    def __init__(self, page, touch):
        self.page, self.touch = page, touch

    def stroke(self, *points):
        frame = self.page.locator("#boxes").bounding_box()
        scale = frame["width"] / SIZE[0]
        first, *others = ((frame["x"] + x * scale, frame["y"] + y * scale) for x, y in points)
        for kind, place in [("Start", first), *(("Move", place) for place in others), ("End", None)]:
            if self.touch:
                places = [{"x": place[0], "y": place[1]}] if place else []
                self.touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": places})
                continue
            if place:
                self.page.mouse.move(*place, steps=3)
            if kind != "Move":
                (self.page.mouse.down if kind == "Start" else self.page.mouse.up)()

    def searched(self, *points):
        """The box that is searched for after a stroke."""
        with self.page.expect_response("**/search") as answer:
            self.stroke(*points)
        assert answer.value.ok
        (box,) = parse_qs(urlsplit(self.page.url).query)["upload"]
        return [int(number) for number in box.split(",")]

    def shown(self):
        """The box on the screen."""
        corners = self.page.locator("#boxes .a9s-inner").evaluate(
            "box => [box.points[0], box.points[2]].flatMap(({x, y}) => [x, y].map("
            "(value) => value / box.ownerSVGElement.viewBox.baseVal.width))"
        )
        return [round(corner * SIZE[0]) for corner in corners]


@pytest.fixture(params=["mouse", "finger"])
def hand(request, browser, origin):
    context = browser.new_context(viewport=VIEW, has_touch=request.param == "finger")
    page = context.new_page()
    wrong = watched(page, origin)
    page.goto(origin)
    status(page, "3 pictures")
    choose(page, shelf(RED, BLUE))
    yield Hand(page, context.new_cdp_session(page) if request.param == "finger" else None)
    context.close()
    assert not wrong


def test_what_is_shown_is_what_is_searched_for(hand):
    for stroke, box in [
        (((5, 5), (15, 10), (25, 25)), [5, 5, 25, 25]),  # drawn
        (((15, 15), (45, 30), (90, 70)), [60, 40, 80, 60]),  # moved, beyond the image
        (((60, 40), (50, 30), (40, 20)), [40, 20, 80, 60]),  # resized by a corner
        (((40, 35), (30, 35), (-9, 35)), [0, 20, 80, 60]),  # resized by a side, beyond the image
        (((30, 15), (20, 10), (-5, -5)), [0, 0, 30, 15]),  # another, beside it
        (((70, 40), (74, 42), (76, 45)), [70, 40, 76, 45]),  # a small one, quickly
    ]:
        assert hand.searched(*stroke) == box
        assert hand.shown() == box
    shoot(hand.page, "box")


def test_a_click_chooses_the_object_under_the_box_and_leaves_the_box_where_there_is_none(hand):
    hand.page.click("#detect")
    status(hand.page, "2 objects")
    assert hand.searched((2, 2), (40, 30), (78, 58)) == [2, 2, 78, 58]
    hand.stroke((40, 15))
    assert hand.shown() == [2, 2, 78, 58]
    assert hand.searched((60, 40)) == list(BOTTOM)
    hand.stroke((40, 15))
    assert hand.shown() == list(BOTTOM)
    assert hand.searched((15, 15)) == list(TOP)
    shoot(hand.page, "chosen")


def test_a_line_is_no_box(hand):
    assert hand.searched((5, 5), (25, 25)) == [5, 5, 25, 25]
    hand.stroke((40, 30), (50, 31), (60, 31))
    assert hand.shown() == [5, 5, 25, 25]
    hand.stroke((40, 30), (60, 30.5))
    assert hand.shown() == [5, 5, 25, 25]


@pytest.mark.parametrize("hand", ["mouse"], indirect=True)
def test_only_the_left_button_draws(hand):
    assert hand.searched((5, 5), (25, 25)) == [5, 5, 25, 25]
    frame = hand.page.locator("#boxes").bounding_box()
    hand.page.mouse.move(frame["x"] + 200, frame["y"] + 150)
    hand.page.mouse.down(button="right")
    hand.page.mouse.move(frame["x"] + 300, frame["y"] + 250, steps=3)
    hand.page.mouse.up(button="right")
    assert hand.shown() == [5, 5, 25, 25]


def test_without_annotorious_objects_are_clicked_and_the_page_says_how(browser, origin):
    page = browser.new_page(viewport=VIEW)
    page.route("**/annotorious.js", lambda route: route.abort())
    page.goto(origin)
    status(page, "3 pictures")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(shelf(RED, BLUE))})
    status(page, "Choose one thing as it says below the picture.")
    assert "annotorious.js could not be loaded. Reload the page" in page.locator("#keys").inner_text()
    page.click("#detect")
    status(page, "2 objects")
    hand = Hand(page, None)
    hand.stroke((5, 5), (15, 10), (75, 55))
    assert not urlsplit(page.url).query.count("upload")
    assert hand.searched((60, 40)) == list(BOTTOM)
    shoot(page, "no annotorious")
    with page.expect_response("**/search"):
        page.focus("#boxes")
        page.keyboard.press("p")
        page.keyboard.press("Enter")
    assert parse_qs(urlsplit(page.url).query)["upload"] == ["5,5,25,25"]
    page.close()


@pytest.mark.parametrize("hand", ["mouse"], indirect=True)
def test_ctrl_z_in_a_field_leaves_the_box(hand):
    hand.searched((5, 5), (25, 25))
    hand.page.click("#filters > summary")
    hand.page.get_by_label("at least").fill("1")
    for keys in ("Control+z", "Control+y"):
        hand.page.keyboard.press(keys)
    assert hand.shown() == [5, 5, 25, 25]
    assert hand.page.locator("#boxes .a9s-inner").count() == 1


@pytest.mark.parametrize(("hand", "scheme"), [("mouse", "light"), ("finger", "dark")], indirect=["hand"])
def test_the_box_has_one_place_in_the_order_of_the_keys_and_the_contrast_of_wcag_aa(hand, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the extra dev is not installed"
    )
    hand.page.emulate_media(color_scheme=scheme)
    hand.searched((5, 5), (25, 25))
    hand.page.locator("#boxes").focus()
    hand.page.keyboard.press("Tab")
    assert hand.page.evaluate("document.activeElement.id") == "search"
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    violations = axe.Axe().run(hand.page, options=rules).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
    shoot(hand.page, f"box-{scheme}")


def test_other_peoples_code_is_what_its_licences_say():
    licences = (PAGE / "vendor" / "LICENSES.md").read_text()
    files = [file for file in (PAGE / "vendor").iterdir() if file.suffix != ".md"]
    assert sorted(file.name for file in files) == ["annotorious.css", "annotorious.js"]
    for file in files:
        assert (
            f"| `{file.name}` | {file.stat().st_size:,} | `{sha256(file.read_bytes()).hexdigest()}` |"
            in licences
        )
