"""Why a query fails is told from its boxes and similarities."""

import numpy as np
import pytest
from conftest import painted
from PIL import Image

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, BenchQuery, GalleryImage
from soir_qdrant.lab.evaluate.collect import Collected
from soir_qdrant.lab.evaluate.compare import Evaluation
from soir_qdrant.lab.evaluate.failures import box_reason, cases, counts, write
from soir_qdrant.types import SceneObject

THING = (10.0, 10.0, 30.0, 30.0)  # 20 x 20


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 30, 30), None),
        ((10, 10, 30, 24), None),  # IoU 0.7
        ((10, 10, 30, 18), "box loose"),  # IoU 0.4
        ((10, 10, 15, 20), "part boxed"),  # an eighth of it
        ((5, 5, 45, 45), "box merged"),  # all of it, four times its area
        ((25, 25, 60, 60), "not detected"),  # a corner of it
        ((60, 60, 90, 90), "not detected"),
    ],
)
def test_what_is_wrong_with_a_box(box, reason):
    assert box_reason(np.array(THING), np.array([box], float)) == reason


def test_no_box_and_the_better_of_two():
    assert box_reason(np.array(THING), np.zeros((0, 4))) == "not detected"
    two = np.array([(60, 60, 90, 90), (10, 10, 15, 20)], float)
    assert box_reason(np.array(THING), two) == "part boxed"


WRONG_BOX = (60.0, 60.0, 90.0, 90.0)
# of the gallery's images: what is in it, box of the first object, angle of its vector to the query
GALLERY = [
    ("mug", THING, 10),  # right
    ("mug", WRONG_BOX, 90),  # not detected
    ("mug", THING, 60),  # less similar than image 5, but so are the mug's views to each other
    ("mug", THING, 20),  # similar, yet ranked last
    ("pen", THING, 70),
    ("cup", THING, 40),
    ("cup", THING, 80),
]
ORDERS = [[0, 5, 6, 4, 2, 1, 3], [5, 6, 0, 1, 2, 3, 4]]


def unit(angle):
    return np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0], np.float32)


@pytest.fixture
def made(tmp_path):
    gallery, collected = [], Collected()
    for i, (name, box, angle) in enumerate(GALLERY):
        file = tmp_path / f"{i}.png"
        Image.fromarray(painted((THING, (200, 20 * i, 0)), size=(100, 100))).save(file)
        gallery.append(GalleryImage(file, None, [BenchObject(name, THING)]))
        collected.objects.append((SceneObject(box),))
        collected.rows.append(unit(angle)[None])
    queries = [BenchQuery(tmp_path / "0.png", "mug", THING), BenchQuery(tmp_path / "4.png", "pen")]
    collected.query_vectors = [unit(0), unit(95)]
    ranks = [np.array(order) for order in ORDERS]
    return Bench(tmp_path, gallery, queries), Evaluation({}, collected, {"default": ranks})


def test_reasons_of_a_case_made_by_hand(made):
    bench, done = made
    listed = cases(bench, done, done.collected.rows, "default")
    assert [(case.image, case.rank, case.lost, case.reason) for case in listed if case.query == 0] == [
        (0, 0, False, None),
        (1, 5, True, "not detected"),
        (2, 4, True, "encoder confused"),
        (3, 6, True, "lost in the vector"),
    ]
    table = {reason: (every, lost) for reason, every, lost in counts(listed)}
    assert table["found where it should be"] == (1, 0)
    assert table["not detected"] == (1, 1)
    assert sum(lost for _, lost in table.values()) == 4


def test_a_query_that_its_thing_s_other_views_would_have_done_better_than_is_bad(made):
    bench, done = made
    done.collected.query_vectors[0] = unit(100)
    (case,) = [c for c in cases(bench, done, done.collected.rows, "default") if (c.query, c.image) == (0, 3)]
    assert case.reason == "query bad"


def test_the_page_shows_the_worst_first_and_counts_all(made, tmp_path):
    bench, done = made
    page = write(tmp_path / "failures", bench, done, Settings().but(vector={"whitening": None}), worst=1)
    text = page.read_text()
    assert text.count("<section>") == 1
    assert "<h2>pen" in text  # AP 14 %
    assert text.count("<img") == 3
    told = (tmp_path / "failures/reasons.md").read_text()
    assert "| not detected | 1 | 20.0 | 1 |" in told
    with pytest.raises(ConfigError, match="--failures"):
        write(tmp_path, bench, Evaluation({}, done.collected, {}), Settings())
