"""The rows of `soir evaluate` that are searches through SoirSearcher, asked as a user asks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.lab.evaluate.bench import BenchQuery
from soir_qdrant.rerank.base import Reranker
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.image import ImageReranker
from soir_qdrant.rerank.q_perturbation.image_reranker import QPerturbation
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Box, Hit, Vector

RERANKED = {
    "search": "stored",
    "rerank-codes": "codes",
    "rerank-objects": "objects",
    "rerank-image": "image",
    "q-perturbation": "q-perturbation",
}
SEARCHED = ("default", *RERANKED)
TOP = 10  # hits whose boxes are looked at


@dataclass(slots=True)
class SearchResults:
    """Of each query: ranks, int [n], the whole gallery; boxes of the first TOP hits, by image. ms: added to a
    plain search by the reranking, per candidate."""

    ranks: list[NDArray[np.int64]] = field(default_factory=list)
    boxes: list[dict[int, Box | None]] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


@contextmanager
def asking(searcher: SoirSearcher, rows: Sequence[str], total: int) -> Iterator[Asking]:
    """What asks for the chosen rows. Candidates that are opened again are kept on disk meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        yield Asking(searcher, [name for name in SEARCHED if name in rows], total, Path(folder))


class Asking:
    """found: by row. total: images of the gallery, whose ids are 0..total-1. cache: a folder.

    Boxes are told by the codes, as where no object vectors are kept, but those of "rerank-objects".
    """

    def __init__(self, searcher: SoirSearcher, rows: list[str], total: int, cache: Path) -> None:
        self.searcher = searcher
        self.total = total
        self.searches = {name: SearchResults() for name in rows}
        self.rerankers = {
            name: _reranker(searcher, RERANKED[name], cache) for name in rows if name in RERANKED
        }

    def ask(self, query: BenchQuery, vector: Vector) -> None:
        """vector: the query's, float32 [D]."""
        if not self.searches:
            return
        self.searcher.exact_boxes = False
        plain = self.searcher.search(vector, limit=self.total, rerank=None)
        for name, result in self.searches.items():
            hits = plain
            if name in self.rerankers:
                hits = self._reranked(query, vector, self.rerankers[name], result)
            first = [int(hit.id) for hit in hits]
            rest = [int(hit.id) for hit in plain if int(hit.id) not in set(first)]
            result.ranks.append(np.array(first + rest))
            result.boxes.append({int(hit.id): hit.box for hit in hits[:TOP]})

    def _reranked(
        self, query: BenchQuery, vector: Vector, reranker: Reranker, result: SearchResults
    ) -> list[Hit]:
        """The candidates that this kind of reranking takes by itself, in its order."""
        first = min(reranker.candidates, self.total)
        request: dict[str, Any] = {"query": vector, "limit": first, "prefetch": first}
        if {"query image", "patches", "payload"} & reranker.needs:  # what it looks like turned comes with it
            request |= {"query": str(query.file), "box": query.box}
        self.searcher.exact_boxes = "box" in reranker.needs
        start = time.perf_counter()
        self.searcher.search(**request, rerank=None)
        middle = time.perf_counter()
        hits = self.searcher.search(**request, rerank=reranker)
        spent = time.perf_counter() - middle - (middle - start)
        result.ms.append(1000 * max(spent, 0.0) / max(len(hits), 1))
        return hits


def _reranker(searcher: SoirSearcher, name: str, cache: Path) -> Reranker:
    """That of the name, but that candidates which are opened again are kept in `cache`."""
    opening = {kind.name: kind for kind in (ImageReranker, QPerturbation)}
    if name not in opening:
        return searcher.reranker(name)
    return opening[name](searcher.pipeline, cache=TokenCache(cache, limit=10**11))
