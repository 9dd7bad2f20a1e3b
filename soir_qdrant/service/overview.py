"""A collection at a glance: its objects in two dimensions, and the images that are nearly the same."""

from __future__ import annotations

import threading
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.codes import decode
from soir_qdrant.qdrant.identity import PointId, visible
from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.service.collections import Collections, plain_id
from soir_qdrant.service.schemas_overview import DuplicateGroup, Duplicates, Method, ObjectMap, ObjectPoint

MAX_IMAGES = 1000  # whose objects are mapped, or that are compared with one another
NEIGHBOURS = 10  # of each image that may be its near-duplicates
SIMILAR = 0.8  # cosine of near-duplicates; measured: docs/how-to/service.md
PERPLEXITY = 30  # of t-SNE: about how many neighbours an object has
_RETRY = Retry(attempts=2)
_ONE = threading.Lock()  # a map takes seconds of a core: one at a time


def object_map(
    collections: Collections,
    name: str,
    method: Method = "pca",
    limit: int = 1500,
    filter: models.Filter | None = None,
) -> ObjectMap:
    """The objects of a collection, or of a random sample of it, in two dimensions.

    Args:
        collections: of the service.
        name: of the collection.
        method: "pca" (at once) or "tsne" (seconds), both scikit-learn's.
        limit: objects on the map; of more, a random part.
        filter: of Qdrant.

    Raises:
        NoCollection: where there is none.
        ConfigError: where the collection keeps no codes of objects.
    """
    collections.check(name)
    condition = visible(collections.namespace, filter)
    total = _RETRY(lambda: collections.client.count(name, condition), "count the images").count
    places, rows, images = [], [], 0
    for record in _sample(collections, name, condition, total):
        objects = ((record.payload or {}).get(KEY) or {}).get("objects") or []
        coded = [(i, item["code"]) for i, item in enumerate(objects) if "code" in item and _is_own(item)]
        images += bool(coded)
        places += [(plain_id(record.id), number) for number, _ in coded]
        rows += [decode(code) for _, code in coded]
    if total and not rows:
        raise ConfigError(f"collection {name!r} keeps no codes of objects, or no object was found: no map")
    chosen = np.random.default_rng(0).permutation(len(rows))[:limit]
    with _ONE:
        xy = laid_out(_even([rows[i] for i in chosen]), method) if rows else np.zeros((0, 2), np.float32)
    points = [
        ObjectPoint(id=places[i][0], object=places[i][1], x=round(float(x), 4), y=round(float(y), 4))
        for i, (x, y) in zip(chosen.tolist(), xy, strict=True)
    ]
    return ObjectMap(method=method, methods=list(get_args(Method)), points=points, images=images, total=total)


def _even(codes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Codes as rows of one length, that of the shortest: each has the first numbers of its vector."""
    length = min(len(code) for code in codes)
    return np.stack([code[:length] for code in codes])


def _is_own(item: dict[str, Any]) -> bool:
    return not item.get("stand_in")


def _sample(
    collections: Collections, name: str, condition: models.Filter | None, total: int
) -> list[models.Record] | list[models.ScoredPoint]:
    """All images, or MAX_IMAGES random ones, with their objects."""
    wanted = [f"{KEY}.objects"]
    if total <= MAX_IMAGES:
        return _RETRY(
            lambda: collections.client.scroll(name, condition, MAX_IMAGES, with_payload=wanted),
            "read the objects",
        )[0]
    query = models.SampleQuery(sample=models.Sample.RANDOM)
    return _RETRY(
        lambda: collections.client.query_points(
            name, query, query_filter=condition, limit=MAX_IMAGES, with_payload=wanted
        ),
        "read the objects",
    ).points


def laid_out(rows: NDArray[np.float32], method: Method) -> NDArray[np.float32]:
    """Vectors, float32 [n, D], in two dimensions, float32 [n, 2], 0..1. Cosines count: lengths do not."""
    from threadpoolctl import threadpool_limits

    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    if len(rows) < 4:  # too few for any of them
        return np.stack([np.linspace(0, 1, len(rows)), np.full(len(rows), 0.5)], 1).astype(np.float32)
    with threadpool_limits(1):  # threads that wait for one another beside the models' take minutes
        xy = _layout(method, len(rows)).fit_transform(rows)
    low, high = xy.min(0), xy.max(0)
    return np.asarray((xy - low) / np.maximum(high - low, 1e-9), np.float32)


def _layout(method: Method, count: int) -> Any:
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, random_state=0)
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (count - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", metric="cosine", random_state=0)


def duplicates(
    collections: Collections, name: str, threshold: float = SIMILAR, vector_name: str | None = None
) -> Duplicates:
    """Groups of images whose vectors are alike, by Qdrant's own distance matrix of a random sample.

    Args:
        collections: of the service.
        name: of the collection.
        threshold: cosine of two images' vectors from which they are nearly the same. A group holds together by
            pairs: its ends may be less alike.
        vector_name: of our vector; None: the unnamed one.

    Raises:
        NoCollection: where there is none.
        ConfigError: where the client is one of Qdrant Edge.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    collections.check(name)
    total = collections.count(name)
    matrix = _pairs(collections, name, vector_name)
    pairs: list[tuple[PointId, PointId, float]] = [
        (plain_id(pair.a), plain_id(pair.b), pair.score) for pair in matrix.pairs if pair.score >= threshold
    ]
    ids = sorted({id_ for one, other, _ in pairs for id_ in (one, other)}, key=str)
    groups = []
    if pairs:
        index = {id_: i for i, id_ in enumerate(ids)}
        rows, columns = [index[one] for one, _, _ in pairs], [index[other] for _, other, _ in pairs]
        graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(ids), len(ids)))
        count, group_of = connected_components(graph, directed=False)
        payloads = collections.stored(name, ids)
        for group in range(count):
            members = [id_ for id_, own in zip(ids, group_of, strict=True) if own == group]
            scores = [score for a, _, score in pairs if a in members]
            images = [collections.image(id_, payloads[id_]) for id_ in members if id_ in payloads]
            groups.append(DuplicateGroup(similarity=round(min(scores), 4), images=images))
    groups.sort(key=lambda group: -group.similarity)
    return Duplicates(threshold=threshold, groups=groups, images=min(total, MAX_IMAGES), total=total)


def _pairs(collections: Collections, name: str, vector_name: str | None) -> models.SearchMatrixPairsResponse:
    try:
        return _RETRY(
            lambda: collections.client.search_matrix_pairs(
                name, visible(collections.namespace), NEIGHBOURS, MAX_IMAGES, using=vector_name
            ),
            "compare the images",
        )
    except NotImplementedError:
        raise ConfigError(
            "Qdrant Edge does not compare images with one another: near-duplicates need a Qdrant server, or an "
            "embedded Qdrant"
        ) from None
