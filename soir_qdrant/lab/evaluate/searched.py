"""The rows of `soir evaluate` that are searches through SoirSearcher, asked as a user asks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.lab.evaluate.bench import BenchQuery
from soir_qdrant.search.searcher import FIRST, SoirSearcher
from soir_qdrant.types import Box, Hit, Vector

RERANKED = {
    "rerank-codes": "codes",
    "rerank-objects": "objects",
    "rerank-patches": "patches",
    "q-perturbation": "q-perturbation",
}
SEARCHED = ("default", *RERANKED)
TOP = 10  # hits whose boxes are looked at


@dataclass(slots=True)
class Found:
    """Of each query: ranks, int [n], the whole gallery; boxes of the first TOP hits, by image. ms: added to a
    plain search by the reranking, per candidate."""

    ranks: list[NDArray[np.int64]] = field(default_factory=list)
    boxes: list[dict[int, Box | None]] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


@contextmanager
def asking(searcher: SoirSearcher, rows: Sequence[str], total: int) -> Iterator[Asking]:
    """What asks for the chosen rows. Candidates that are opened again are kept on disk meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        if "q-perturbation" in rows:
            from soir_qdrant.rerank.cache import TokenCache
            from soir_qdrant.rerank.candidates import QPerturbation

            searcher.perturbation = QPerturbation(searcher.pipeline, cache=TokenCache(folder, limit=10**11))
        yield Asking(searcher, [name for name in SEARCHED if name in rows], total)


class Asking:
    """found: by row. total: images of the gallery, whose ids are 0..total-1.

    Boxes are told by the codes, as where no object vectors are kept, but those of "rerank-objects".
    """

    def __init__(self, searcher: SoirSearcher, rows: list[str], total: int) -> None:
        self.searcher = searcher
        self.total = total
        self.found = {name: Found() for name in rows}

    def ask(self, query: BenchQuery, vector: Vector) -> None:
        """vector: the query's, float32 [D]."""
        if not self.found:
            return
        self.searcher.exact_boxes = False
        plain = self.searcher.search(vector, limit=self.total, rerank=None)
        for name, found in self.found.items():
            hits = plain
            if name in RERANKED:
                hits = self._reranked(query, vector, RERANKED[name], found)
            first = [int(hit.id) for hit in hits]
            rest = [int(hit.id) for hit in plain if int(hit.id) not in set(first)]
            found.ranks.append(np.array(first + rest))
            found.boxes.append({int(hit.id): hit.box for hit in hits[:TOP]})

    def _reranked(self, query: BenchQuery, vector: Vector, rerank: Any, found: Found) -> list[Hit]:
        """The candidates that this kind of reranking takes by itself, in its order."""
        first = min(FIRST[rerank], self.total)
        asked: dict[str, Any] = {"query": vector, "limit": first, "prefetch": first}
        if rerank in ("patches", "q-perturbation"):
            asked |= {"query": str(query.file), "box": query.box}
        self.searcher.exact_boxes = rerank == "objects"
        start = time.perf_counter()
        self.searcher.search(**asked, rerank=None)
        middle = time.perf_counter()
        hits = self.searcher.search(**asked, rerank=rerank)
        spent = time.perf_counter() - middle - (middle - start)
        found.ms.append(1000 * max(spent, 0.0) / max(len(hits), 1))
        return hits
