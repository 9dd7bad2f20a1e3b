"""The page in a real browser, as people use it."""

import re

import pytest
from browser import choose, chromium, drag, hit_names, rows, running, shoot, status, watched
from conftest import ColourPipeline
from PIL import Image
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct
from service_app import BLUE, BOTTOM, GREEN, RED, TOP, Reading, fill, png, shelf

from soir_qdrant import Pipeline, SoirIngestor
from soir_qdrant.lab.demo import photographs
from soir_qdrant.lab.evaluate.bench import load
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.last_ingest import remember
from soir_qdrant.types import Failure, SceneObject

SIZE = (80, 60)
EVIL = "<img src=x onerror=document.title='gone'>"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    made = QdrantClient(":memory:")
    fill(made, tmp_path_factory.mktemp("photos"))
    points, _ = made.scroll("shelves", limit=10)
    made.set_payload("shelves", {"note": EVIL}, points=[point.id for point in points])
    made.create_collection("empty", made.get_collection("shelves").config.params.vectors)
    return made


@pytest.fixture(scope="module")
def origin(client):
    with running(client, rate=0) as address:
        yield address


@pytest.fixture
def page(browser, origin):
    made = browser.new_page(viewport={"width": 1280, "height": 860})
    made.set_default_timeout(20_000)
    wrong = watched(made, origin)
    made.goto(origin)
    status(made, "3 pictures")
    made.wrong = wrong
    yield made
    made.close()
    assert not wrong


def test_draw_a_box_and_find_the_thing_and_where_it_is(page):
    shoot(page, "welcome")
    choose(page, shelf(GREEN, BLUE))
    drag(page, TOP, SIZE)
    assert set(hit_names(page)[:2]) == {"red-green.png", "green-blue.png"}
    card = page.locator(".card", has_text="red-green.png")
    matched = card.locator("rect.matched")
    assert [float(matched.get_attribute(name)) for name in ("x", "y")] == list(BOTTOM[:2])
    assert card.locator(".picture > img:not(.overlay)").evaluate(
        "image => image.complete && image.naturalWidth > 0"
    )
    assert rows(card.locator(".actions button")) == 2
    shoot(page, "found")


def test_the_box_is_moved_and_resized_and_searched_with_again(page):
    choose(page, shelf(GREEN, BLUE))
    drag(page, TOP, SIZE)
    hit_names(page)
    with page.expect_response("**/search"):
        frame = page.locator("#boxes .a9s-inner").bounding_box()
        layer = page.locator("#boxes").bounding_box()
        page.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
        page.mouse.down()
        page.mouse.move(layer["x"] + layer["width"] * 0.78, layer["y"] + layer["height"] * 0.7, steps=5)
        page.mouse.up()
    assert set(hit_names(page)[:2]) == {"red-blue.png", "green-blue.png"}


def test_keys_alone_are_enough(page):
    choose(page, shelf(RED, GREEN))
    page.keyboard.press("ArrowRight")  # a box in the middle
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    assert set(hit_names(page)[:2]) == {"red-green.png", "red-blue.png"}
    page.locator(".card").first.get_by_text("Enlarge").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")
    page.keyboard.press("ArrowRight")
    shoot(page, "viewer")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_a_click_on_an_object_of_a_hit_searches_from_there(page):
    page.click("#browse")
    hit_names(page)
    page.locator(".card", has_text="red-blue.png").hover()
    page.locator(".card", has_text="red-blue.png").locator("rect[data-object='1']").click()
    page.wait_for_selector("#stored:not([hidden])")
    assert set(hit_names(page)[:2]) == {"red-blue.png", "green-blue.png"}
    page.locator("#boxes rect[data-object='0']").click(force=True)
    page.wait_for_url(lambda url: "o0" in url)
    assert set(hit_names(page)[:2]) == {"red-blue.png", "red-green.png"}


def test_an_address_shows_others_the_same_and_back_goes_back(page, browser):
    page.click("#browse")
    hit_names(page)
    page.locator(".card", has_text="red-green.png").get_by_text("Search from here").click()
    page.wait_for_url(lambda url: "id=" in url)
    page.click("#filters > summary")
    page.get_by_label("south").check()
    page.wait_for_url(lambda url: "south" in url)
    names = hit_names(page)
    assert "red-green.png" not in names
    other = browser.new_page()
    other.goto(page.url)
    assert hit_names(other) == names
    other.close()
    page.go_back()
    page.wait_for_url(lambda url: "south" not in url)
    status(page, "3 pictures")


def test_previous_after_back_is_the_page_before(browser, tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path)
    (point, *_), _ = client.scroll("shelves", with_vectors=True)
    more = [PointStruct(id=i, vector=point.vector, payload=point.payload) for i in range(60)]
    client.upsert("shelves", more)
    with running(client, rate=0) as origin:
        page = browser.new_page()
        page.goto(origin)
        status(page, "63 pictures")
        shown = []
        for button in ("#browse", "#next", "#next"):
            page.click(button)
            page.wait_for_url(lambda url: "browse" in url and url not in shown)
            page.wait_for_selector("#results:not([aria-busy])")
            shown.append(page.url)
        page.go_back()
        page.wait_for_url(shown[1])
        page.wait_for_selector("#results:not([aria-busy])")
        page.click("#previous")
        page.wait_for_selector("#previous[disabled]")
        assert page.url == shown[0]
        page.close()


def test_more_like_this_and_not_this(page):
    page.click("#browse")
    hit_names(page)
    page.locator(".card", has_text="red-green.png").get_by_text("Search from here").click()
    status(page, "alike first")
    page.locator(".card", has_text="green-blue.png").get_by_text("More like this").click()
    page.wait_for_selector("#chips li.more img")
    page.locator(".card", has_text="red-blue.png").get_by_text("Not this").click()
    page.wait_for_selector("#chips li.not")
    shoot(page, "examples")
    page.locator("#chips li.not button").click()
    page.wait_for_selector("#chips li.not", state="detached")


def test_groups_and_names_that_are_not_html(page):
    choose(page, shelf(RED, BLUE))
    page.click("#filters > summary")
    page.get_by_label("Group by").select_option("shop")
    page.wait_for_selector(".group")
    assert page.locator(".group h3").all_inner_texts() == ["south", "north"]
    assert page.get_by_label(EVIL).count() == 1  # as a text among the filters
    assert page.title() == "Find the thing"


def test_names_of_files_and_collections_are_not_html_either(browser, tmp_path):
    client = QdrantClient(":memory:")
    (tmp_path / f"{EVIL}.png").write_bytes(png(shelf(RED, BLUE)))
    SoirIngestor(client, "shelves", pipeline=ColourPipeline()).add(tmp_path, progress=False)
    with running(client, rate=0) as address:
        page = browser.new_page()
        wrong = watched(page, address)
        page.goto(f"{address}?c=shelves&browse=")
        assert hit_names(page) == [f"{EVIL}.png"]
        page.locator(".card").get_by_text("Enlarge").click()
        assert page.locator("#viewer-name").inner_text() == f"{EVIL}.png"
        page.goto(f"{address}?c={EVIL}&filter={EVIL}")
        status(page, f"There is no collection “{EVIL}” here")
        assert page.title() == "Find the thing"
        page.close()
    assert not wrong


def test_an_image_that_cannot_be_shown_says_why(browser, tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path / "photos")
    (tmp_path / "photos" / "red-green.png").unlink()
    with running(client, rate=0) as address:
        page = browser.new_page()
        page.goto(f"{address}?c=shelves&browse=")
        page.locator(".card", has_text="was it moved or deleted?").wait_for()
        assert (
            page.locator(".card", has_text="moved or deleted").locator(".name").inner_text()
            == "red-green.png"
        )
        page.close()


def test_what_to_do_is_said_when_nothing_is_found(page):
    page.select_option("#collection", "empty")
    status(page, "soir ingest FOLDER --collection empty")
    page.select_option("#collection", "shelves")
    choose(page, shelf(RED, BLUE))
    page.click("#filters > summary")
    page.get_by_label("at least").fill("50")
    page.get_by_label("at least").press("Tab")
    status(page, "Take a condition off")
    page.get_by_text("As Qdrant's JSON").click()
    own = page.get_by_role("textbox", name="added to the conditions above")
    own.fill("{")
    own.blur()
    status(page, "no JSON")
    shoot(page, "no-hits")


def test_a_phone_with_touch_in_the_dark(browser, origin):
    context = browser.new_context(
        viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    page = context.new_page()
    wrong = watched(page, origin)
    page.goto(origin)
    choose(page, shelf(GREEN, BLUE))
    frame = page.locator("#boxes").bounding_box()
    scale = frame["width"] / SIZE[0]
    touch = context.new_cdp_session(page)

    def send(kind, *places):
        points = [{"x": frame["x"] + x * scale, "y": frame["y"] + y * scale} for x, y in places]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", TOP[:2])
    send("touchMove", (15, 15))
    send("touchMove", TOP[2:])
    send("touchEnd")
    assert set(hit_names(page)[:2]) == {"red-green.png", "green-blue.png"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert rows(page.locator(".card").first.locator(".actions button")) == 2
    shoot(page, "phone")
    context.close()
    assert not wrong


def test_a_token_is_asked_for_once(browser, client):
    token = "a long enough token"
    with running(client, token=token) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#login[open]")
        page.fill("#token", "a wrong guess")
        page.click("#login button")
        page.locator("#login-error", has_text=re.compile("^This is not the token")).wait_for()
        shoot(page, "login")
        page.fill("#token", token)
        page.click("#login button")
        status(page, "3 pictures")
        page.reload()
        status(page, "3 pictures")
        page.close()


def test_a_service_that_is_gone_is_named_and_the_page_goes_on_when_it_is_back(page):
    choose(page, shelf(RED, BLUE))
    page.route("**/search", lambda route: route.abort())
    page.click("#search")
    status(page, "does not answer")
    shoot(page, "gone")
    page.wrong.clear()  # the browser's own line on a failed request
    page.unroute("**/search")
    page.click("#search")
    assert hit_names(page)


@pytest.mark.parametrize(
    ("script", "body"), [("app.js", None), ("state.js", None), ("state.js", "throw new Error('no')")]
)
def test_a_page_whose_scripts_fail_says_so(browser, origin, script, body):
    page = browser.new_page()
    page.route(
        f"**/page/{script}",
        lambda route: route.fulfill(body=body, content_type="text/javascript") if body else route.abort(),
    )
    page.goto(origin)
    status(page, "The page did not start")
    page.close()


def test_what_fails_at_the_start_is_said(browser, origin):
    page = browser.new_page()
    body = "export function keepTheme() { throw Error('no theme') }"
    page.route("**/page/theme.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))
    page.goto(origin)
    status(page, "Something went wrong in the page: no theme. Reload it")
    page.close()


def test_a_collection_is_sorted_and_looked_at_on_a_map(page):
    page.click("[data-view=browse]")
    page.get_by_label("Order").select_option("price")
    page.wait_for_url(lambda url: "sort=price" in url)
    assert hit_names(page) == ["red-green.png", "red-blue.png", "green-blue.png"]
    page.get_by_label("largest first").check()
    page.wait_for_url(lambda url: "descending=price" in url)
    assert hit_names(page)[0] == "green-blue.png"
    page.set_default_timeout(90_000)  # scikit-learn is loaded for the first map
    page.click("[data-view=map]")
    status(page, "6 objects of 3 pictures")
    assert page.locator(".map .point").count() == 6
    page.wait_for_function("document.querySelectorAll('.map image.thumb').length > 0")
    page.locator(".map").focus()
    page.keyboard.press("ArrowRight")  # the object in the middle
    page.wait_for_selector(".preview img")
    shoot(page, "map")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "~o" in url.replace("%7E", "~"))
    assert len(hit_names(page)) == 3


def test_a_line_round_some_objects_of_the_map_searches_for_them(page):
    page.set_default_timeout(90_000)  # scikit-learn may have to be loaded
    page.goto(f"{page.url}?c=shelves&map=pca")
    status(page, "6 objects")
    frame = page.locator(".map").bounding_box()
    page.mouse.move(frame["x"] + 2, frame["y"] + 2)
    page.mouse.down()
    for x, y in ((0.99, 0.01), (0.99, 0.99), (0.01, 0.99)):
        page.mouse.move(frame["x"] + frame["width"] * x, frame["y"] + frame["height"] * y, steps=3)
    assert page.locator(".map .lasso").get_attribute("points")
    shoot(page, "lasso")
    page.mouse.up()
    page.wait_for_selector("#chips li.more img")
    assert page.locator("#chips li.more").count() == 5
    assert len(hit_names(page)) == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_labels_are_those_of_wcag_aa(browser, origin, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the extra dev is not installed"
    )
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(90_000)  # scikit-learn may have to be loaded
    for view in ("", "?c=shelves&browse=", "?c=shelves&map=pca", "?c=shelves&duplicates=0.5"):
        page.goto(f"{origin}{view}")
        page.wait_for_selector("#results:not([aria-busy])")
        status(page, "pictures")
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        violations = axe.Axe().run(page, options=rules).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
    page.close()


def test_near_duplicates_and_what_failed_to_get_in(page, client):
    page.click("[data-view=duplicates]")
    assert page.get_by_label("Similarity of at least").input_value() == "0.8"
    page.get_by_label("Similarity of at least").fill("0.99")
    page.get_by_label("Similarity of at least").press("Tab")
    status(page, "Lower the similarity")
    page.get_by_label("Similarity of at least").fill("0.5")
    page.get_by_label("Similarity of at least").press("Tab")
    status(page, "nearly the same")
    assert page.locator(".group .card").count() >= 2
    shoot(page, "duplicates")
    page.click("[data-view=ingest]")
    status(page, "Nothing is remembered")
    remember(Store(client, "shelves"), {"added": 3}, [Failure(EVIL, "no image of a known kind")])
    page.click("[data-view=ingest]")
    status(page, "1 picture could not be put in")
    assert page.locator(".failures td").all_inner_texts() == [EVIL, "no image of a known kind"]
    shoot(page, "ingest")


class Looking(ColourPipeline):
    """Detects two objects in everything."""

    def find(self, images, objects):
        return [[SceneObject(TOP), SceneObject(BOTTOM)] for _ in images]


def test_objects_of_an_upload_are_shown_and_masks_laid_over_hits(browser, client):
    with running(client, Looking(), rate=0) as address:
        page = browser.new_page()
        page.goto(address)
        choose(page, shelf(RED, BLUE))
        page.click("#detect")
        page.locator("#boxes rect.object[data-object='1']").click(force=True)
        assert set(hit_names(page)[:2]) == {"red-blue.png", "green-blue.png"}
        page.get_by_label("Masks").check()
        page.wait_for_selector(".card img.mask")
        assert re.search(r"upload=50,30,75,55", page.url.replace("%2C", ","))
        page.close()


def test_words_change_the_thing_and_the_address_keeps_them(browser, client, tmp_path):
    with running(client, Reading(), rate=0) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        status(page, "3 pictures")
        page.get_by_label("Or by words").fill("red")
        page.get_by_label("Or by words").press("Enter")
        assert set(hit_names(page)[:2]) == {"red-green.png", "red-blue.png"}
        page.locator(".card", has_text="red-green.png").get_by_text("Search from here").click()
        page.wait_for_url(lambda url: "id=" in url)
        page.get_by_label("This, but").fill("blue")
        page.get_by_label("instead of").fill("red")
        page.get_by_label("instead of").press("Enter")
        page.wait_for_url(lambda url: "but=blue&instead=red" in url)
        page.locator(".card:first-child", has_text="red-blue.png").wait_for()  # holds both
        names = hit_names(page)
        shoot(page, "words")
        other = browser.new_page()
        other.goto(page.url)
        assert hit_names(other) == names
        assert other.get_by_label("This, but").input_value() == "blue"
        other.close()
        page.close()


def test_where_the_profile_reads_no_words_no_field_asks_for_any(page):
    choose(page, shelf(RED, BLUE))
    drag(page, TOP, SIZE)
    hit_names(page)
    assert not page.locator("#words, #change").filter(visible=True).count()


def test_pictures_are_added_with_their_progress_and_deleted_again(browser, tmp_path):
    made = QdrantClient(":memory:")
    fill(made, tmp_path / "photos")
    (tmp_path / "uploads").mkdir()
    folders = {"roots": (tmp_path / "photos",), "uploads": tmp_path / "uploads"}
    with running(made, writable=True, **folders) as address:
        page = browser.new_page()
        page.goto(address)
        status(page, "3 pictures")
        page.click("#add > summary")
        sent = [
            {"name": "new.png", "mimeType": "image/png", "buffer": png(shelf(BLUE, GREEN))},
            {"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"},
        ]
        page.set_input_files("#add-files", sent)
        page.locator("#add-status", has_text="1 in the collection, 1 failed").wait_for()
        assert "bad.png" in page.locator("#add-failed").inner_text()
        status(page, "4 pictures")
        page.click("#browse")
        status(page, "Click an object")
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator(".card").first.get_by_text("Enlarge").click()
        page.click("#viewer-remove")
        page.locator("#collection option", has_text="shelves (3)").wait_for(state="attached")
        assert made.count("shelves").count == 3
        page.close()


def test_on_photographs_a_drawn_box_finds_the_thing_and_where_it_is(browser):
    """The real models: an orange in one photograph of a fridge, in others of it, among other photographs."""
    gallery = {entry.file.stem: entry for entry in load(photographs()).gallery}
    query, pipeline, client = gallery.pop("fridge-01"), Pipeline(), QdrantClient(":memory:")
    entries = [gallery[name] for name in ("fridge-02", "fridge-03", "fridge-04", "board-01", "shop-03")]
    objects = [[SceneObject(item.box, label=item.instance) for item in entry.objects] for entry in entries]
    SoirIngestor(client, "shelves", pipeline=pipeline).add(
        [entry.file for entry in entries], objects=objects, progress=False
    )
    (box,) = (item.box for item in query.objects if item.instance == "orange")
    with running(client, pipeline, rate=0) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.set_input_files("#file", query.file)
        status(page, "Draw a box round one thing.")
        drag(page, box, Image.open(query.file).size)
        first = hit_names(page)[0].removesuffix(".jpg")
        assert first.startswith("fridge")
        matched = page.locator(".card").first.locator("rect.matched")
        corner = [float(matched.get_attribute(name)) for name in ("x", "y")]
        assert corner in [list(item.box[:2]) for item in gallery[first].objects if item.instance == "orange"]
        shoot(page, "photographs")
        page.close()
