"""Qdrant's own engine in this process, for robots, laptops and tests: the calls of QdrantClient that this
package makes, and some more."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import models
from qdrant_client.client_base import QdrantBase
from qdrant_client.http.models import QueryResponse

from soir_qdrant.errors import ConfigError

try:
    from soir_qdrant.qdrant.edge.collection import SETTINGS, EdgeCollection, Settings
    from soir_qdrant.qdrant.edge.groups import grouped
    from soir_qdrant.qdrant.edge.writing import (
        delete,
        delete_vectors,
        field_index,
        operation_of,
        selected,
        update_vectors,
        upsert,
    )
except ImportError as error:
    raise ConfigError(
        "EdgeClient needs the package qdrant-edge-py: pip install 'soir-qdrant[edge]'"
    ) from error


class EdgeClient(QdrantBase):
    """Takes the place of a QdrantClient, without a server: an HNSW graph, payload indexes and quantization, in
    a folder. May be used by several threads; one process at a time opens the folder.

    Methods have the arguments of QdrantClient; those that say how a cluster answers (`wait`, `timeout`,
    `consistency`, `shard_key` ...) are taken and mean nothing. There are no aliases, snapshots and shards.
    The graph is made while points are written, each time half as many have come again; `optimize` makes it at
    once.

    Args:
        path: folder of the collections; it is made if need be.

    Raises:
        ConfigError: where the package qdrant-edge-py is missing.
        CollectionError: from any method, where another process has the collection open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, EdgeCollection] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[EdgeClient], tuple[Path]]:
        return type(self), (self.path,)

    # -- collections ---------------------------------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        if not name or name in (".", "..") or set(name) & set('<>:"/\\|?*\0'):
            raise ValueError(f'collection name {name!r}: give one without any of < > : " / \\ | ? *')
        return self.path / name

    def _collection(self, name: str) -> EdgeCollection:
        with self._lock:
            if name not in self._open:
                if not self.collection_exists(name):
                    raise ValueError(f"Collection {name} not found")
                self._open[name] = EdgeCollection(self._folder(name))
            return self._open[name]

    def collection_exists(self, collection_name: str, **_: Any) -> bool:
        return (self._folder(collection_name) / SETTINGS).is_file()

    def get_collections(self, **_: Any) -> models.CollectionsResponse:
        names = sorted(file.parent.name for file in self.path.glob(f"*/{SETTINGS}"))
        return models.CollectionsResponse(
            collections=[models.CollectionDescription(name=name) for name in names]
        )

    def get_aliases(self, **_: Any) -> models.CollectionsAliasesResponse:
        return models.CollectionsAliasesResponse(aliases=[])

    def create_collection(
        self,
        collection_name: str,
        vectors_config: models.VectorParams | Mapping[str, models.VectorParams],
        quantization_config: models.QuantizationConfig | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        metadata: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> bool:
        vectors = vectors_config if isinstance(vectors_config, models.VectorParams) else dict(vectors_config)
        settings = Settings(
            vectors=vectors,
            metadata=None if metadata is None else dict(metadata),
            quantization_config=quantization_config,
            hnsw_config=hnsw_config,
        )
        with self._lock:
            if self.collection_exists(collection_name):
                raise ValueError(f"Collection {collection_name} already exists")
            folder = self._folder(collection_name)
            self._open[collection_name] = EdgeCollection.create(folder, settings)
        return True

    def delete_collection(self, collection_name: str, **_: Any) -> bool:
        with self._lock:
            if not self.collection_exists(collection_name):
                return False
            if collection := self._open.pop(collection_name, None):
                collection.close()
            (self._folder(collection_name) / SETTINGS).unlink()
            shutil.rmtree(self._folder(collection_name))
        return True

    def get_collection(self, collection_name: str, **_: Any) -> models.CollectionInfo:
        return self._collection(collection_name).info()

    def create_payload_index(
        self,
        collection_name: str,
        field_name: str,
        field_schema: Any = None,
        field_type: Any = None,
        **_: Any,
    ) -> models.UpdateResult:
        return self._write(collection_name, field_index(field_name, field_schema or field_type))

    def optimize(self, collection_name: str) -> None:
        """Put every point into the graph now: after many were written, before many searches."""
        self._collection(collection_name).optimize()

    def close(self, **_: Any) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    # -- reading -------------------------------------------------------------------------------------------

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[Any],
        with_payload: Any = True,
        with_vectors: Any = False,
        **_: Any,
    ) -> list[models.Record]:
        return self._collection(collection_name).retrieve(ids, with_payload, with_vectors)

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        order_by: Any = None,
        offset: Any = None,
        with_payload: Any = True,
        with_vectors: Any = False,
        **_: Any,
    ) -> tuple[list[models.Record], Any]:
        return self._collection(collection_name).scroll(
            scroll_filter, order_by, with_payload, limit=limit, offset=offset, with_vector=with_vectors
        )

    def count(
        self,
        collection_name: str,
        count_filter: models.Filter | None = None,
        exact: bool = True,
        **_: Any,
    ) -> models.CountResult:
        return models.CountResult(count=self._collection(collection_name).count(count_filter, exact))

    def facet(
        self,
        collection_name: str,
        key: str,
        facet_filter: models.Filter | None = None,
        limit: int = 10,
        exact: bool = False,
        **_: Any,
    ) -> models.FacetResponse:
        hits = self._collection(collection_name).facet(key, facet_filter, limit, exact)
        return models.FacetResponse(hits=hits)

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest], **_: Any
    ) -> list[QueryResponse]:
        answers = self._collection(collection_name).query(requests)
        return [QueryResponse(points=points) for points in answers]

    def query_points(  # type: ignore[override]  # the rest by keyword
        self, collection_name: str, query: Any = None, **options: Any
    ) -> QueryResponse:
        (answer,) = self._collection(collection_name).query([_request(query, options)])
        return QueryResponse(points=answer)

    def query_points_groups(  # type: ignore[override]  # the rest by keyword
        self,
        collection_name: str,
        group_by: str,
        query: Any = None,
        limit: int = 10,
        group_size: int = 3,
        **options: Any,
    ) -> models.GroupsResult:
        collection = self._collection(collection_name)
        return models.GroupsResult(
            groups=grouped(collection.query, _request(query, options), group_by, limit, group_size)
        )

    # -- writing -------------------------------------------------------------------------------------------

    def upsert(
        self,
        collection_name: str,
        points: Any,
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
        **_: Any,
    ) -> models.UpdateResult:
        return self._write(collection_name, upsert(points, update_filter, update_mode))

    def update_vectors(
        self,
        collection_name: str,
        points: Sequence[models.PointVectors],
        update_filter: models.Filter | None = None,
        **_: Any,
    ) -> models.UpdateResult:
        return self._write(collection_name, update_vectors(list(points), update_filter))

    def delete_vectors(
        self, collection_name: str, vectors: Sequence[str], points: Any, **_: Any
    ) -> models.UpdateResult:
        return self._write(collection_name, delete_vectors(points, list(vectors)))

    def delete(self, collection_name: str, points_selector: Any, **_: Any) -> models.UpdateResult:
        return self._write(collection_name, delete(points_selector))

    def set_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Any,
        key: str | None = None,
        **_: Any,
    ) -> models.UpdateResult:
        return self._write(collection_name, selected("set_payload", points, payload, key))

    def overwrite_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Any,
        key: str | None = None,
        **_: Any,
    ) -> models.UpdateResult:
        return self._write(collection_name, selected("overwrite_payload", points, payload, key))

    def delete_payload(
        self, collection_name: str, keys: Sequence[str], points: Any, **_: Any
    ) -> models.UpdateResult:
        return self._write(collection_name, selected("delete_payload", points, list(keys)))

    def clear_payload(self, collection_name: str, points_selector: Any, **_: Any) -> models.UpdateResult:
        return self._write(collection_name, selected("clear_payload", points_selector))

    def batch_update_points(
        self, collection_name: str, update_operations: Sequence[models.UpdateOperation], **_: Any
    ) -> list[models.UpdateResult]:
        return [self._write(collection_name, operation_of(one)) for one in update_operations]

    def _write(self, name: str, operation: Any) -> models.UpdateResult:
        self._collection(name).update(operation)
        return models.UpdateResult(status=models.UpdateStatus.COMPLETED)


def _request(query: Any, options: Mapping[str, Any]) -> models.QueryRequest:
    """The arguments of `query_points` as the request that they stand for."""
    names = {"query_filter": "filter", "search_params": "params", "with_vectors": "with_vector"}
    fields = {names.get(name, name): value for name, value in options.items()}
    known = {name: value for name, value in fields.items() if name in models.QueryRequest.model_fields}
    known.setdefault("with_payload", True)
    return models.QueryRequest(query=query.tolist() if isinstance(query, np.ndarray) else query, **known)
