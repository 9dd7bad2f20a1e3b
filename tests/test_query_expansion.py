"""The default search looks once more, with what it is sure of added to the query."""

import numpy as np
import pytest

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.codes import MARGIN, encode
from soir_qdrant.qdrant.payload import KEY
from soir_qdrant.rerank import CodeReranker
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.types import Hit

FRONT, SIDE, OTHER = np.eye(3, dtype=np.float32)


def image(name, *objects, score=0.0):
    """A hit as it comes from Qdrant, with an object for every vector."""
    stored = [{"box": [i, 0, i + 1, 1], "code": encode(np.asarray(v), 3)} for i, v in enumerate(objects)]
    return Hit(name, score, None, None, {KEY: {"objects": stored}})


def order(reranker, *hits, query=FRONT):
    return [hit.id for hit in reranker.rerank(SearchQuery(query), hits)]


TURNED = image("the thing, half turned", 0.8 * FRONT + 0.6 * SIDE)
AWAY = image("the thing from the side", OTHER, SIDE)
ANOTHER = image("another thing, a little like it", 0.2 * FRONT + 0.98 * OTHER)


def test_an_image_that_surely_holds_the_thing_shows_what_else_it_looks_like():
    assert order(CodeReranker(), ANOTHER, AWAY, TURNED) == [TURNED.id, AWAY.id, ANOTHER.id]
    assert order(CodeReranker(expand=0), ANOTHER, AWAY, TURNED) == [TURNED.id, ANOTHER.id, AWAY.id]
    hits = CodeReranker().rerank(SearchQuery(FRONT), [AWAY, TURNED])
    assert hits[1].object == 1  # the box is that of the object that looks like the expanded query


def test_nothing_joins_the_query_unless_it_looks_like_it():
    doubtful = [image(f"perhaps {i}", 0.35 * FRONT + 0.937 * SIDE) for i in range(3)]
    assert order(CodeReranker(expand=3), AWAY, ANOTHER, *doubtful)[3:] == [ANOTHER.id, AWAY.id]


def test_a_look_that_is_turned_counts_where_it_is_more_like_the_object():
    """And never against an object that looks like the query as it is."""
    looks = np.stack([FRONT, SIDE])
    query = SearchQuery((FRONT + SIDE) / 2**0.5, looks=looks)
    upright, turned, neither = image("upright", FRONT), image("turned", OTHER, SIDE), image("neither", OTHER)
    hits = CodeReranker(weight=1, expand=0).rerank(query, [neither, turned, upright])
    assert [hit.id for hit in hits] == ["upright", "turned", "neither"]
    assert [hit.score for hit in hits] == pytest.approx([1, 1 - MARGIN, 0], abs=1e-6)
    assert hits[1].object == 1
    both = image("as it is, and turned", SIDE, FRONT)
    (hit,) = CodeReranker().rerank(query, [both])
    assert hit.object == 1
    _, hit = CodeReranker(weight=1).rerank(query, [upright, image("between", FRONT + SIDE)])
    assert hit.score == pytest.approx(1 - MARGIN, abs=1e-6)  # what joins the query joins each look


def test_the_score_of_an_image_without_codes_stays():
    bare = Hit("bare", 0.7, None, None, {KEY: {"objects": [{"box": [0, 0, 1, 1]}]}})
    (hit,) = CodeReranker().rerank(SearchQuery(FRONT), [bare])
    assert hit.score == 0.7
    short = image("of an older ingest, with shorter codes", FRONT[:2])
    assert order(CodeReranker(), TURNED, short)[0] == short.id  # codes of two lengths are never added up


def test_a_number_below_zero_is_refused():
    with pytest.raises(ConfigError, match="expand -1"):
        CodeReranker(expand=-1)
