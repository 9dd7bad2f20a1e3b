"""What is written in images, as it was read, beside what is written on the thing in a query.

A logo, a label or a packet is known by its name in any colour and light. So an image gains by the words that it
shares with the query. How much was measured: docs/concepts/text.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from heapq import nlargest
from typing import Any

from qdrant_client import models

from soir_qdrant.qdrant.filters import read_anywhere, text_words
from soir_qdrant.qdrant.identity import KEY

GAIN = 0.25  # in the score, of an image in which all of the query's words were read
SAME = 0.8  # ratio of difflib, from which two words are one that was misread
MIN_LETTERS = 4  # of a word that may be misread; shorter ones are equal or are not the same
MAX_WORDS = 16  # of a query, the longest: a page of print is no filter
OF_TEXT = models.PayloadSelectorInclude(include=[f"{KEY}.text", f"{KEY}.objects[].text"])  # what `gain` reads
FULL = 5  # letters of a word that says enough; shorter ones count for their share of that


def query_words(written: str) -> dict[str, float]:
    """The words on the thing in a query, and how much each says, 0..1; a letter or digit alone says nothing."""
    words = dict.fromkeys(word for word in text_words(written) if len(word) > 1)
    return {word: min(1.0, len(word) / FULL) for word in nlargest(MAX_WORDS, words, key=len)}


def gain(payload: Mapping[str, Any], written: str) -> float:
    """What an image gains by the text in it, 0 to `GAIN`. written: on the thing in the query."""
    soir = payload.get(KEY)
    if not written or not isinstance(soir, Mapping):
        return 0.0
    texts = [soir.get("text"), *(item.get("text") for item in soir.get("objects") or [])]
    return GAIN * shared(written, " ".join(text for text in texts if text))


@lru_cache(maxsize=1 << 12)  # hits are scored more than once
def shared(written: str, text: str) -> float:
    """How much of the query's words a text has, 0..1; 0 where none could be read in the query."""
    wanted, others = query_words(written), set(text_words(text))
    best = {word: likeness(word, others) for word in wanted}
    return sum(wanted[word] * best[word] ** 2 for word in wanted) / sum(wanted.values()) if wanted else 0.0


def has_some(written: str) -> models.Filter | None:
    """Images in which one of the query's words was read, as it is; None where the query has none."""
    conditions: list[Any] = [condition for word in query_words(written) for condition in read_anywhere(word)]
    return models.Filter(should=conditions) if conditions else None


def likeness(word: str, others: Set[str]) -> float:
    """How like a word the most similar one is, 0..1; 0 where none is the same one, misread."""
    if word in others or len(word) < MIN_LETTERS:
        return float(word in others)
    close = get_close_matches(word, [other for other in others if len(other) >= MIN_LETTERS], 1, SAME)
    return SequenceMatcher(None, close[0], word).ratio() if close else 0.0
