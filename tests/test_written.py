"""What is written on the thing in a query: an image that has its words is found by them, in any colour."""

import pickle

import cv2
import numpy as np
import pytest
from conftest import ColourPipeline, painted, picture
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from test_ocr import MILK, SOUP, shelf

from soir_qdrant import Settings, SoirIngestor, SoirSearcher
from soir_qdrant.config import OcrSettings
from soir_qdrant.images import load
from soir_qdrant.models.ocr import TextLine, TextReader
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.qdrant.written import GAIN, MAX_WORDS, has_some, query_words, shared
from soir_qdrant.types import Detections, SceneObject

LEFT, RIGHT = (10, 10, 30, 40), (50, 10, 70, 40)
RED, BLUE = (220, 30, 30), (30, 30, 220)


@pytest.mark.parametrize(
    ("written", "text", "share"),
    [
        ("PRADA", "prada", 1.0),
        ("Prada Milano", "MILANO, since 1913: PRADA", 1.0),
        ("GUCCI", "6UCCI", 0.64),  # misread: four of five letters
        ("Prada Milano", "PRADA", 0.5),
        ("HH", "HH", 1.0),
        ("HH", "HM", 0.0),  # too short to be misread
        ("GUCCI", "PRADA", 0.0),
        ("A 1", "A 1", 0.0),  # letters alone say nothing
        ("", "PRADA", 0.0),
        ("PRADA", "", 0.0),
    ],
)
def test_texts_share_words_though_some_are_misread(written, text, share):
    assert shared(written, text) == pytest.approx(share)


def test_long_words_say_more_than_short_ones():
    long, short = (shared("oat chocolate", text) for text in ("chocolate", "oat"))
    assert long > short > 0


def test_of_a_page_of_print_the_longest_words_are_looked_for():
    page = " ".join(f"{'w' * (i % 9 + 2)}{i}" for i in range(500))
    assert len(has_some(page).should) == 2 * MAX_WORDS
    assert shared(page, " ".join(query_words(page))) == 1
    assert has_some("- 1") is None


@given(st.text(max_size=30), st.text(max_size=30))
def test_shares_are_shares_and_a_text_has_all_its_own_words(written, text):
    assert 0 <= shared(written, text) <= 1 + 1e-9
    assert shared(written, written) == pytest.approx(1) or not shared(written, f"{written} {text}")


class Reader(ColourPipeline):
    """Colours, and the text that stands beside them here: reading itself is tested below."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written = written

    def query_text(self, image, box=None):
        return self.written


def fill(client, *texts, colours=((RED, BLUE),)):
    """Images with a text on the left object and none on the right one."""
    images = [
        painted((LEFT, colours[i % len(colours)][0]), (RIGHT, colours[i % len(colours)][1]))
        for i in range(len(texts))
    ]
    objects = [[SceneObject(LEFT, text=text), SceneObject(RIGHT)] for text in texts]
    SoirIngestor(client, pipeline=ColourPipeline(), object_codes=12).add(
        images, ids=range(len(texts)), objects=objects
    )


def test_of_images_that_look_alike_the_one_with_the_words_comes_first(client):
    fill(client, "oat milk", "tomato soup", "pepper")
    query = painted(((0, 0, 80, 60), BLUE))
    first, *others = SoirSearcher(client, pipeline=Reader("Tomato")).search(query, rerank="codes")
    assert (first.id, first.score > others[0].score + GAIN / 2) == (1, True)
    assert {hit.box for hit in others} == {RIGHT}  # what is of its colour
    plain = SoirSearcher(client, pipeline=ColourPipeline()).search(query, rerank="codes")
    assert len({round(hit.score, 5) for hit in plain}) == 1  # alike to a pipeline that reads nothing


def test_words_bring_images_among_the_candidates_that_their_vectors_would_not(client):
    """Forty images nearer to the query than the one with its word, and ten candidates."""
    alike, other = (BLUE, BLUE), (RED, RED)
    fill(client, *["milk"] * 40, "tomato", colours=[alike] * 40 + [other])
    query, settings = painted(((0, 0, 80, 60), BLUE)), {"prefetch": 10, "limit": 10, "rerank": "codes"}
    reading = SoirSearcher(client, pipeline=Reader("tomato"))
    assert 40 in {hit.id for hit in reading.search(query, **settings)}
    plain = SoirSearcher(client, pipeline=ColourPipeline())
    assert 40 not in {hit.id for hit in plain.search(query, **settings)}
    odd = models.Filter(must_not=[models.HasIdCondition(has_id=[40])])
    assert 40 not in {hit.id for hit in reading.search(query, filter=odd, **settings)}


def test_pages_fit_together_where_words_bring_candidates(client):
    texts = ["milk", "tomato", "oat tomato"] * 10
    objects = [[SceneObject((0, 0, 40, 30), text=text)] for text in texts]
    images = [picture(i) for i in range(30)]  # none as far from the query as another
    SoirIngestor(client, pipeline=ColourPipeline(), object_codes=12).add(
        images, ids=range(30), objects=objects
    )
    reading = SoirSearcher(client, pipeline=Reader("tomato"))
    pages = [
        hit.id for i in range(0, 30, 5) for hit in reading.search(picture(99), limit=5, offset=i, prefetch=10)
    ]
    assert sorted(pages) == list(range(30))
    many = reading.search_many([picture(99)] * 40, limit=5, prefetch=10)  # more requests than go together
    assert [[hit.id for hit in hits] for hits in many] == [pages[:5]] * 40


def test_of_two_rankings_the_payload_of_the_candidates_alone_is_fetched(client, monkeypatch):
    fill(client, *["milk", "tomato"] * 10)
    answers, ask = [], client.query_batch_points
    monkeypatch.setattr(client, "query_batch_points", lambda *a, **k: answers.extend(ask(*a, **k)) or answers)
    (hit, *_) = SoirSearcher(client, pipeline=Reader("tomato")).search(
        painted(((0, 0, 80, 60), BLUE)), rerank="codes", prefetch=10, with_vectors=True
    )
    assert [point.payload for answer in answers for point in answer.points] == [None] * 20
    assert (hit.payload["soir"]["objects"][0]["text"], len(hit.vector)) == ("tomato", 12)


def test_a_candidate_that_is_gone_when_its_payload_is_fetched_is_no_hit(client, monkeypatch):
    fill(client, "milk", "tomato", "tomato")
    fetch = client.retrieve
    monkeypatch.setattr(client, "retrieve", lambda *a, **k: [r for r in fetch(*a, **k) if r.id != 1])
    hits = SoirSearcher(client, pipeline=Reader("tomato")).search(painted(((0, 0, 80, 60), BLUE)))
    assert [hit.id for hit in hits] == [2, 0]


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    from models import tiny_encoder

    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    folder = tiny_encoder(tmp_path_factory.mktemp("vit"))
    return Pipeline(
        Settings.for_profile().but(
            encoder={"weights": str(folder), "input_size": 32, "dtype": "float32"},
            detector={"kind": "none"},
            segmenter={"kind": "box"},
            vector={"whitening": None, "features": ("cls",)},
        )
    )


class Detector:
    """Says that there is something at these boxes."""

    name = "boxes"

    def __init__(self, *boxes):
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)

    def detect(self, images):
        return [Detections(self.boxes, np.full(len(self.boxes), 0.5, np.float32)) for _ in images]


CORNER = (0.0, 0.0, 40.0, 40.0)  # of a shelf, where nothing is


@pytest.mark.slow
def test_a_label_is_found_by_a_crop_of_another_one(reading):
    """From pixels to box: lines of text are objects, and the crop's word is read."""
    client, reading = QdrantClient(":memory:"), Pipeline(reading.settings, detector=Detector(CORNER))
    images = [shelf(("TOMATO", SOUP)), shelf(("OATMEAL", SOUP)), shelf(("PEPPER", MILK))]
    SoirIngestor(client, pipeline=reading).add([np.asarray(image) for image in images], ids=range(3))
    query = np.asarray(shelf(("OATMEAL", MILK)))
    first, *others = SoirSearcher(client, pipeline=reading).search(query, box=MILK, rerank="codes")
    assert first.id == 1
    assert first.score > others[0].score + 0.5 * GAIN
    x0, y0, x1, y1 = first.box
    assert SOUP[0] <= x0 < x1 <= SOUP[2]
    assert SOUP[1] <= y0 < y1 <= SOUP[3]
    assert first.payload["soir"]["objects"][first.object]["text"] == "OATMEAL"


@pytest.mark.slow
def test_lines_are_no_objects_where_the_settings_say_so(reading):
    image = load(np.asarray(shelf(("TOMATO", SOUP))))
    settings, detector = reading.settings, Detector(CORNER)
    for chosen, count in ((settings, 2), (settings.but(ocr={"object_score": 0}), 1)):
        (scene,) = Pipeline(chosen, detector=detector).scenes([image])
        assert len(scene.objects) == count
        assert [scene.text, *(item.text for item in scene.objects)].count("TOMATO") == 1


@pytest.mark.slow
@pytest.mark.parametrize("objects", [None, [[]]])
def test_text_alone_is_no_object_where_nothing_was_found(reading, objects):
    """A watermark does not take the place of the image."""
    image = load(np.asarray(shelf(("TOMATO", SOUP))))
    (scene,) = Pipeline(reading.settings, detector=Detector()).scenes([image], objects)
    assert [item.stand_in for item in scene.objects] == [True]
    assert scene.text == "TOMATO"


@pytest.mark.slow
def test_a_packet_has_the_text_of_all_its_lines(reading):
    image = load(np.asarray(shelf(("OAT", MILK), ("MILK", (60, 110, 300, 200)))))
    packet = (60.0, 60.0, 300.0, 200.0)
    (scene,) = Pipeline(reading.settings, detector=Detector(packet)).scenes([image])
    by_box = {item.box: item.text for item in scene.objects}
    assert by_box.pop(packet) == "OAT MILK"
    assert sorted(by_box.values()) == ["MILK", "OAT"]


@pytest.mark.slow
def test_a_page_of_print_leaves_places_for_other_objects(reading):
    pipeline = Pipeline(
        reading.settings.but(detector={"max_objects": 6}), detector=Detector((300, 300, 400, 400))
    )
    image = load(np.full((600, 600, 3), 200, np.uint8))
    lines = [TextLine("oat milk", (10.0, 20.0 * i, 60.0 + i, 20.0 * i + 12), 0.9) for i in range(28)]
    (items,) = pipeline.find([image], [None], lines=[lines])
    assert {item.box[2] for item in items if item.line} == {85.0, 86.0, 87.0}  # the three longest
    assert [item.score for item in items] == pytest.approx([0.5, 0.4, 0.4, 0.4])


@pytest.mark.slow
def test_strips_and_specks_are_read_as_far_as_letters_have_room(reading, monkeypatch):
    """RapidOCR enlarges the short side of what it sees, and would fill the memory."""
    reader, shapes = TextReader(OcrSettings()), []
    engine = reader._engine
    monkeypatch.setattr(reader, "_engine", lambda image: [shapes.append(image.shape[:2]), engine(image)][1])
    for shape in [(1, 1), (1, 500), (5, 3000), (40, 20000)]:
        assert reader.read(np.full((*shape, 3), 255, np.uint8)) == []
    assert shapes == []
    assert reader.read(np.full((9000, 90, 3), 255, np.uint8)) == []
    assert shapes.pop() == (2000, 500)
    large = np.repeat(np.repeat(np.asarray(shelf(("TOMATO", MILK))), 6, 0), 6, 1)
    (line,) = reader.read(large)
    assert shapes.pop() == (1067, 2000)
    assert line.text == "TOMATO"
    corner = np.array(line.box[:2]) / 6  # in pixels of what was read
    np.testing.assert_allclose(corner, [75, 85], atol=12)
    assert reader.written_on(large) == "TOMATO"
    assert max(shapes.pop()) <= 2001


@pytest.mark.slow
def test_images_that_are_read_at_once_are_read_alike(reading, monkeypatch):
    monkeypatch.setattr(cv2, "getNumThreads", lambda: 3)
    words = ["TOMATO", "OATMEAL", "PEPPER", "SOUP", "MILK"]
    images = [np.asarray(shelf((word, MILK))) for word in words]
    lines = reading.text_reader.read_all(images)
    assert [[line.text for line in some] for some in lines] == [[word] for word in words]
    assert lines == [reading.text_reader.read(image) for image in images]


@pytest.mark.slow
def test_a_reader_goes_to_another_process(reading):
    there = pickle.loads(pickle.dumps(reading.text_reader))
    assert there.settings == OcrSettings()
    assert [line.text for line in there.read(np.asarray(shelf(("TOMATO", MILK))))] == ["TOMATO"]
