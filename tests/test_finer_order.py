"""Many candidates by their codes, the first of these once more by their patches, which are fetched for them alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import ColourPipeline
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from soir_qdrant import SoirIngestor, SoirSearcher
from soir_qdrant.aio import AsyncSoirIngestor, AsyncSoirSearcher
from soir_qdrant.qdrant.written import GAIN
from soir_qdrant.rerank.stored import BY_PATCHES
from soir_qdrant.types import Hit, QueryLook, Scene, SceneObject

COUNT = 320  # images, more than are ordered at once
LIKE = 1  # of an image's kinds: its patches are the query's
HIDDEN = 2  # its object is the query's thing, and its vector is not


def image(place: int, kind: int = 0) -> np.ndarray:
    """What the pipeline below reads: how far from the query, and of what kind."""
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[0, 0] = place // 100, place % 100, kind
    return rgb


class Turned(ColourPipeline):
    """Image i lies at an angle of i / 300 from image 0."""

    has_patches = True

    def _scene(self, image, objects):
        row = self.query(image.rgb)
        item = SceneObject((0.0, 0.0, 8.0, 8.0))
        own = self.query(np.zeros_like(image.rgb)) if image.rgb[0, 0, 2] == HIDDEN else row
        return Scene(8, 8, (item,), row, own[None], (self.patches(image.rgb),))

    def scenes(self, images, objects=None, seconds=None, *, patches=False) -> list[Scene]:
        scenes = super().scenes(images, objects, seconds)
        return scenes if patches else [replace(scene, patches=None) for scene in scenes]

    def query(self, rgb, **_: Any):
        angle = (100.0 * rgb[0, 0, 0] + rgb[0, 0, 1]) / 300
        return np.array([np.cos(angle), np.sin(angle), *[0] * 10], np.float32)

    def query_look(self, rgb, *, patches=False, **_: Any) -> QueryLook:
        row = self.query(rgb)
        return QueryLook(row, row, np.full((1, 8), 8**-0.5, np.float32) if patches else None, row[None])

    def patches(self, rgb):
        return np.full((1, 8), 8**-0.5 if rgb[0, 0, 2] == LIKE else -(8**-0.5), np.float32)

    def whiten(self, rows):
        return rows


def filled(
    kinds: dict[int, int], count: int = 60, client: QdrantClient | None = None, **options: Any
) -> QdrantClient:
    client = client or QdrantClient(":memory:")
    SoirIngestor(client, pipeline=Turned(), **options).add(
        [image(i, kinds.get(i, 0)) for i in range(count)],
        ids=range(count),
        payloads=[{"shelf": i % 2} for i in range(count)],
    )
    return client


def ids(hits: list[Hit]) -> list[str | int]:
    return [hit.id for hit in hits]


def test_the_first_by_codes_are_ordered_by_patches_too_and_the_others_stay_below(
    client: QdrantClient,
) -> None:
    searcher = SoirSearcher(filled({30: LIKE, 55: LIKE}, client=client), pipeline=Turned())
    hits = searcher.search(image(0), limit=60)
    assert ids(hits) == [30, *range(30), *range(31, BY_PATCHES), *range(BY_PATCHES, 60)]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(hit.box == (0, 0, 8, 8) and "patches" not in hit.payload["soir"] for hit in hits)
    assert ids(searcher.search(image(0), limit=60, rerank="codes")) == [*range(60)]


def test_pages_fit_together() -> None:
    searcher = SoirSearcher(filled({30: LIKE, 310: LIKE}, COUNT), pipeline=Turned())
    whole = [hit.id for i in range(0, COUNT, 16) for hit in searcher.search(image(0), limit=16, offset=i)]
    assert sorted(whole) == [*range(COUNT)]
    assert whole.index(30) == 0
    assert whole.index(310) == 300  # of the second block the first


def test_what_the_one_vector_has_far_down_comes_forward_by_its_object() -> None:
    searcher = SoirSearcher(filled({250: HIDDEN}, COUNT), pipeline=Turned())
    (first,) = searcher.search(image(0), limit=1, rerank="codes")
    assert first.id == 0  # the same, and its vector is, too
    assert 250 in ids(searcher.search(image(0), limit=115))
    assert 250 not in ids(searcher.search(image(0), limit=115, prefetch=100))


def test_only_patches_that_are_compared_leave_qdrant(monkeypatch: pytest.MonkeyPatch) -> None:
    client = filled({30: LIKE}, COUNT)
    answers: list[Any] = []
    query, retrieve = client.query_points, client.retrieve

    def queried(*args: Any, **options: Any) -> Any:
        answer = query(*args, **options)
        answers.append(sum("patches" in point.payload["soir"] for point in answer.points))
        return answer

    def retrieved(*args: Any, **options: Any) -> Any:
        records = retrieve(*args, **options)
        answers.append({tuple(sorted(record.payload["soir"])) for record in records} | {len(records)})
        return records

    monkeypatch.setattr(client, "query_points", queried)
    monkeypatch.setattr(client, "retrieve", retrieved)
    searcher = SoirSearcher(client, pipeline=Turned())
    assert ids(searcher.search(image(0), limit=1)) == [30]
    assert answers == [0, {("patches", "recipe", "sha256"), BY_PATCHES}]
    searcher.search(searcher.vector(image(0)), limit=1)  # a vector has none to compare
    assert answers[2:] == [0]


def test_what_qdrant_orders_by_codes_is_ordered_by_patches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand candidates, without their payloads."""
    sizes: list[int] = []
    client = filled({30: LIKE, 55: LIKE, 310: HIDDEN}, COUNT, code_vectors="scalar")
    searcher = SoirSearcher(client, pipeline=Turned())
    hits = searcher.search(image(0), limit=BY_PATCHES)
    assert ids(hits)[:3] == [30, 0, 1]
    assert 310 in ids(searcher.search(image(0), limit=160))  # beyond 300 by its vector
    assert [hit.id for hit in searcher.search(image(0), limit=5, offset=2)] == ids(hits)[2:7]
    pages = [hit.id for i in range(0, COUNT, 40) for hit in searcher.search(image(0), limit=40, offset=i)]
    assert sorted(pages) == [*range(COUNT)]
    answer = client.query_points
    monkeypatch.setattr(client, "query_points", lambda *a, **k: sizes.append(k["limit"]) or answer(*a, **k))
    searcher.search(image(0), limit=5, prefetch=200)
    assert sizes == [BY_PATCHES]  # payloads: 200 are ordered where they lie
    vector = searcher.search(searcher.vector(image(0)), limit=3)
    assert ids(vector) == ids(searcher.search(image(0), limit=3, rerank="codes")) == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"code_vectors": "scalar"}])
def test_words_bring_images_forward_whoever_orders_by_codes(options: dict[str, str]) -> None:
    class Reading(Turned):
        def query_text(self, rgb, box=None) -> str:
            return "tomato"

    client = filled({}, COUNT, **options)
    client.set_payload("images", {"text": "tomato soup"}, points=[60, 70], key="soir")
    searcher = SoirSearcher(client, pipeline=Reading())
    assert ids(searcher.search(image(0), limit=2, prefetch=10)) == [60, 70]
    odd = models.Filter(must_not=[models.HasIdCondition(has_id=[60])])
    assert ids(searcher.search(image(0), limit=1, prefetch=10, filter=odd)) == [70]
    alone = {"limit": 1, "filter": models.Filter(must=[models.HasIdCondition(has_id=[60])])}
    (worded,), (plain,) = (
        SoirSearcher(client, pipeline=pipeline).search(image(0), **alone)
        for pipeline in (Reading(), Turned())
    )
    assert worded.score == pytest.approx(plain.score + GAIN, abs=1e-4)
    pages = [hit.id for i in range(0, COUNT, 40) for hit in searcher.search(image(0), limit=40, offset=i)]
    assert sorted(pages) == [*range(COUNT)]


def test_pages_that_one_prefetch_covers_fit_together_where_qdrant_orders() -> None:
    client = filled(dict.fromkeys(range(125, 235), HIDDEN), COUNT, code_vectors="scalar")
    searcher = SoirSearcher(client, pipeline=Turned())
    some = [searcher.search(image(0), limit=20, offset=i, prefetch=120) for i in range(0, 120, 20)]
    assert sorted(hit.id for hits in some for hit in hits) == [*range(120)]


def test_images_that_are_gone_meanwhile_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    client = filled({30: LIKE})
    retrieve = client.retrieve
    monkeypatch.setattr(
        client, "retrieve", lambda *a, **k: [one for one in retrieve(*a, **k) if one.id not in (1, 40)]
    )
    hits = ids(SoirSearcher(client, pipeline=Turned()).search(image(0), limit=60))
    assert hits == [30, 0, *(i for i in range(2, 60) if i not in (30, 40))]


def test_patches_of_an_image_that_was_made_anew_meanwhile_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = filled({30: LIKE})
    retrieve = client.retrieve

    def retrieved(*args: Any, **options: Any) -> Any:
        records = retrieve(*args, **options)
        for record in records:
            if record.id == 30:
                record.payload["soir"] |= {
                    "sha256": "another",
                    "patches": record.payload["soir"]["patches"] * 2,
                }
        return records

    monkeypatch.setattr(client, "retrieve", retrieved)
    hits = SoirSearcher(client, pipeline=Turned()).search(image(0), limit=60)
    assert ids(hits) == [*range(60)]  # by codes, as wherever one has no patches


def test_collections_without_patches_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = filled({}, object_patches=False, code_vectors="scalar")
    monkeypatch.setattr(client, "retrieve", None)
    assert ids(SoirSearcher(client, pipeline=Turned()).search(image(0), limit=3)) == [0, 1, 2]


def test_many_searches_fetch_their_patches_together(monkeypatch: pytest.MonkeyPatch) -> None:
    client, calls = filled({30: LIKE}), []
    retrieve = client.retrieve
    monkeypatch.setattr(client, "retrieve", lambda *a, **k: calls.append(k["ids"]) or retrieve(*a, **k))
    searcher = SoirSearcher(client, pipeline=Turned())
    many = searcher.search_many([image(0), image(50)] * 10, limit=1)
    assert [ids(hits) for hits in many] == [[30], ids(searcher.search(image(50), limit=1))] * 10
    assert len(calls) == 3  # of ten searches each, and of the one


def test_scores_fall_on_every_page() -> None:
    searcher = SoirSearcher(filled({55: LIKE}, 120, code_vectors="scalar"), pipeline=Turned())
    for offset in range(0, 100, 20):
        scores = [hit.score for hit in searcher.search(image(0), limit=20, offset=offset)]
        assert scores == sorted(scores, reverse=True)


def test_many_images_with_a_common_word_do_not_push_out_those_that_are_alike() -> None:
    class Reading(Turned):
        def query_text(self, rgb, box=None) -> str:
            return "tomato organic basil passata"

    client = filled({}, COUNT, code_vectors="scalar")
    client.set_payload("images", {"text": "basil"}, points=[*range(200, COUNT)], key="soir")
    hits = SoirSearcher(client, pipeline=Reading()).search(image(0), limit=BY_PATCHES)
    assert sorted(ids(hits)) == [*range(BY_PATCHES)]


def test_groups_are_ordered_so_as_well() -> None:
    groups = SoirSearcher(filled({3: LIKE}), pipeline=Turned()).search_groups(image(0), "shelf", group_size=2)
    assert [(group.key, ids(group.hits)) for group in groups] == [(1, [3, 1]), (0, [0, 2])]


def test_asyncio_orders_the_same() -> None:
    async def search() -> list[Hit]:
        client = AsyncQdrantClient(":memory:")
        await AsyncSoirIngestor(client, pipeline=Turned()).add(
            [image(i, LIKE * (i == 9)) for i in range(12)], ids=range(12)
        )
        return await AsyncSoirSearcher(client, pipeline=Turned()).search(image(0), limit=3)

    assert ids(asyncio.run(search())) == [9, 0, 1]
