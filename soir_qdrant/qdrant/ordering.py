"""Candidates ordered in Qdrant by the image's vector and the codes of its objects, in one request."""

from __future__ import annotations

from dataclasses import dataclass

from qdrant_client import models

from soir_qdrant.qdrant.schema import CODES

# In the form in memory, int8 or binary: the codes on disk would be read for every candidate.
IN_MEMORY = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=False))


@dataclass(frozen=True, slots=True)
class ByCodes:
    """How candidates are ordered.

    Attributes:
        candidates: taken by the image's vector.
        weight: of the most similar code in the score, 0..1; the rest is the image's.
    """

    candidates: int
    weight: float


def ordered_by_codes(request: models.QueryRequest, by: ByCodes, numbers: int) -> None:
    """Turn a search by the image's vector into one whose score is the weighted mean of the image's and of its
    best object's.

    The candidates of the first prefetch are those of the second, where their codes are compared with the
    query's first `numbers` (MaxSim); the formula adds the two scores up.
    """
    vector = request.query
    assert isinstance(vector, list)
    images = models.Prefetch(
        query=vector,
        using=request.using,
        filter=request.filter,
        params=request.params,
        score_threshold=request.score_threshold,
        limit=by.candidates,
    )
    codes = models.Prefetch(
        query=[vector[:numbers]], using=CODES, params=IN_MEMORY, prefetch=[images], limit=by.candidates
    )
    request.prefetch = [images, codes]
    shares = [(1 - by.weight, "$score[0]"), (by.weight, "$score[1]")]
    request.query = models.FormulaQuery(
        formula=models.SumExpression(sum=[models.MultExpression(mult=[w, score]) for w, score in shares]),
        defaults={score: 0.0 for _, score in shares},
    )
    request.using = request.params = request.filter = request.score_threshold = None
