"""Hits ordered by the codes of their objects, which lie in the payload: no image and no vector is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.codes import cosines, decode
from soir_qdrant.qdrant.ordering import ByCodes
from soir_qdrant.qdrant.payload import KEY, best_object, stored_codes
from soir_qdrant.qdrant.written import gain
from soir_qdrant.rerank.base import Need, Page, SearchQuery, Window, candidate_blocks
from soir_qdrant.types import Failure, Hit, Vector

WEIGHT = 0.8  # of the best object in the score; the rest is the image's. See docs/concepts/search.md
CANDIDATES = 300  # of a block
IN_QDRANT = 1000  # where Qdrant orders them, which sends their payloads nowhere
EXPAND = 1  # images whose objects, those of their boxes, join the query
MIN_COSINE = 0.4  # of an object that joins the query; others look too little like it to be sure


class CodeReranker:
    """`rerank="codes"`: each block of candidates by the image's score and its best object's.

    The score of an image, -1..1.25, is the weighted mean of the dot product of its vector with the query's and
    of the largest cosine of its objects' codes with the query's first numbers, of the look at the query that is most
    like the object (`codes.cosines`), less what it lacks in pixels (`detail.missing_detail`). The box is that object's,
    or of one that is about as like it and is the likelier thing (`payload.likeliest`). An image without codes keeps
    its score. Those in which words of the query's thing were read gain by that, up to 0.25 (`written.gain`).

    Then the query is expanded, and the block is scored once more: the object of the first image's box joins
    the query, by the square of its cosine, where that is at least MIN_COSINE (alpha query expansion:
    Radenovic et al., Fine-tuning CNN image retrieval with no human annotation, 2018, section 4.3).

    Args:
        candidates: of a block; None is CANDIDATES, and IN_QDRANT where Qdrant orders them.
        weight: of the best object in the score, 0..1.
        expand: images whose best objects may join the query; 0 scores once.

    Raises:
        ConfigError: for a weight or a number out of range.
    """

    name = "codes"
    needs: frozenset[Need] = frozenset({"payload", "written"})

    def __init__(
        self, candidates: int | None = None, *, weight: float = WEIGHT, expand: int = EXPAND
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight {weight}: give the best object's share of the score, 0 to 1")
        if expand < 0:
            raise ConfigError(f"expand {expand}: give how many images may join the query, 0 for none")
        self.candidates = candidates or CANDIDATES
        self._in_qdrant = candidates or IN_QDRANT
        self.weight = weight
        self.expand = expand

    def window(self, page: Page) -> Window:
        """See `candidate_blocks`; of a collection that has the codes as vectors the page itself, since Qdrant orders
        before it cuts.

        It orders the first block of candidates as `expand=0` does: the query is not expanded. A page beyond that is
        cut from so many more blocks, ordered together, and pages there fit together where one `prefetch` covers
        them.
        """
        if not page.code_vectors or page.group_size is not None:
            return candidate_blocks(self.candidates, page)
        return Window(page.limit, page.offset, by_codes=self.in_qdrant(page, page.offset + page.limit))

    def in_qdrant(self, page: Page, hits: int) -> ByCodes:
        """What Qdrant orders for the first so many hits: blocks of candidates, together."""
        block = max(page.prefetch or self._in_qdrant, page.limit)
        return ByCodes(-(-hits // block) * block, self.weight)

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """The same hits, best first, with the box of their best object. All can be scored."""
        del failed
        coded = [(hit, stored_codes(hit.payload)) for hit in hits]
        ranked = self._ranked(coded, query, query.rows)
        expanded = expanded_query(query.rows, ranked[: self.expand])
        return ranked if expanded is None else self._ranked(coded, query, expanded)

    def _ranked(
        self, coded: Sequence[tuple[Hit, Vector | None]], query: SearchQuery, looks: Vector
    ) -> list[Hit]:
        scored = (self._scored(hit, codes, query, looks) for hit, codes in coded)
        return sorted(scored, key=lambda hit: -hit.score)

    def _scored(self, hit: Hit, codes: Vector | None, query: SearchQuery, looks: Vector) -> Hit:
        words = gain(hit.payload, query.written)
        match = best_object(hit.payload, looks, pixels=query.pixels, aspect=query.aspect, codes=codes)
        if match is None:
            return replace(hit, score=hit.score + words)
        score = hit.score
        if match.score is not None:
            score = (1 - self.weight) * score + self.weight * match.score
        return replace(hit, score=score + words, box=match.box, object=match.index)


def expanded_query(query: Vector, hits: Sequence[Hit]) -> Vector | None:
    """The looks of a query with the codes of the hits' best objects added to each; None where none joins.

    query: float32 [L, D]. hits: with `object`, best first. Returns float32 [L, D], of any length.
    """
    expanded: Vector | None = None
    for hit in hits:
        item = {} if hit.object is None else hit.payload[KEY]["objects"][hit.object]
        if "code" not in item:
            continue
        code = decode(item["code"])
        code /= max(float(np.linalg.norm(code)), 1e-6)
        (cosine,) = cosines(code[None], query)
        if cosine >= MIN_COSINE:
            lengths = np.linalg.norm(query[:, : len(code)], axis=1, keepdims=True)
            expanded = query / np.maximum(lengths, 1e-6) if expanded is None else expanded
            expanded[:, : len(code)] += cosine**2 * code
    return expanded
