"""The same points and requests through local mode and through Qdrant's own engine: what a server would answer.

Where a server is at hand, through that one too. Local mode is the client's own imitation in Python; the engine
is the Rust code of the server. A difference between the two would be an error that no other test here sees.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from conftest import folder_in_memory, unit
from qdrant_client import QdrantClient, models

from soir_qdrant import filters
from soir_qdrant.qdrant.schema import INDEXES

edge = pytest.importorskip("soir_qdrant.qdrant.edge.client", reason="qdrant-edge-py: the extra edge has it")

NAME, DIM, COUNT = "images", 16, 80
ROWS = unit(COUNT, DIM)
OBJECTS = [unit(1 + i % 4, DIM, seed=100 + i) for i in range(COUNT)]
QUERY = unit(DIM, seed=7)
LABELS = ("mug", "key", "pen")
FIRST = datetime(2024, 1, 1, tzinfo=UTC)


def payload(i: int) -> dict:
    objects = [
        {
            "label": LABELS[(i + k) % 3],
            "area": round(0.01 * (i % 10 + k), 4),
            "score": 0.5 + 0.1 * k,
            "box": [float(5 * k), 0.0, 5.0 * k + i % 7, 9.0],
        }
        for k in range(len(OBJECTS[i]))
    ]
    soir = {"objects": objects, "labels": sorted({o["label"] for o in objects}), "count": len(objects)}
    if i % 5 == 0:
        soir["namespace"] = "tenant-a"
    own = {
        "shop": f"s{i % 4}",
        "price": i / 2,
        "open": i % 3 == 0,
        "taken": (FIRST + timedelta(days=i)).isoformat(),
    }
    return {"soir": soir, **own, **({"note": None} if i % 8 == 0 else {})}


def fill(client) -> None:
    cosine = models.Distance.COSINE
    several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    vectors = {
        "": models.VectorParams(size=DIM, distance=cosine),
        "objects": models.VectorParams(
            size=DIM, distance=cosine, multivector_config=several, hnsw_config=models.HnswConfigDiff(m=0)
        ),
    }
    client.create_collection(NAME, vectors, metadata={"soir": {"fingerprint": {"a": 1}}})
    if not isinstance(client, QdrantClient) or "http" in str(client._client.__class__).lower():
        for field, kind in {**INDEXES, "price": "float", "taken": "datetime", "shop": "keyword"}.items():
            client.create_payload_index(NAME, field, kind, wait=True)
    points = [
        models.PointStruct(
            id=i if i % 2 else str(uuid.UUID(int=i)),
            vector={"": ROWS[i].tolist(), "objects": OBJECTS[i].tolist()},
            payload=payload(i),
        )
        for i in range(COUNT)
    ]
    for start in range(0, COUNT, 25):
        client.upsert(NAME, points[start : start + 25], wait=True)


@contextmanager
def two(kind: str, request):
    """Local mode, and the engine (or a server), with the same points."""
    local = QdrantClient(":memory:")
    with ExitStack() as stack:
        if kind == "server":
            other = QdrantClient(url=request.getfixturevalue("server_url"), timeout=60)
            other.delete_collection(NAME)
        else:
            other = edge.EdgeClient(stack.enter_context(folder_in_memory()))
        stack.callback(other.close)
        for client in (local, other):
            fill(client)
        yield local, other


KINDS = ["edge", pytest.param("server", marks=pytest.mark.server)]


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    """For tests that read."""
    with two(request.param, request) as clients:
        yield clients


@pytest.fixture(params=KINDS)
def fresh(request):
    """For tests that write."""
    with two(request.param, request) as clients:
        yield clients


def same_points(one, other) -> None:
    """The same ids and scores, in the same order but for ties."""
    assert len(one) == len(other)
    assert np.allclose([p.score for p in one], [p.score for p in other], atol=1e-4)
    ids = [
        {p.id for p in points if p.score > one[-1].score + 1e-4} if one else set() for points in (one, other)
    ]
    assert ids[0] == ids[1]
    payloads = {p.id: p.payload for p in one}
    assert all(p.payload == payloads[p.id] for p in other if p.id in payloads)


def field(key, **condition):
    return models.FieldCondition(key=key, **condition)


def nested(*must, must_not=()):
    inside = models.Filter(must=list(must), must_not=list(must_not))
    return models.NestedCondition(nested=models.Nested(key="soir.objects", filter=inside))


CONDITIONS = {
    "value": field("shop", match=models.MatchValue(value="s1")),
    "any": field("shop", match=models.MatchAny(any=["s1", "s3"])),
    "except": field("shop", match=models.MatchExcept(**{"except": ["s1"]})),
    "true": field("open", match=models.MatchValue(value=True)),
    "range": field("price", range=models.Range(gte=10, lt=20.5)),
    "dates": field(
        "taken", range=models.DatetimeRange(gt=FIRST + timedelta(days=3), lte=FIRST + timedelta(30))
    ),
    "length": field("soir.labels", values_count=models.ValuesCount(gte=2)),
    "empty": models.IsEmptyCondition(is_empty=models.PayloadField(key="soir.namespace")),
    "null": models.IsNullCondition(is_null=models.PayloadField(key="note")),
    "ids": models.HasIdCondition(has_id=[1, 3, str(uuid.UUID(int=4)), 999]),
    "label": filters.has_label("mug"),
    "count": filters.min_count(3),
    "area": filters.object_larger_than(0.08),
    "area of a label": filters.object_larger_than(0.05, "key"),
    "small": filters.object_smaller_than(0.02, "pen"),
    "region": filters.object_in_region((5, 0, 12, 10)),
    "region, partly": filters.object_in_region((6, 1, 9, 8), "mug", partly=True),
    "array": field("soir.objects[].label", match=models.MatchValue(value="pen")),
    "nested pair": nested(
        field("label", match=models.MatchValue(value="mug")), field("score", range=models.Range(gt=0.55))
    ),
    "nested not": nested(must_not=[field("label", match=models.MatchValue(value="mug"))]),
    "either": models.Filter(
        should=[filters.has_label("mug"), field("price", range=models.Range(gt=35))],
        must_not=[field("shop", match=models.MatchValue(value="s0"))],
    ),
    "two of three": models.Filter(
        min_should=models.MinShould(
            conditions=[filters.has_label("mug"), filters.min_count(3), filters.object_larger_than(0.05)],
            min_count=2,
        )
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_hold_for_the_same_points(both, name):
    chosen = models.Filter(must=[CONDITIONS[name]])
    ids = [{p.id for p in client.scroll(NAME, chosen, limit=COUNT)[0]} for client in both]
    assert ids[0] == ids[1]
    assert 0 < len(ids[0]) < COUNT  # or it would compare nothing
    counts = [client.count(NAME, count_filter=chosen).count for client in both]
    assert counts == [len(ids[0])] * 2
    answers = [
        client.query_points(NAME, QUERY.tolist(), query_filter=chosen, limit=9).points for client in both
    ]
    same_points(*answers)


def formula(*parts):
    return models.FormulaQuery(formula=models.SumExpression(sum=list(parts)), defaults={"price": 0.0})


def mult(*parts):
    return models.MultExpression(mult=list(parts))


NEAR = models.Prefetch(query=QUERY.tolist(), limit=40)
BY_OBJECT = models.Prefetch(query=[QUERY.tolist()], using="objects", limit=40)
WITHOUT = models.PayloadSelectorExclude(exclude=["soir.objects"])
REQUESTS = {
    "nearest": {"query": QUERY.tolist()},
    "an offset": {"query": QUERY.tolist(), "offset": 7, "limit": 5},
    "a threshold": {"query": QUERY.tolist(), "score_threshold": 0.1, "limit": 50},
    "exact": {"query": QUERY.tolist(), "search_params": models.SearchParams(exact=True)},
    "keys": {"query": QUERY.tolist(), "with_payload": ["soir.labels", "shop"]},
    "all keys but": {"query": QUERY.tolist(), "with_payload": WITHOUT},
    "one key": {"query": QUERY.tolist(), "with_payload": models.PayloadSelectorInclude(include=["shop"])},
    "max sim": {"query": [QUERY.tolist()], "using": "objects"},
    "max sim of two": {"query": unit(2, DIM, seed=3).tolist(), "using": "objects"},
    "rescored by objects": {"prefetch": NEAR, "query": [QUERY.tolist()], "using": "objects", "limit": 20},
    "reciprocal ranks": {
        "prefetch": [NEAR, BY_OBJECT],
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
        "limit": 5,
    },
    "mean of image and best object": {
        "prefetch": [NEAR, BY_OBJECT],
        "query": formula(mult(0.3, "$score[0]"), mult(0.7, "$score[1]")),
        "limit": 20,
    },
    "a formula on payload": {
        "prefetch": NEAR,
        "query": formula("$score", mult(0.01, "price"), mult(0.5, filters.has_label("mug"))),
        "limit": 20,
    },
    "a division and a root": {
        "prefetch": NEAR,
        "query": formula(
            "$score",
            models.DivExpression(div=models.DivParams(left="price", right=40.0)),
            models.SqrtExpression(sqrt="price"),
            models.NegExpression(neg=models.AbsExpression(abs="$score")),
        ),
        "limit": 20,
    },
    "recommended": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(positive=[QUERY.tolist()], negative=[ROWS[3].tolist()])
        )
    },
    "recommended by best score": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(
                positive=[QUERY.tolist()],
                negative=[ROWS[3].tolist()],
                strategy=models.RecommendStrategy.BEST_SCORE,
            )
        )
    },
    "like a point": {"query": 5},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_searches_are_answered_alike(both, name):
    same_points(*(client.query_points(NAME, **REQUESTS[name]).points for client in both))


def test_vectors_come_along_alike(both):
    for wanted in (True, ["objects"]):
        one, other = (
            client.query_points(NAME, QUERY.tolist(), limit=3, with_vectors=wanted).points for client in both
        )
        for mine, theirs in zip(one, other, strict=True):
            assert set(mine.vector) == set(theirs.vector)
            for key, rows in mine.vector.items():
                assert np.allclose(rows, theirs.vector[key], atol=1e-6)


@pytest.mark.parametrize("key", ["shop", "soir.labels", "soir.objects[].label"])
def test_groups_are_alike(both, key):
    one, other = (
        client.query_points_groups(NAME, key, query=QUERY.tolist(), limit=3, group_size=4).groups
        for client in both
    )
    assert [group.id for group in one] == [group.id for group in other]
    for mine, theirs in zip(one, other, strict=True):
        same_points(mine.hits, theirs.hits)


def test_pages_are_alike_and_whole(both):
    def pages(client, **options):
        offset, ids = None, []
        while True:
            points, offset = client.scroll(NAME, limit=17, offset=offset, **options)
            ids += [point.id for point in points]
            if offset is None:
                return ids

    one, other = map(pages, both)
    assert one == other
    assert len(set(one)) == COUNT
    mugs = models.Filter(must=[filters.has_label("mug")])
    assert pages(both[0], scroll_filter=mugs) == pages(both[1], scroll_filter=mugs)
    order = models.OrderBy(key="price", direction=models.Direction.DESC)
    first = [[p.id for p in client.scroll(NAME, order_by=order, limit=9)[0]] for client in both]
    assert first[0] == first[1]


def test_writes_leave_the_same_behind(fresh):
    for client in fresh:
        other = models.PointStruct(id=1, vector={"": QUERY.tolist()}, payload={"new": True})
        if client is not fresh[0]:  # local mode has no such mode before 1.17
            client.upsert(NAME, [other], update_mode=models.UpdateMode.INSERT_ONLY, wait=True)
        client.set_payload(NAME, {"uri": "/a.png"}, points=[3], key="soir", wait=True)
        mugs = models.Filter(must=[filters.has_label("mug")])
        client.set_payload(NAME, {"seen": 1}, points=mugs, wait=True)
        client.delete(
            NAME, models.FilterSelector(filter=models.Filter(must=[CONDITIONS["range"]])), wait=True
        )
        client.delete(NAME, models.PointIdsList(points=[7]), wait=True)
        moved = models.UpdateVectors(points=[models.PointVectors(id=5, vector={"": QUERY.tolist()})])
        change = models.SetPayload(payload={"shop": "moved"}, points=[5])
        operations = [
            models.UpdateVectorsOperation(update_vectors=moved),
            models.SetPayloadOperation(set_payload=change),
        ]
        client.batch_update_points(NAME, operations, wait=True)
        client.delete_payload(NAME, ["note"], points=[str(uuid.UUID(int=8))], wait=True)
    left = [{p.id: p for p in c.scroll(NAME, limit=COUNT, with_vectors=True)[0]} for c in fresh]
    assert set(left[0]) == set(left[1])
    for id_, point in left[0].items():
        assert point.payload == left[1][id_].payload
        assert np.allclose(point.vector[""], left[1][id_].vector[""], atol=1e-6)
        assert len(point.vector["objects"]) == len(left[1][id_].vector["objects"])
    assert left[1][5].payload["shop"] == "moved"
    assert left[1][3].payload["soir"]["uri"] == "/a.png"


@pytest.mark.parametrize("kind", ["scalar", "binary"])
def test_quantized_vectors_find_the_same_first_hits(kind):
    from soir_qdrant.qdrant.schema import vectors_config

    rows, query = unit(600, 256), unit(256, seed=9)
    with folder_in_memory() as folder:
        client = edge.EdgeClient(folder)
        client.create_collection(NAME, vectors_config(256, "", False, kind))
        client.upsert(NAME, [models.PointStruct(id=i, vector=row.tolist()) for i, row in enumerate(rows)])
        client.optimize(NAME)
        rescored = models.SearchParams(
            quantization=models.QuantizationSearchParams(rescore=True, oversampling=120.0)
        )
        hits = client.query_points(NAME, query.tolist(), limit=5, search_params=rescored).points
        client.close()
    best = np.argsort(-(rows @ query))[:5]
    assert [hit.id for hit in hits][:3] == best[:3].tolist()
    assert np.allclose([hit.score for hit in hits][:3], (rows @ query)[best[:3]], atol=1e-3)


def test_the_collection_is_there_after_a_restart(memory_folder):
    client = edge.EdgeClient(memory_folder)
    fill(client)
    client.close()
    again = edge.EdgeClient(memory_folder)
    assert [c.name for c in again.get_collections().collections] == [NAME]
    info = again.get_collection(NAME)
    assert info.points_count == COUNT
    assert info.config.metadata == {"soir": {"fingerprint": {"a": 1}}}
    assert set(INDEXES) <= set(info.payload_schema)
    again.delete_collection(NAME)
    assert not again.collection_exists(NAME)
    again.close()


def test_the_graph_is_made_when_many_points_are_not_in_it(monkeypatch):
    from soir_qdrant.qdrant.edge import collection

    monkeypatch.setattr(collection, "UNINDEXED", 200)
    monkeypatch.setattr(collection, "INDEXING_THRESHOLD", 1)
    with folder_in_memory() as folder:
        client = edge.EdgeClient(folder)
        client.create_collection(NAME, models.VectorParams(size=64, distance=models.Distance.COSINE))
        for start in range(0, 400, 50):
            rows = unit(50, 64, seed=start)
            client.upsert(
                NAME, [models.PointStruct(id=start + i, vector=r.tolist()) for i, r in enumerate(rows)]
            )
        assert client.get_collection(NAME).indexed_vectors_count >= 200
        client.close()
