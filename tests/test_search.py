import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_type_hints

import numpy as np
import pytest
from conftest import ColourPipeline, painted, picture, unit
from PIL import Image
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from soir_qdrant.errors import CollectionError, ConfigError, ImageError, ObjectsError, ServerError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.qdrant.codes import encode
from soir_qdrant.qdrant.filters import (
    has_label,
    has_text,
    has_text_on_object,
    min_count,
    object_in_region,
    object_larger_than,
    object_smaller_than,
)
from soir_qdrant.qdrant.payload import likeliest
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.report import hit_report
from soir_qdrant.rerank import CodeReranker
from soir_qdrant.search import localization
from soir_qdrant.search.options import SearchKeywords, SearchOptions
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Crop, SceneObject, Text

RED, GREEN, BLUE, WHITE = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 250)
A, B, C = (5, 5, 15, 15), (40, 30, 50, 45), (30, 10, 70, 50)
SCENES = [  # per image: box, colour, label of its objects
    [(A, RED, "mug"), (B, GREEN, "pen")],
    [(A, RED, "mug"), (C, BLUE, "book")],
    [(B, GREEN, "mug")],
    [(A, WHITE, "pen"), (B, BLUE, "pen"), ((60, 5, 70, 15), GREEN, None)],
]


def fill(client, **options) -> None:
    SoirIngestor(client, pipeline=ColourPipeline(), **options).add(
        [painted(*((box, colour) for box, colour, _ in scene)) for scene in SCENES],
        ids=range(4),
        objects=[[SceneObject(box, label=label) for box, _, label in scene] for scene in SCENES],
        payloads=[{"n": i, "even": i % 2 == 0} for i in range(4)],
    )


def searcher(client, **options) -> SoirSearcher:
    return SoirSearcher(client, pipeline=ColourPipeline(), retry=Retry(2, 0.001, 0.001), **options)


def swatch(colour) -> np.ndarray:
    return painted(((0, 0, 80, 60), colour))


# -- what is found -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "picture"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_scene_and_the_object_are_found(client, name, keep):
    """With the multivector or with codes alone, the box is that of the object of the query's colour."""
    fill(client, vector_name=name, keep_objects=keep)
    found = searcher(client, vector_name=name)
    (hit,) = found.search(swatch(WHITE), limit=1)
    assert (hit.id, hit.box, hit.uri, hit.vector) == (3, A, None, None)
    assert hit.payload["n"] == 3
    assert "code" not in hit.payload["soir"]["objects"][0]
    hits = found.search(swatch(BLUE), rerank=None, with_vectors=True)
    assert [hit.id for hit in hits[:2]] == [1, 3]
    assert [hit.box for hit in hits[:2]] == [C, B]
    assert hits[0].score >= hits[1].score >= hits[2].score
    query = ColourPipeline().query(swatch(BLUE))
    for hit in hits:  # scores are what the vectors say
        assert hit.vector.shape == (12,)
        assert np.isclose(hit.vector @ query, hit.score, atol=1e-5)


def test_against_brute_force(client):
    pipeline = ColourPipeline()
    images = [picture(i) for i in range(20)]
    SoirIngestor(client, pipeline=pipeline).add(images, ids=range(20))
    vectors = np.stack([pipeline.query(image) for image in images])
    for i in (0, 7):
        query = pipeline.query(picture(100 + i))
        expected = np.sort(vectors @ query)[::-1]
        hits = searcher(client).search(picture(100 + i), rerank=None, limit=15)
        assert np.allclose([hit.score for hit in hits], expected[:15], atol=1e-5)
        rest = searcher(client).search(picture(100 + i), rerank=None, limit=5, offset=10)
        assert [hit.id for hit in rest] == [hit.id for hit in hits[10:]]
        level = float(expected[4:6].mean())
        assert len(searcher(client).search(picture(100 + i), limit=15, score_threshold=level)) == 5


def test_boxes_need_not_fetch_the_object_vectors(monkeypatch):
    client = QdrantClient(":memory:")
    fill(client, keep_objects=True)
    query_points, asked = client.query_points, []

    def watched(*args, **kwargs):
        asked.append(kwargs.get("with_vectors"))
        return query_points(*args, **kwargs)

    monkeypatch.setattr(client, "query_points", watched)
    exact = searcher(client).search(swatch(BLUE), rerank=None)
    cheap = searcher(client, exact_boxes=False).search(swatch(BLUE), rerank=None)
    assert asked == [["objects"], False]
    assert [hit.box for hit in exact[:2]] == [hit.box for hit in cheap[:2]] == [C, B]


def test_boxes_are_unknown_without_codes_and_objects():
    client = QdrantClient(":memory:")
    fill(client, object_codes=0)
    hits = searcher(client).search(swatch(BLUE), with_masks=True)
    assert {hit.id: hit.box for hit in hits} == {
        0: None,
        1: None,
        2: B,
        3: None,
    }  # one object needs no telling
    assert {hit.mask for hit in hits} == {None}


def test_rescoring_by_objects(client):
    fill(client, keep_objects=True)
    query = ColourPipeline().query(swatch(GREEN))
    hits = searcher(client).search(swatch(GREEN), rerank="objects")
    assert {hit.id for hit in hits[:3]} == {0, 2, 3}
    assert np.allclose([hit.score for hit in hits[:3]], 1, atol=1e-5)  # the best object's, not the image's
    assert {hit.id: hit.box for hit in hits[:3]} == {0: B, 2: B, 3: (60, 5, 70, 15)}
    first = searcher(client).search(swatch(GREEN), limit=1)[0]
    assert searcher(client).search(query, limit=1, prefetch=1, rerank="objects")[0].id == first.id
    only = models.Filter(must=[has_label("pen")])
    assert {hit.id for hit in searcher(client).search(query, rerank="objects", filter=only)} == {0, 3}
    (hit,) = searcher(client).search(query, rerank="objects", limit=1, offset=2, with_vectors=True)
    assert hit.vector.shape == (12,)


@pytest.mark.parametrize("rerank", ["codes", None])
def test_the_box_is_of_the_surer_one_of_objects_that_look_alike(rerank):
    other = (60, 5, 70, 15)
    client, image = QdrantClient(":memory:"), painted((A, RED), (B, RED), (other, BLUE))
    objects = [SceneObject(A, score=0.3), SceneObject(B, score=0.6), SceneObject(other, score=0.9)]
    SoirIngestor(client, pipeline=ColourPipeline(), object_codes=12).add([image], ids=[0], objects=[objects])
    (hit,) = searcher(client).search(swatch(RED), rerank=rerank)
    assert hit.box == B
    (hit,) = searcher(client).search(swatch(BLUE), rerank=rerank)
    assert hit.box == other


def test_a_sure_object_that_looks_otherwise_is_not_the_box():
    """However far apart the likenesses of an image's few objects are."""
    payload = {"soir": {"objects": [{"box": A, "score": score} for score in (0.3, 0.9, 0.5)]}}
    assert likeliest(payload, np.array([0.9, 0.5, -0.1], np.float32)) == 0


def test_the_box_is_of_the_object_of_the_querys_shape_where_all_else_is_alike():
    boxes = [(0, 0, 40, 20), (50, 0, 70, 40), (80, 0, 100, 20)]
    payload = {"soir": {"objects": [{"box": box, "score": 0.5} for box in boxes]}}
    likeness = np.array([0.5, 0.48, 0.2], np.float32)
    assert [likeliest(payload, likeness, aspect) for aspect in (0.0, 2.0, 0.5)] == [0, 0, 1]
    payload["soir"]["objects"][2]["score"] = 0.0
    likeness = np.array([0.5, 0.2, 0.9], np.float32)
    assert likeliest(payload, likeness, 0.5) == 2  # what looks like it, whatever its shape


def test_rescoring_by_codes_needs_no_object_vectors():
    client = QdrantClient(":memory:")
    fill(client, object_codes=12)
    hits = searcher(client).search(swatch(GREEN), rerank="codes")
    assert {hit.id for hit in hits[:3]} == {0, 2, 3}
    plain = {hit.id: hit.score for hit in searcher(client).search(swatch(GREEN), rerank=None)}
    for hit in hits[:3]:  # the image's score, and the best object's, 1 here; a byte a number
        assert np.isclose(hit.score, 0.2 * plain[hit.id] + 0.8, atol=0.01)
    assert {hit.id: (hit.box, hit.object) for hit in hits[:3]} == {
        0: (B, 1),
        2: (B, 0),
        3: ((60, 5, 70, 15), 2),
    }
    page = searcher(client).search(swatch(GREEN), rerank="codes", limit=2, offset=1)
    assert [hit.id for hit in page] == [hit.id for hit in hits[1:3]]
    bare = QdrantClient(":memory:")
    fill(bare, object_codes=0)  # nothing to tell by: as without
    both = [searcher(bare).search(swatch(BLUE), rerank=rerank) for rerank in ("codes", None)]
    assert np.allclose(*[[hit.score for hit in hits] for hits in both])


@pytest.mark.parametrize("rerank", ["codes", CodeReranker(expand=0), None], ids=["codes", "once", "none"])
def test_pages_fit_together(rerank):
    """Every image once, in one order, whatever the pages: also where they cross the blocks that are reranked.

    The images hold three objects each, so that their order by codes is another than by their vectors."""
    client, pipeline = QdrantClient(":memory:"), ColourPipeline()
    boxes = [(0, 0, 20, 60), (25, 0, 50, 60), (55, 0, 80, 60)]
    rng = np.random.default_rng(0)
    images = [painted(*((box, tuple(rng.integers(0, 255, 3).tolist())) for box in boxes)) for _ in range(30)]
    SoirIngestor(client, pipeline=pipeline).add(
        images, ids=range(30), objects=[[SceneObject(box) for box in boxes]] * 30
    )
    found = searcher(client)
    query = Crop(images[3], boxes[1])

    def listed(size):
        """The ids of all pages of a size."""
        pages = [
            found.search(query, rerank=rerank, limit=size, offset=o, prefetch=10) for o in range(0, 30, size)
        ]
        return [hit.id for page in pages for hit in page]

    by_vectors = [hit.id for hit in found.search(query, rerank=None, limit=30)]
    score = {hit.id: hit.score for hit in found.search(query, rerank=rerank, limit=30)}
    blocks = [by_vectors[i : i + 10] for i in (0, 10, 20)]
    assert listed(4) == listed(7) == listed(10)
    assert (listed(10) == by_vectors) is (rerank is None)
    assert [set(listed(10)[i : i + 10]) for i in (0, 10, 20)] == [set(block) for block in blocks]
    if rerank != "codes":  # whose score depends on the block: the query is expanded by its best hits
        assert listed(10) == [id_ for block in blocks for id_ in sorted(block, key=lambda id_: -score[id_])]


def test_groups(client):
    """The best picture of each label, of the user's own key, and what has no such key."""
    fill(client, keep_objects=True)
    found = searcher(client)
    groups = found.search_groups(swatch(WHITE), "soir.labels", group_size=1)
    assert {group.key: group.hits[0].id for group in groups}["pen"] == 3
    assert all(len(group.hits) == 1 for group in groups)
    by_n = found.search_groups(swatch(BLUE), "n", limit=2, filter=models.Filter(must=[min_count(2)]))
    assert [group.key for group in by_n] == [1, 3]
    assert by_n[0].hits[0].box == C
    rescored = found.search_groups(swatch(GREEN), "n", rerank="objects", limit=3)
    assert {group.key for group in rescored} == {0, 2, 3}
    assert found.search_groups(swatch(RED), "absent") == []
    for rerank in ("codes", None):  # image 2 is all green
        groups = found.search_groups(swatch(GREEN), "n", limit=3, rerank=rerank)
        assert (groups[0].key, groups[0].hits[0].id) == (2, 2)
        assert [group.hits[0].score for group in groups] == sorted(
            (g.hits[0].score for g in groups), reverse=True
        )
    with pytest.raises(ConfigError, match="group_size 0"):
        found.search_groups(swatch(RED), "n", group_size=0)


@pytest.mark.parametrize("rerank", ["stored", None])
def test_groups_are_ordered_as_their_images_are(rerank):
    """By scores of one scale, whichever group an image is in, and however the best of its group looks."""
    client, rng = QdrantClient(":memory:"), np.random.default_rng(0)
    query = unit(64)

    def like(cosine: float) -> np.ndarray:
        away = rng.normal(size=64)
        away -= away @ query * query
        return cosine * query + np.sqrt(1 - cosine**2) * away / np.linalg.norm(away)

    client.create_collection("images", models.VectorParams(size=64, distance=models.Distance.COSINE))
    cosines = [
        (0.60, 0.37),
        (0.30, 0.45),
        (0.2, 0.3),
    ]  # of the image and of its object: the second one's is sure
    client.upsert(
        "images",
        [
            models.PointStruct(
                id=i,
                vector=like(image).tolist(),
                payload={
                    "shops": [f"s{i}", "all"],
                    "soir": {"objects": [{"box": [0, 0, 9, 9], "code": encode(like(thing), 64)}]},
                },
            )
            for i, (image, thing) in enumerate(cosines)
        ],
    )
    soir = SoirSearcher(client)
    hits = [(hit.id, hit.score) for hit in soir.search(query, rerank=rerank)]
    groups = {group.key: group.hits for group in soir.search_groups(query, "shops", rerank=rerank)}
    assert [(hit.id, hit.score) for hit in groups.pop("all")] == hits
    assert [(key, hit.id, hit.score) for key, (hit,) in groups.items()] == [
        (f"s{id_}", id_, score) for id_, score in hits
    ]


def test_several_examples_are_averaged(client):
    fill(client)
    found, pipeline = searcher(client), ColourPipeline()
    mean = pipeline.query(swatch(RED)) + pipeline.query(swatch(BLUE))
    both = found.search(swatch(RED), examples=[swatch(BLUE)])
    assert np.allclose([hit.score for hit in both], [hit.score for hit in found.search(mean)])
    assert both[0].id == 1  # the picture with red and blue
    vector = found.vector(swatch(RED), examples=[swatch(BLUE)])
    assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_negatives_push_away(client):
    """Blue, but rather not where there is red: image 1, which holds both, loses more than image 3."""
    fill(client)
    before = {hit.id: hit.score for hit in searcher(client).search(swatch(BLUE), rerank=None)}
    negative = Crop(painted((A, RED)), A)
    hits = searcher(client).search(swatch(BLUE), rerank=None, negatives=[negative], with_vectors=True)
    after = {hit.id: hit.score for hit in hits}
    assert before[1] - after[1] > before[3] - after[3]
    pipeline = ColourPipeline()
    moved = pipeline.query(swatch(BLUE)) - 0.1 * pipeline.query(negative.image, box=A)
    moved /= np.linalg.norm(moved)
    assert np.allclose([hit.score for hit in hits], [hit.vector @ moved for hit in hits], atol=1e-5)


def test_a_query_bank_lowers_what_is_like_everything(client):
    fill(client)
    pipeline = ColourPipeline()
    reds = np.stack([pipeline.query(swatch(RED))] * 3)
    before = {hit.id: hit.score for hit in searcher(client).search(swatch(BLUE), rerank=None)}
    hits = searcher(client, bank=reds).search(swatch(BLUE), rerank=None, with_vectors=True)
    after = {hit.id: hit.score for hit in hits}
    assert before[0] - after[0] > before[3] - after[3]  # image 0 has red in it, image 3 has none
    moved = pipeline.query(swatch(BLUE)) - 0.2 * reds[0]
    moved /= np.linalg.norm(moved)
    assert np.allclose([hit.score for hit in hits], [hit.vector @ moved for hit in hits], atol=1e-5)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (np.ones(12), r"bank has shape \(12,\): give one row a query"),
        (np.ones((0, 12)), r"bank has shape \(0, 12\)"),
        (np.ones((3, 5)), "bank: 5 numbers a row, and vectors here have 12"),
    ],
)
def test_a_query_bank_of_another_shape_is_refused(bank, message):
    client = QdrantClient(":memory:")
    fill(client)
    with pytest.raises(ConfigError, match=message):
        searcher(client, bank=bank).search(swatch(BLUE))


def test_a_crop_is_a_picture_with_its_box(client):
    fill(client)
    found, scene = searcher(client), painted((A, RED), (C, BLUE))
    given = [hit.id for hit in found.search(scene, box=C)]
    assert [hit.id for hit in found.search(Crop(scene, C))] == given
    assert [hit.id for hit in found.search_many([Crop(scene, C)])[0]] == given
    with pytest.raises(ConfigError, match="leave `box` out"):
        found.search(Crop(scene, C), box=C)


def test_masks_on_request(tmp_path):
    client = QdrantClient(":memory:")
    for i, scene in enumerate(SCENES):
        Image.fromarray(painted(*((box, colour) for box, colour, _ in scene))).save(tmp_path / f"{i}.png")
    SoirIngestor(client, pipeline=ColourPipeline()).add(
        [tmp_path / f"{i}.png" for i in range(4)],
        objects=[[SceneObject(box) for box, _, _ in scene] for scene in SCENES],
    )
    found = searcher(client)
    (hit,) = found.search(swatch(WHITE), limit=1, with_masks=True)
    assert hit.mask.shape == (60, 80)
    assert hit.mask[5:15, 5:15].all()
    assert hit.mask.sum() == 100
    assert found.search(swatch(WHITE), limit=1)[0].mask is None
    Image.fromarray(picture(0)).save(tmp_path / "3.png")  # another picture than was ingested
    assert found.search(swatch(WHITE), limit=1, with_masks=True)[0].mask is None


def test_a_hit_that_a_missing_package_reads_is_without_a_mask_and_left_out_of_a_page(
    tmp_path, monkeypatch, caplog
):
    """A frame of a video where `av` is not installed: the others are as ever."""
    client = QdrantClient(":memory:")
    Image.fromarray(painted((A, RED))).save(tmp_path / "0.png")
    SoirIngestor(client, pipeline=ColourPipeline()).add(
        [tmp_path / "0.png"], ids=[0], objects=[[SceneObject(A)]]
    )
    (point,) = client.retrieve("images", [0], with_vectors=True)
    frame = str(tmp_path / "clip.mp4#t=1")
    (tmp_path / "clip.mp4").write_bytes(b"0" * 100)
    payload = {"soir": {**point.payload["soir"], "uri": frame, "uris": [frame]}}
    client.upsert("images", [models.PointStruct(id=1, vector=point.vector, payload=payload)])
    monkeypatch.setitem(sys.modules, "av", None)
    soir = searcher(client)
    hits = soir.search(swatch(RED), with_masks=True)
    assert {hit.id: hit.mask is not None for hit in hits} == {0: True, 1: False}
    hit_report.save(soir, ColourPipeline().query(swatch(RED)), None, hits, png=tmp_path / "sheet.png")
    assert caplog.text.count("reading videos needs the package av") == 2
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[1] == 2 * 408  # the query and one hit


def test_many_are_as_one_by_one(client):
    fill(client, keep_objects=True)
    found = searcher(client)
    queries = [swatch(RED), painted((B, BLUE)), ColourPipeline().query(swatch(GREEN)).tolist()]
    boxes = [None, B, None]
    for rerank in (None, "objects"):
        many = found.search_many(queries, boxes=boxes, rerank=rerank, limit=3)
        for hits, query, box in zip(many, queries, boxes, strict=True):
            single = found.search(query, box=box, rerank=rerank, limit=3)
            assert {hit.id: hit.box for hit in hits} == {hit.id: hit.box for hit in single}
            assert np.allclose([hit.score for hit in hits], [hit.score for hit in single], atol=1e-5)
    assert found.search_many([]) == []
    first = found.search(queries[0])[0].id
    assert [hits[0].id for hits in found.search_many([queries[0]] * 70)] == [first] * 70
    with pytest.raises(ConfigError, match="1 boxes for 3 queries"):
        found.search_many(queries, boxes=[None])


def test_threads_that_begin_together_share_one_pipeline(monkeypatch):
    client, made = QdrantClient(":memory:"), []
    fill(client)

    def make(profile):
        time.sleep(0.05)
        made.append(ColourPipeline())
        return made[-1]

    monkeypatch.setattr("soir_qdrant.search.encoding.make_pipeline", make)
    shared = SoirSearcher(client)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(shared.search, [swatch(RED)] * 8))
    assert len(made) == 1
    assert len({hits[0].id for hits in found}) == 1


def test_boxes_masks_and_forms_of_a_query(client, tmp_path):
    fill(client)
    soir = searcher(client)
    wanted = [hit.id for hit in soir.search(swatch(BLUE))]
    scene = painted((A, RED), (C, BLUE))
    assert [hit.id for hit in soir.search(scene, box=C)] == wanted
    assert [hit.id for hit in soir.search(scene, box=(45, 20, 70, 50))] == wanted
    cut_out = np.dstack([scene, np.zeros((60, 80), np.uint8)])
    cut_out[10:50, 30:70, 3] = 255
    assert np.allclose(soir.vector(cut_out), soir.vector(scene, box=C))
    Image.fromarray(cut_out).save(tmp_path / "cut.png")
    for query in (
        tmp_path / "cut.png",
        str(tmp_path / "cut.png"),
        (tmp_path / "cut.png").read_bytes(),
        cut_out,
    ):
        assert [hit.id for hit in soir.search(query)] == wanted
    (tmp_path / "cut.png").rename(tmp_path / "without suffix")
    assert [hit.id for hit in soir.search(str(tmp_path / "without suffix"))] == wanted
    vector = 3 * ColourPipeline().query(swatch(BLUE))
    for query in (vector, vector.tolist(), tuple(vector.tolist())):
        hits = soir.search(query)
        assert [hit.id for hit in hits] == wanted
        assert hits[0].score < 1


# -- filters -----------------------------------------------------------------------------------------------

CONDITIONS = {
    "label": (has_label("book"), {1}),
    "labels": (has_label("book", "pen"), {0, 1, 3}),
    "list of labels": (has_label(["book", "pen"]), {0, 1, 3}),
    "count": (min_count(2), {0, 1, 3}),
    "area": (object_larger_than(0.2), {1}),
    "area of a label": (object_larger_than(0.2, "mug"), set()),  # image 1 has a mug, and a large book
    "area of its label": (object_larger_than(0.2, "book"), {1}),
    "area of one of its labels": (object_larger_than(0.2, ["book", "mug"]), {1}),
    "small": (object_smaller_than(0.025), {0, 1, 3}),
    "small, of a label": (object_smaller_than(0.025, "mug"), {0, 1}),
    "region": (object_in_region((0, 0, 20, 20)), {0, 1, 3}),
    "region of a label": (object_in_region((0, 0, 20, 20), "pen"), {3}),
    "region, wholly": (object_in_region((25, 5, 60, 55)), {0, 2, 3}),
    "region, partly": (object_in_region((25, 5, 60, 55), partly=True), {0, 1, 2, 3}),
    "region, partly, label": (object_in_region((60, 5, 80, 20), "book", partly=True), {1}),
    "user's": (models.FieldCondition(key="even", match=models.MatchValue(value=True)), {0, 2}),
}


def test_conditions(client):
    fill(client)
    found, everything = searcher(client), {0, 1, 2, 3}

    def ids(**clauses):
        return {hit.id for hit in found.search(swatch(RED), filter=models.Filter(**clauses))}

    expected = {case: (those, everything - those) for case, (_, those) in CONDITIONS.items()}
    assert expected == {
        case: (ids(must=[condition]), ids(must_not=[condition]))
        for case, (condition, _) in CONDITIONS.items()
    }


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (lambda: has_label(), r"label \(\): give a text, or a list"),
        (lambda: has_label(["a", 1]), "label .*'a', 1.*: give a text"),
        (lambda: has_label(None), "label .*None.*: give a text"),
        (lambda: object_larger_than(0.2, 7), "label .*7.*: give a text"),
        (lambda: has_text(["oat", "milk"]), r"text \['oat', 'milk'\] is a list: give the words as one text"),
        (lambda: has_text_on_object(3), "text 3 is a int"),
        (lambda: min_count("many"), "count 'many': give a whole number, at least 0"),
        (lambda: object_larger_than("large"), "area 'large': give a share of the image, 0 to 1"),
        (lambda: object_smaller_than(20), "area 20: give a share"),
        (lambda: object_in_region(20), "region: box 20: give four numbers"),
        (lambda: object_in_region((0, 0, 20)), "region: box .*: give four numbers"),
        (lambda: object_in_region((9, 9, 3, 3)), "region: box .* inverted"),
        (lambda: object_in_region((0, 0, 0.5, 0.5)), "region: box .* give pixels, not shares"),
    ],
)
def test_wrong_conditions(condition, message):
    with pytest.raises(ConfigError, match=message):
        condition()


# -- what is refused ---------------------------------------------------------------------------------------


def test_wrong_queries(client):
    fill(client)
    found = searcher(client)
    for query, kind, message in [
        (Text("a red mug"), ConfigError, "reads no text"),
        ("a red mug", ImageError, r"a red mug: no such file.*text='a red mug'"),
        ("mug.png", ImageError, r"mug\.png: no such file"),
        ("mug" * 2000, ImageError, "no such file"),
        (b"no picture", ImageError, "not an image"),
        (np.full((10, 10, 3), np.nan), ImageError, "NaN"),
        ([1.0, 2.0], ConfigError, "has 2 numbers, those of collection 'images' have 12"),
        ([0.0] * 12, ConfigError, "all zeros"),
        ([float("nan")] * 12, ConfigError, "not finite"),
        ([], ConfigError, "shape"),
        (["a.png", "b.png"], ConfigError, "not one of numbers"),
        (3, ImageError, "int"),
        (None, ConfigError, "nothing to search for"),
    ]:
        with pytest.raises(kind, match=message):
            found.search(query)
    for box, message in [((100, 0, 120, 9), "outside the 80x60"), ((9, 9, 3, 3), "inverted"), ((1,), "four")]:
        with pytest.raises(ObjectsError, match=f"array: box.*{message}"):
            found.search(swatch(RED), box=box)
    for words in ({"examples": "mug.png"}, {"negatives": "mug.png"}):
        with pytest.raises(ConfigError, match="give a list of images, such as"):
            found.search(swatch(RED), **words)
    with pytest.raises(ConfigError, match="box is for a query image; this query is a vector"):
        found.search([1.0] * 12, box=A)
    with pytest.raises(ConfigError, match="box is for a query image; this query is text"):
        found.search(text="a red mug", box=A)
    with pytest.raises(ConfigError, match="a query and text=: give one of them"):
        found.search("mug.png", text="a red mug")
    with pytest.raises(ConfigError, match="a heat map is made with an image"):
        found.heat(Text("a red mug"), found.search(swatch(RED))[0])
    with pytest.raises(ConfigError, match=r"such as \['mug\.png'\]"):
        found.search_many("mug.png")


def test_wrong_settings(client):
    fill(client)
    found = searcher(client)
    for wrong, kind, message in [
        ({"limit": 0}, ConfigError, "limit 0"),
        ({"limit": 2.5}, ConfigError, "limit 2.5"),
        ({"offset": -1}, ConfigError, "offset -1"),
        ({"prefetch": 0}, ConfigError, "prefetch 0"),
        ({"timeout": 0}, ConfigError, "timeout 0"),
        ({"rerank": "magic"}, ConfigError, "magic.*codes.*q-perturbation"),
        ({"rerank": "objects"}, CollectionError, "keep_objects=True"),
    ]:
        with pytest.raises(kind, match=message):
            found.search(swatch(RED), **wrong)
    with pytest.raises(ConfigError, match="offset 1: groups have no pages"):
        found.search_groups(swatch(RED), "n", offset=1)
    with pytest.raises(TypeError, match="limmit"):
        found.search(swatch(RED), limmit=3)


def test_wrong_collections(client):
    with pytest.raises(CollectionError, match="no collection 'images'"):
        searcher(client).search(swatch(RED))
    fill(client)
    with pytest.raises(CollectionError, match="filled with another encoder"):
        SoirSearcher(client, pipeline=ColourPipeline("2")).search(swatch(RED))
    with pytest.raises(CollectionError, match="no vector 'picture'"):
        searcher(client, vector_name="picture").search(swatch(RED))
    # a vector of one's own needs no pipeline
    assert SoirSearcher(client, profile="no such profile").search([1.0] * 12)
    with pytest.raises(ConfigError, match="no such profile"):
        SoirSearcher(client, profile="no such profile").search(swatch(RED))


def test_points_of_others_are_no_trouble(client):
    fill(client)
    client.upsert("images", [models.PointStruct(id=77, vector=[1.0] * 12, payload={"mine": 1})])
    hits = searcher(client).search([1.0] * 12)
    assert (hits[0].id, hits[0].uri, hits[0].box, hits[0].payload) == (77, None, None, {"mine": 1})


def test_the_collection_is_checked_once(monkeypatch):
    """A search is one request."""
    client = QdrantClient(":memory:")
    fill(client)
    found = searcher(client)
    found.search(swatch(RED))
    monkeypatch.setattr(client, "collection_exists", None)
    monkeypatch.setattr(client, "get_collection", None)
    assert found.search(swatch(RED))


def test_errors_of_the_server(monkeypatch):
    client = QdrantClient(":memory:")
    fill(client)
    found = searcher(client)
    found.search(swatch(RED))
    calls = []

    def failing(status):
        def query_points(*args, **kwargs):
            calls.append(kwargs.get("timeout"))
            raise UnexpectedResponse(status, "reason", b"why", {})

        return query_points

    monkeypatch.setattr(client, "query_points", failing(503))
    with pytest.raises(ServerError, match="did not answer in 2 attempts"):
        found.search(swatch(RED))
    monkeypatch.setattr(client, "query_points", failing(400))
    with pytest.raises(CollectionError, match="400 reason: why"):
        found.search(swatch(RED))
    assert len(calls) == 3


def test_the_timeout_is_of_all_requests_of_a_search(monkeypatch):
    client = QdrantClient(":memory:")
    fill(client)
    soir, clock, seconds, search = searcher(client), Clock(monkeypatch), [], client.query_batch_points
    soir.search(swatch(RED))

    def slow(collection_name, requests, timeout=None, **_):
        seconds.append(timeout)
        clock.wait(4)
        return search(collection_name, requests)

    monkeypatch.setattr(client, "query_batch_points", slow)
    assert len(soir.search_many([swatch(RED)] * 70, timeout=10, rerank=None)) == 70
    assert seconds == [10, 6, 2]  # 32 go together; of three hundred candidates each, 10
    with pytest.raises(ServerError, match="not done within 7 s"):
        soir.search_many([swatch(RED)] * 30, timeout=7)


def test_options_are_keywords_and_keywords_options():
    assert get_type_hints(SearchKeywords) == get_type_hints(SearchOptions)
    client = QdrantClient(":memory:")
    fill(client)
    found, options = searcher(client), SearchOptions(limit=2, rerank=None, with_vectors=True)
    own = found.search(swatch(BLUE), limit=2, rerank=None, with_vectors=True)
    (many,), groups = (
        found.search_many([swatch(BLUE)], options=options),
        found.search_groups(swatch(BLUE), "n", options=options),
    )
    for hits in (found.search(swatch(BLUE), options=options), many, [g.hits[0] for g in groups]):
        assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in own]
        assert hits[0].vector is not None
    assert len(found.search(swatch(BLUE), options=options, limit=3)) == 3  # a keyword comes before


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_parameters_reach_qdrant(monkeypatch):
    client = QdrantClient(":memory:")
    fill(client)
    query_points, seen = client.query_points, {}

    def watched(collection_name, timeout=None, consistency=None, shard_key_selector=None, **kwargs):
        seen.update(kwargs, timeout=timeout, consistency=consistency, shard_key_selector=shard_key_selector)
        return query_points(collection_name, **kwargs)

    monkeypatch.setattr(client, "query_points", watched)
    params = models.SearchParams(hnsw_ef=99)
    searcher(client, timeout=11).search(swatch(RED), search_params=params)
    assert seen["search_params"] == params
    assert seen["timeout"] == 11
    searcher(client).search(swatch(RED), timeout=3, consistency="majority", shard_key="shop")
    assert (seen["timeout"], seen["consistency"], seen["shard_key_selector"]) == (3, "majority", "shop")


def test_a_search_for_groups_has_its_timeout_and_consistency(monkeypatch):
    client, passed = QdrantClient(":memory:"), []
    fill(client)
    query_groups = client.query_points_groups

    def watched(*args, timeout=None, consistency=None, **kwargs):
        passed.append((timeout, consistency))
        return query_groups(*args, **kwargs)

    monkeypatch.setattr(client, "query_points_groups", watched)
    searcher(client).search_groups(swatch(RED), "soir.sha256", timeout=7, consistency="majority")
    assert passed == [(7, "majority")]


class Clock:
    """What `time` says in a test."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.wait)

    def wait(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("seconds", "left"), [(2, 5), (2.5, 5), (20, 1)])
def test_a_first_look_into_the_collection_takes_part_of_the_timeout(monkeypatch, seconds, left):
    client, clock, timeouts = QdrantClient(":memory:"), Clock(monkeypatch), []
    fill(client)
    get_collection, query_points = client.get_collection, client.query_points

    def slow(collection_name, **_):
        clock.wait(seconds)
        return get_collection(collection_name)

    def watched(collection_name, timeout=None, **kwargs):
        timeouts.append(timeout)
        return query_points(collection_name, **kwargs)

    monkeypatch.setattr(client, "get_collection", slow)
    monkeypatch.setattr(client, "query_points", watched)
    soir = SoirSearcher(client, pipeline=ColourPipeline())
    for _ in range(2):
        soir.search(ColourPipeline().query(swatch(RED)), timeout=7)
    assert timeouts == [left, 7]


def test_a_first_look_that_gets_no_answer_ends_with_the_timeout(monkeypatch):
    client, clock = QdrantClient(":memory:"), Clock(monkeypatch)

    def busy(collection_name, **_):
        raise UnexpectedResponse(503, "reason", b"why", {})

    monkeypatch.setattr(client, "get_collection", busy)
    with pytest.raises(ServerError, match="did not answer"):
        SoirSearcher(client, pipeline=ColourPipeline(), timeout=60).search([1.0] * 12, timeout=5)
    assert clock.now <= 5


def test_a_crops_heat_lies_where_the_crop_was_cut_and_the_larger_value_stays():
    canvas = np.zeros((4, 5), np.float32)
    canvas[0, 0] = 0.9
    localization._lay(canvas, np.full((2, 2), 0.5, np.float32), (-1, -1, 3))  # beyond two edges of the image
    localization._lay(canvas, np.full((2, 2), 0.2, np.float32), (1, 1, 2))
    expected = np.zeros((4, 5), np.float32)
    expected[:2, :2] = 0.5
    expected[1:3, 1:3] = np.maximum(expected[1:3, 1:3], 0.2)
    expected[0, 0] = 0.9
    np.testing.assert_allclose(canvas, expected)
