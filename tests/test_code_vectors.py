"""Hits ordered in Qdrant by codes that are vectors: the same ranking, and a tenth of the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ColourPipeline, painted, store
from qdrant_client import QdrantClient, models

from soir_qdrant import SoirIngestor, SoirSearcher
from soir_qdrant.errors import ConfigError
from soir_qdrant.rerank import CodeReranker
from soir_qdrant.types import SceneObject

A, B = (5, 5, 25, 25), (40, 30, 60, 50)
COUNT = 150  # images, more than the hundred that are ordered at once


def image(i: int) -> np.ndarray:
    return painted((A, (250, i, 0)), (B, (0, (37 * i) % 250, 250 - i)))


def fill(client: QdrantClient, **options) -> SoirSearcher:
    SoirIngestor(client, pipeline=ColourPipeline(), **options).add(
        map(image, range(COUNT)), ids=range(COUNT), objects=[[SceneObject(A), SceneObject(B)]] * COUNT
    )
    return SoirSearcher(client, pipeline=ColourPipeline())


@pytest.fixture(scope="module")
def by_payload() -> SoirSearcher:
    return fill(QdrantClient(":memory:"))


@pytest.fixture(scope="module")
def by_vectors() -> SoirSearcher:
    return fill(QdrantClient(":memory:"), code_vectors="scalar")


@pytest.mark.parametrize("page", [{}, {"limit": 5, "offset": 20}, {"prefetch": 30}, {"limit": 120}])
def test_the_ranking_is_the_same(by_payload, by_vectors, page):
    for i in (3, 70, 140):
        query = image(i)
        one = by_payload.search(query, box=B, rerank=CodeReranker(expand=0), **page)
        other = by_vectors.search(query, box=B, **page)
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=0.005)
        both = {hit.id for hit in one} & {hit.id for hit in other}
        assert len(both) >= 0.9 * len(one)  # codes in bytes tie, or nearly
        boxes = {hit.id: hit.box for hit in one}
        assert all(hit.box == boxes[hit.id] for hit in other if hit.id in both)


def test_a_vector_with_a_name_of_its_own_is_ordered_the_same():
    client, hits = QdrantClient(":memory:"), {}
    for collection, name in (("plain", None), ("named", "soir")):
        options = {"pipeline": ColourPipeline(), "vector_name": name}
        SoirIngestor(client, collection, code_vectors="scalar", **options).add(
            map(image, range(12)), ids=range(12), objects=[[SceneObject(A), SceneObject(B)]] * 12
        )
        results = SoirSearcher(client, collection, **options).search(image(3), box=B)
        hits[collection] = [(hit.id, hit.box, hit.score) for hit in results]
    assert hits["named"] == hits["plain"]


def test_filters_thresholds_and_namespaces_hold(by_vectors):
    few = models.Filter(must=[models.HasIdCondition(has_id=list(range(10)))])
    assert {hit.id for hit in by_vectors.search(image(3), box=B, filter=few, limit=50)} == set(range(10))
    scores = {hit.id: hit.score for hit in by_vectors.search(image(3), box=B, rerank=None, limit=COUNT)}
    above = {hit.id for hit in by_vectors.search(image(3), box=B, score_threshold=0.9, limit=100)}
    assert above == {id_ for id_, score in scores.items() if score >= 0.9}
    client = by_vectors.store.client
    assert not SoirSearcher(client, pipeline=ColourPipeline(), namespace="other").search(image(3), box=B)


def test_groups_are_ordered_by_the_payload(by_payload, by_vectors):
    one, other = (s.search_groups(image(3), "soir.count", box=B) for s in (by_payload, by_vectors))
    assert [hit.score for hit in one[0].hits] == pytest.approx(
        [hit.score for hit in other[0].hits], abs=0.005
    )


@pytest.mark.slow
def test_ten_hits_take_a_tenth_of_the_bytes(monkeypatch):
    """With objects as in real images, and over HTTP as JSON."""
    from stand_in import StandIn

    server = StandIn()
    try:
        sizes = {}
        for name, options in (("payload", {}), ("vectors", {"code_vectors": "scalar"})):
            client = server.client()
            pipeline = Wide()
            boxes = [(x, y, x + 12, y + 12) for x in range(0, 60, 15) for y in range(0, 45, 15)]
            SoirIngestor(client, name, pipeline=pipeline, **options).add(
                map(image, range(120)), objects=[[SceneObject(box) for box in boxes]] * 120
            )
            server.sizes = 0
            assert len(SoirSearcher(client, name, pipeline=pipeline).search(image(3), box=B)) == 10
            sizes[name] = server.sizes
        assert sizes["payload"] > 10 * sizes["vectors"], sizes
    finally:
        server.close()


class Wide(ColourPipeline):
    """With vectors of 1,024 numbers, as real ones have."""

    dim = 1024

    def query(self, image, *, box=None, mask=None):
        short = super().query(image, box=box, mask=mask)
        return np.tile(short, 86)[:1024] / np.linalg.norm(np.tile(short, 86)[:1024])

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = {**self.fingerprint, "dim": 1024}


def test_a_collection_decides_for_itself(by_vectors):
    """It is written to, and searched, as it was made."""
    assert by_vectors.store.code_numbers == 12
    client = by_vectors.store.client
    SoirIngestor(client, pipeline=ColourPipeline()).add([image(200)], ids=[1000], objects=[[SceneObject(B)]])
    (point,) = client.retrieve("images", [1000], with_vectors=True)
    assert np.shape(point.vector["codes"]) == (1, 12)
    client.delete("images", [1000])


def test_says_what_is_wrong():
    with pytest.raises(ConfigError, match="turbo"):
        SoirIngestor(QdrantClient(":memory:"), code_vectors="octal")
    with pytest.raises(ConfigError, match="kept for single objects"):
        store(QdrantClient(":memory:"), vector_name="codes")
