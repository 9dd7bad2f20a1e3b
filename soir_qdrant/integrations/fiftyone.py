"""A similarity backend of FiftyOne: samples sorted by what they hold, by a collection that SoirIngestor filled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.qdrant.transport import connect
from soir_qdrant.query import Query
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Box, Hit, IngestReport

try:
    import fiftyone as fo
    from fiftyone.brain.similarity import Similarity, SimilarityConfig, SimilarityIndex
except ImportError as error:
    raise ConfigError(f"{error}: pip install fiftyone") from error

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from soir_qdrant.pipeline import Pipeline

LIMIT = 25  # samples of a search that does not say how many


class SoirSimilarityConfig(SimilarityConfig):  # type: ignore[misc]
    """Settings, as keywords of `fob.compute_similarity(dataset, backend=SoirSimilarityConfig, embeddings=False, ...)`.

    Args:
        collection: of Qdrant.
        profile: what encodes: a name or a file of settings.
        url, path, api_key: where Qdrant is. FiftyOne's database does not keep them: `load_brain_results(key, url=...)`
            takes them again.
        options: FiftyOne's own.
    """

    def __init__(
        self,
        collection: str = "images",
        profile: str = "embedded",
        url: str | None = None,
        path: str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.collection, self.profile = collection, profile
        self._place = {"url": url, "path": path, "api_key": api_key}

    @property
    def method(self) -> str:
        """FiftyOne's name of the backend."""
        return "soir"

    @property
    def max_k(self) -> None:
        """No limit."""
        return

    @property
    def supports_least_similarity(self) -> bool:
        """Qdrant finds what is near."""
        return False

    @property
    def supported_aggregations(self) -> tuple[str, ...]:
        """Several queries are averaged."""
        return ("mean",)

    def load_credentials(self, **place: str | None) -> None:
        """url, path, api_key: where Qdrant is."""
        self._place |= {name: value for name, value in place.items() if value is not None}

    def connected(self) -> QdrantClient:
        """A client, where `url` or `path` say. Raises ConfigError where neither does."""
        where = {name: value for name, value in self._place.items() if value is not None}
        if not where:
            raise ConfigError(
                "say where Qdrant is: url=... or path=..., to compute_similarity or load_brain_results"
            )
        return connect(**where)


class SoirSimilarity(Similarity):  # type: ignore[misc]
    """What FiftyOne makes of SoirSimilarityConfig."""

    def initialize(self, samples: Any, brain_key: str | None) -> SoirSimilarityIndex:
        """See FiftyOne."""
        return SoirSimilarityIndex(samples, self.config, brain_key, backend=self)


class SoirSimilarityIndex(SimilarityIndex):  # type: ignore[misc]
    """The images of a collection as an index of the samples of the same files. Samples whose files are not in the
    collection are not found; `add_samples` stores them.

    Args:
        samples, config, brain_key, backend: FiftyOne's.
    """

    def __init__(self, samples: Any, config: Any, brain_key: str | None, backend: Any = None) -> None:
        super().__init__(samples, config, brain_key, backend=backend)
        self._client: QdrantClient | None = None
        self._pipeline: Pipeline | None = None
        self._searcher: SoirSearcher | None = None

    def use(self, client: QdrantClient, pipeline: Pipeline | None = None) -> SoirSimilarityIndex:
        """Take this client, and this pipeline, instead of those that the settings name."""
        self._client, self._pipeline, self._searcher = client, pipeline, None
        return self

    @property
    def client(self) -> QdrantClient:
        """Of Qdrant."""
        if self._client is None:
            self._client = self.config.connected()
        return self._client

    @property
    def searcher(self) -> SoirSearcher:
        """What searches the collection."""
        if self._searcher is None:
            name, profile = self.config.collection, self.config.profile
            self._searcher = SoirSearcher(
                self.client, name, pipeline=self._pipeline, profile=None if self._pipeline else profile
            )
        return self._searcher

    @property
    def total_index_size(self) -> int:
        """Images of the collection."""
        name = self.config.collection
        return self.client.count(name).count if self.client.collection_exists(name) else 0

    def add_samples(self, samples: Any = None, **options: Any) -> IngestReport:
        """Store the images of samples; those that are stored already are left as they are.

        Args:
            samples: a dataset or view; None: the current view of the index.
            options: of `SoirIngestor.add`.
        """
        files = (self.view if samples is None else samples).values("filepath")
        name, profile = self.config.collection, self.config.profile
        ingestor = SoirIngestor(
            self.client, name, pipeline=self._pipeline, profile=None if self._pipeline else profile
        )
        return ingestor.add(files, **options)

    def search(
        self,
        query: Query | None = None,
        *,
        box: Box | None = None,
        field: str | None = "soir",
        limit: int = LIMIT,
        **options: Any,
    ) -> Any:
        """The samples whose images hold one thing, best first, as a view.

        Args:
            query, box: an image, and the thing in it: see `SoirSearcher.search`.
            field: of the samples found, where the box that matched is written as a Detection whose `confidence` is the
                score; None writes nothing.
            limit: samples.
            options: of `SoirSearcher.search`, such as `text=` or `rerank=`.
        """
        filter = self._within(options.pop("filter", None))
        hits = self.searcher.search(query, box=box, limit=limit, filter=filter, **options)
        by_sample = self._samples_of(hits)
        if field is not None:
            boxes = {id: _detection(hit) for id, hit in by_sample.items() if hit.box is not None}
            if not self._samples.has_sample_field(field):
                self._samples.add_sample_field(
                    field, fo.EmbeddedDocumentField, embedded_doc_type=fo.Detection
                )
            self._samples.set_values(field, boxes, key_field="id")
        return self.view.select(list(by_sample), ordered=True)

    def get_embeddings(
        self,
        sample_ids: Iterable[str] | None = None,
        label_ids: Iterable[str] | None = None,
        allow_missing: bool = True,
        warn_missing: bool = False,  # noqa: ARG002 - FiftyOne's
    ) -> tuple[NDArray[np.float32], NDArray[Any], None]:
        """The vectors of samples' images, float32 [n, D], and the ids of those that have one. See FiftyOne."""
        if label_ids is not None:
            raise ConfigError("the index is of whole images: it has no vectors of labels")
        wanted = self._files(sample_ids)
        by_file = {
            uri: vector
            for record in self._records(list(wanted.values()))
            if (vector := self.searcher.store.dense(record.vector)) is not None
            for uri in (record.payload or {})["soir"]["uris"]
        }
        stored = {id: by_file[file] for id, file in wanted.items() if file in by_file}
        if len(stored) < len(wanted) and not allow_missing:
            raise ConfigError(f"{len(wanted) - len(stored)} samples are not in the collection: add_samples()")
        return np.array(list(stored.values()), np.float32), np.array(list(stored)), None

    def add_to_index(self, *_: Any, **__: Any) -> None:
        """Not from vectors: they are made of images here. Raises ConfigError."""
        raise ConfigError(
            "soir makes the vectors itself: compute_similarity(..., embeddings=False), then add_samples()"
        )

    def remove_from_index(
        self, sample_ids: Iterable[str] | None = None, label_ids: Iterable[str] | None = None, **_: Any
    ) -> None:
        """Remove the images of samples from the collection. Raises ConfigError without samples, and for labels."""
        if label_ids is not None or sample_ids is None:
            raise ConfigError(
                "the index is of whole images: say which samples' are to go, remove_from_index(sample_ids=[...])"
            )
        ingestor = SoirIngestor(self.client, self.config.collection, pipeline=self._pipeline)
        ingestor.remove(uris=list(self._files(sample_ids).values()))

    def cleanup(self) -> None:
        """Nothing: the collection is not FiftyOne's to delete."""

    def _kneighbors(
        self,
        query: Any = None,
        k: int | None = None,
        reverse: bool = False,
        aggregation: str | None = None,
        return_dists: bool = False,
    ) -> Any:
        """For FiftyOne's `sort_by_similarity`: query is ids of samples, or vectors."""
        if query is None or reverse or aggregation not in (None, "mean"):
            raise ConfigError("soir finds what is nearest to an image, some vectors or samples, their mean")
        ids = [query] if isinstance(query, str) else query
        numbers = np.asarray(ids)
        vectors = numbers if np.issubdtype(numbers.dtype, np.number) else self.get_embeddings(ids)[0]
        if not len(vectors):
            raise ConfigError("none of these samples is in the collection: add_samples()")
        vector = np.atleast_2d(vectors).mean(0).astype(np.float32)
        hits = self.searcher.search(vector, limit=k or LIMIT, filter=self._within(None))
        by_sample = self._samples_of(hits)
        scores = ([hit.score for hit in by_sample.values()],) if return_dists else ()
        return (list(by_sample), None, *scores)

    def _files(self, sample_ids: Iterable[str] | None = None) -> dict[str, str]:
        """Id -> file of samples; None: of the current view."""
        samples = self.view if sample_ids is None else self._samples.select(list(sample_ids))
        return dict(zip(*samples.values(["id", "filepath"]), strict=True))

    def _within(self, filter: models.Filter | None) -> models.Filter | None:
        """A filter for the files of the current view, where it is not the whole dataset."""
        if not self.has_view:
            return filter
        files = models.MatchAny(any=list(self._files().values()))
        return models.Filter(
            must=[models.FieldCondition(key="soir.uris", match=files), *([filter] if filter else [])]
        )

    def _records(self, files: list[str]) -> list[Any]:
        condition = models.FieldCondition(key="soir.uris", match=models.MatchAny(any=files))
        records, _ = self.client.scroll(
            self.config.collection,
            scroll_filter=models.Filter(must=[condition]),
            limit=max(1, len(files)),
            with_payload=["soir.uris"],
            with_vectors=True,
        )
        return records

    def _samples_of(self, hits: list[Hit]) -> dict[str, Hit]:
        """Id of sample -> hit, in the order of the hits."""
        ids: dict[str, list[str]] = {}
        for id, file in self._files().items():
            ids.setdefault(file, []).append(id)
        return {
            id: hit
            for hit in hits
            for uri in hit.payload["soir"].get("uris") or [hit.uri]
            for id in ids.get(uri, [])
        }

    @classmethod
    def _from_dict(cls, d: Any, samples: Any, config: Any, brain_key: str | None) -> SoirSimilarityIndex:  # noqa: ARG003
        return cls(samples, config, brain_key)


def _detection(hit: Hit) -> Any:
    """The box that matched, in shares of the image, as FiftyOne has it."""
    soir, (x0, y0, x1, y1) = hit.payload["soir"], hit.box or (0, 0, 0, 0)
    width, height = soir["width"], soir["height"]
    box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
    return fo.Detection(label="found", bounding_box=box, confidence=float(hit.score))
