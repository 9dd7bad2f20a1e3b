"""The contract of rerankers: one of your own, by name or as an object, and what each is given."""

from __future__ import annotations

import contextlib
import io
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import ColourPipeline, painted, picture
from PIL import Image
from qdrant_client import QdrantClient, models

from soir_qdrant import SoirIngestor, SoirSearcher, Text, register_reranker
from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.rerank import (
    ObjectReranker,
    Page,
    SearchQuery,
    Window,
    candidate_blocks,
    first_candidates,
    hit_image,
    reordered,
)
from soir_qdrant.rerank.kinds import RERANKERS
from soir_qdrant.types import QueryLook, SceneObject

A, B = (5, 5, 25, 25), (40, 30, 60, 50)
RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def client() -> QdrantClient:
    """Six images of two objects, the first the most like a blue one; `n` counts them."""
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=ColourPipeline(), keep_objects=True).add(
        [painted((A, RED), (B, (0, green, 250))) for green in (0, 70, 80, 90, 140, 200)],
        ids=range(6),
        objects=[[SceneObject(A), SceneObject(B)]] * 6,
        payloads=[{"n": i} for i in range(6)],
    )
    return client


def searcher(client: QdrantClient) -> SoirSearcher:
    return SoirSearcher(client, pipeline=ColourPipeline())


class ByNumber:
    """Orders hits by `n` of their payload, the smallest first, and remembers what it gets. No score for 0."""

    name = "by-number"
    candidates = 4
    needs = frozenset({"payload"})

    def __init__(self, needs=needs) -> None:
        self.needs = frozenset(needs)
        self.queries: list[SearchQuery] = []
        self.hits: list = []

    def window(self, page: Page) -> Window:
        return candidate_blocks(self.candidates, page)

    def rerank(self, query, hits, *, failed=None):
        self.queries.append(query)
        self.hits += hits
        return reordered(hits, self._scored, failed)

    def _scored(self, hit):
        if hit.payload["n"] == 0:
            raise ImageError("this one cannot be scored")
        return replace(hit, score=6.0 - hit.payload["n"])


# -- one of your own ---------------------------------------------------------------------------------------


def test_a_reranker_of_your_own(client):
    """Of the first four by their vectors, those that can be scored are in its order; the first keeps its place."""
    plain = [hit.id for hit in searcher(client).search(painted((B, BLUE)), box=B, rerank=None)]
    hits = searcher(client).search(painted((B, BLUE)), box=B, rerank=ByNumber(), limit=4)
    expected = [0, *sorted(plain[1:4])]
    assert plain[0] == 0
    assert [hit.id for hit in hits] == expected != plain[:4]
    assert [hit.score for hit in hits[1:]] == [6 - n for n in expected[1:]]
    assert hits[0].box == B  # told by the codes, since the reranker did not
    assert "code" not in hits[0].payload["soir"]["objects"][0]


def test_the_box_of_a_reranker_is_kept(client):
    class Boxing(ByNumber):
        def rerank(self, query, hits, *, failed=None):
            return [replace(hit, box=A) for hit in hits]

    hits = searcher(client).search(painted((B, BLUE)), box=B, rerank=Boxing())
    assert {hit.box for hit in hits} == {A}  # though the codes would say B


def test_by_name(client, monkeypatch):
    monkeypatch.setattr(RERANKERS, "_known", dict(RERANKERS._known))
    contexts = []

    def make(context):
        contexts.append(context)
        return ByNumber()

    register_reranker("by-number", make)
    found = searcher(client)
    by_name = found.search(painted((B, BLUE)), rerank="by-number")
    assert [hit.id for hit in by_name] == [
        hit.id for hit in found.search(painted((B, BLUE)), rerank=ByNumber())
    ]
    found.search(painted((B, BLUE)), rerank="by-number")
    assert contexts == [found]  # once per searcher, which has the pipeline and the largest image
    with pytest.raises(ConfigError, match=r"magic.*by-number.*codes.*patches"):
        found.search(painted((B, BLUE)), rerank="magic")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ByNumber, "rerank is the class ByNumber: give an instance"),
        (True, "rerank is a bool"),
        (["codes"], "rerank is a list"),
        (lambda query, hits: hits, "rerank is a function.*an instance of a class that has name"),
        ("wrong", "what reranker 'wrong' makes is the class ByNumber"),
    ],
)
def test_what_is_no_reranker_is_refused(client, monkeypatch, wrong, message):
    monkeypatch.setattr(RERANKERS, "_known", {**RERANKERS._known, "wrong": lambda context: ByNumber})
    shelves, query = searcher(client), painted((B, BLUE))
    for search in (
        lambda: shelves.search(query, rerank=wrong),
        lambda: shelves.search_many([query], rerank=wrong),
        lambda: shelves.search_groups(query, "n", rerank=wrong),
    ):
        with pytest.raises(ConfigError, match=message):
            search()


def test_none_is_a_name_too(client):
    found = searcher(client)
    by_name, plain = (found.search(painted((B, BLUE)), rerank=rerank) for rerank in ("none", None))
    assert [(hit.id, hit.score) for hit in by_name] == [(hit.id, hit.score) for hit in plain]


def test_groups_of_a_reranker_of_your_own(client):
    groups = searcher(client).search_groups(painted((B, BLUE)), "n", rerank=ByNumber(), limit=3)
    assert [group.key for group in groups] == [1, 2, 3]


# -- what it is given --------------------------------------------------------------------------------------


def test_the_query_as_it_was_searched_with(client):
    reranker, image = ByNumber({"query image"}), painted((B, BLUE))
    found = searcher(client)
    found.search(image, box=(40, 30, 99, 50), examples=[painted((A, RED))], rerank=reranker)
    (query,) = reranker.queries[:1]
    assert (query.image.rgb == image).all()
    assert query.box == (40, 30, 80, 50)  # clipped to the image
    vector = found.vector(image, box=(40, 30, 99, 50), examples=[painted((A, RED))])
    np.testing.assert_array_equal(query.vector, vector)


def test_the_vector_has_unit_length(client):
    reranker, found = ByNumber(), searcher(client)
    found.search([3.0] * 12, rerank=reranker)
    found.search(painted((B, BLUE)), negatives=[painted((A, RED))], rerank=reranker)
    assert np.allclose([np.linalg.norm(query.vector) for query in reranker.queries], 1, atol=1e-5)


def test_object_vectors_come_where_they_are_needed(client):
    for needs, kept in (({"object vectors"}, True), ({"payload"}, False)):
        reranker = ByNumber(needs)
        hits = searcher(client).search(painted((B, BLUE)), rerank=reranker)
        rows = reranker.hits[0].object_vectors
        assert (rows is not None and rows.shape == (2, 12)) is kept
        assert all(hit.object_vectors is None for hit in hits)
        assert "code" in reranker.hits[0].payload["soir"]["objects"][0]  # the payload as it is stored
        assert reranker.hits[0].box is None


class Patchy(ColourPipeline):
    """With patches at hand: one of each query."""

    has_patches = True

    def query_look(self, image, *, box=None, mask=None, patches=False):
        row = self.query(image, box=box, mask=mask)
        return QueryLook(row, row, np.ones((1, 4), np.float32) / 2 if patches else None)

    def whiten(self, row):
        return row


@pytest.mark.parametrize(
    ("needs", "pipeline", "of_query", "of_hits"),
    [
        ({"patches"}, Patchy(), True, True),
        ({"patches"}, ColourPipeline(), False, False),  # nothing to compare them with
        ({"patches", "query image"}, ColourPipeline(), False, True),
        ({"payload"}, Patchy(), False, False),
    ],
)
def test_patches_come_where_they_are_needed(client, needs, pipeline, of_query, of_hits):
    client.set_payload("images", {"patches": ["stored"]}, points=list(range(6)), key="soir")
    reranker, soir = ByNumber(needs), SoirSearcher(client, pipeline=pipeline)
    query = painted((A, RED), (B, BLUE))
    soir.search(query, box=B, rerank=reranker)
    soir.search_many([query], boxes=[B], rerank=reranker)
    soir.search_groups(query, "n", box=B, rerank=reranker)
    assert [query.patches is not None for query in reranker.queries] == [of_query] * len(reranker.queries)
    for one in reranker.queries:
        np.testing.assert_allclose(one.vector, ColourPipeline().query(query, box=B), atol=1e-6)
    assert {"patches" in hit.payload["soir"] for hit in reranker.hits} == {of_hits}
    assert all("patches" not in hit.payload["soir"] for hit in soir.search(query, rerank=reranker))


class Turned(Patchy):
    """Looks at its query from the other side too."""

    def query_look(self, image, *, box=None, mask=None, patches=False):
        row = self.query(image, box=box, mask=mask)
        return QueryLook(row, row, None, np.stack([row, row[::-1]]))


def test_what_a_query_looks_like_turned_comes_with_it(client):
    """Unless its vector is of more than one image."""
    reranker, soir = ByNumber({"payload"}), SoirSearcher(client, pipeline=Turned())
    query, other = painted((A, RED), (B, BLUE)), painted((A, BLUE))
    soir.search(query, box=B, rerank=reranker)
    soir.search(query, rerank=reranker, examples=[other])
    soir.search(ColourPipeline().query(query), rerank=reranker)
    one, several, vector = reranker.queries
    upright = ColourPipeline().query(query, box=B)
    np.testing.assert_allclose(one.rows, np.stack([upright, upright[::-1]]), atol=1e-6)
    for plain in (several, vector):
        assert plain.looks is None
        np.testing.assert_array_equal(plain.rows, plain.vector[None])


def test_a_query_image_is_not_held_for_those_that_do_not_read_it(client):
    """Nor are those of more than one request (32) for the others, but the one that was ranked last."""
    reranker, pixels = ByNumber(), []

    class Watching(ColourPipeline):
        def query(self, image, **of):
            pixels.append(weakref.ref(image))
            alive.append(sum(one() is not None for one in pixels))
            return super().query(image, **of)

    alive: list[int] = []
    soir = SoirSearcher(client, pipeline=Watching())
    data = io.BytesIO()
    Image.fromarray(picture(0)).save(data, "png")
    soir.search_many([data.getvalue()] * 40, rerank=reranker)
    assert {query.image for query in reranker.queries} == {None}
    assert max(alive) <= 2
    alive.clear()
    reranker.needs = frozenset({"query image"})
    reranker.rerank = lambda query, hits, failed=None: list(hits)
    soir.search_many([data.getvalue()] * 80, rerank=reranker)
    assert 32 <= max(alive) <= 34


def test_hits_come_in_blocks(client):
    class Watching(ByNumber):
        def rerank(self, query, hits, *, failed=None):
            sizes.append(len(hits))
            return list(hits)

    sizes: list[int] = []
    searcher(client).search(painted((B, BLUE)), rerank=Watching(), limit=3, offset=2)
    assert sizes == [4, 2]
    sizes.clear()
    searcher(client).search(painted((B, BLUE)), rerank=Watching(), limit=5)  # more than a block
    assert sizes == [5]


@pytest.mark.parametrize(
    ("needs", "query", "message"),
    [
        ({"query image"}, [1.0] * 12, "needs a query image, and this query is a vector.*codes"),
        ({"query text"}, [1.0] * 12, "needs words, and this query is a vector"),
        ({"query text"}, picture(0), r"needs words, and this query is an image: search\(text="),
    ],
)
def test_a_query_without_what_is_needed_is_refused_before_qdrant_is_asked(
    client, monkeypatch, needs, query, message
):
    found = searcher(client)
    found.search(picture(0))
    monkeypatch.setattr(client, "query_points", None)
    with pytest.raises(ConfigError, match=message):
        found.search(query, rerank=ByNumber(needs))


@pytest.mark.parametrize(("needs", "most"), [({"image"}, 1), ({"payload"}, 2)])
def test_what_opens_images_runs_in_one_thread_at_a_time(client, needs, most):
    """As encoding does, since pipelines are not made for several threads."""
    running, seen, together = [], [], threading.Barrier(2)

    class Slow(ByNumber):
        def rerank(self, query, hits, *, failed=None):
            running.append(1)
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(0.2)
            seen.append(len(running))
            running.pop()
            return list(hits)

    found, slow = searcher(client), Slow(needs)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda query: found.search(query, rerank=slow), [[1.0] * 12] * 2))
    assert max(seen) == most


def test_boxes_of_objects_are_told_by_their_vectors():
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=ColourPipeline(), keep_objects=True, object_codes=0).add(
        [painted((A, RED), (B, BLUE))], ids=[0], objects=[[SceneObject(A), SceneObject(B)]]
    )
    (hit,) = searcher(client).search(painted((B, BLUE)), box=B, rerank="objects")
    assert (hit.box, hit.object) == (B, 1)


# -- the window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "window"),
    [
        (Page(10), Window(100, 0, 100)),
        (Page(10, 95), Window(200, 0, 100)),
        (Page(10, 100), Window(100, 100, 100)),
        (Page(150, 10), Window(300, 0, 150)),
        (Page(10, 30, prefetch=20), Window(20, 20, 20)),
        (Page(10, 11, prefetch=20), Window(40, 0, 20)),
        (Page(3, group_size=2), Window(20, group_size=5)),
        (Page(30, group_size=7), Window(30, group_size=7)),
    ],
)
def test_blocks_lie_at_the_same_places_for_every_page(page, window):
    assert candidate_blocks(100, page) == window


@pytest.mark.parametrize(
    ("page", "candidates"),
    [
        (Page(10), 100),
        (Page(10, 5), 150),
        (Page(3, group_size=5), 150),
        (Page(10, prefetch=30), 30),
        (Page(10, 50, prefetch=30), 60),
    ],
)
def test_objects_are_ordered_among_ten_times_the_hits(page, candidates):
    window = ObjectReranker().window(page)
    assert (window.limit, window.offset, window.by_objects) == (page.limit, page.offset, candidates)


@pytest.mark.parametrize(
    ("page", "limit"),
    [(Page(10), 50), (Page(10, 60), 70), (Page(10, prefetch=20), 20), (Page(30, prefetch=20), 30)],
)
def test_costly_rerankers_take_the_first_candidates(page, limit):
    assert first_candidates(50, page, "mine") == Window(limit)


def test_costly_rerankers_take_no_groups(client):
    with pytest.raises(ConfigError, match='rerank="mine": groups can be reranked'):
        first_candidates(50, Page(3, group_size=2), "mine")
    with pytest.raises(ConfigError, match="groups can be reranked"):
        searcher(client).search_groups(Text("unread"), "n", rerank="q-perturbation")


def test_what_was_computed_under_other_masks_is_computed_anew(monkeypatch):
    client, pipeline = QdrantClient(":memory:"), ColourPipeline()
    SoirIngestor(client, pipeline=pipeline).add([picture(0)])
    (hit,) = SoirSearcher(client, pipeline=pipeline).search(picture(0), rerank=None)
    keys = set()
    for head in ("one", "another", "one"):
        pipeline.recipe = {"segmenter": {"kind": "token-unet", "head": head}, "replaced": {}}
        keys.add(hit_image.key(pipeline, hit, []))
    assert len(keys) == 2
    monkeypatch.setattr(hit_image, "VERSION", hit_image.VERSION + 1)
    assert hit_image.key(pipeline, hit, []) not in keys  # what code of before has computed is not read


@pytest.mark.parametrize("name", [None, "soir"])
def test_candidates_for_objects_are_taken_among_what_the_filter_lets_through(name):
    client, options = QdrantClient(":memory:"), {"pipeline": ColourPipeline(), "vector_name": name}
    SoirIngestor(client, keep_objects=True, **options).add(
        [painted((A, RED), (B, (0, green, 250))) for green in (0, 70, 80, 90, 140, 200)],
        ids=range(6),
        objects=[[SceneObject(A), SceneObject(B)]] * 6,
    )
    last = models.Filter(must=[models.HasIdCondition(has_id=[4, 5])])
    hits = SoirSearcher(client, **options).search(
        painted((B, BLUE)), box=B, rerank="objects", filter=last, limit=1, prefetch=1
    )
    assert len(hits) == 1
    assert hits[0].id in (4, 5)
