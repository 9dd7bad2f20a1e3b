"""From what a user searches with to what rerankers and Qdrant read: one pipeline, checked against the
collection, one query after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from soir_qdrant.assembly import make_pipeline, profile_of
from soir_qdrant.errors import CollectionError, ConfigError
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.payload import KEY, short_hash
from soir_qdrant.qdrant.schema import as_json
from soir_qdrant.query import Query, as_vector, checked, open_query
from soir_qdrant.rerank.base import SearchQuery, check_query
from soir_qdrant.search.options import SearchOptions
from soir_qdrant.search.requests import Plan, opened
from soir_qdrant.timing import stage
from soir_qdrant.types import Box, Composed, LoadedImage, Text, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline

T = TypeVar("T")
Boxed: TypeAlias = tuple[Query, Box | None]  # what a user searches with, and where the thing is in it

NEGATIVE_WEIGHT = 0.1  # of the negatives' mean that is taken off the query; see docs/concepts/search.md
BANK_WEIGHT = 0.2  # the same of the query bank's mean


class QueryEncoder:
    """Queries of one collection. May be shared by threads: `lock` is held while a model runs.

    Args:
        store: of the collection.
        pipeline: encodes; None makes that of the profile on first use.
        profile: see there.
        max_pixels: of the largest image that is decoded.
        bank: float [n, D], vectors of other queries; see `SoirSearcher`.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Pipeline | None,
        profile: str | None,
        max_pixels: int,
        bank: NDArray[np.floating] | None,
    ) -> None:
        self.store, self.profile, self.max_pixels = store, profile, max_pixels
        self.bank = None if bank is None else _bank(bank)
        self.lock = RLock()
        self._pipeline, self._own = pipeline, pipeline is not None  # the caller's own, or of the profile
        self._fingerprint = ""  # short hash of the pipeline's, once the collection has the same

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made on first use, such as the pipeline of a profile."""
        state = {**self.__dict__, "_fingerprint": ""}
        del state["lock"]
        return state if self._own else {**state, "_pipeline": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=RLock())

    @property
    def pipeline(self) -> Pipeline:
        """What encodes; made on first use."""
        with self.lock:
            if self._pipeline is None:
                self._pipeline = make_pipeline(self.profile or profile_of(self.store.info))
            return self._pipeline

    def on_current(self, options: SearchOptions, search: Callable[[SearchOptions], T]) -> T:
        """What a search in the opened collection returns. Where it fails, and the name has since become that of a
        collection of another form (an alias was switched, or it was made anew), it is done once more in that.

        Args:
            options: of the search.
            search: what is done, with the options that are left when the collection was looked into.
        """
        options, form = opened(self.store, options), self.store.form
        try:
            return search(options)
        except (CollectionError, ConfigError):
            options = opened(self.store, options, again=True)
            if self.store.form == form:
                self.store.info = None  # which may be another one when the next query comes
                raise
            self._fingerprint = ""
            return search(options)

    def encode(self, pair: Boxed, plan: Plan, *others: Sequence[Query]) -> SearchQuery:
        """A query as the reranker reads it: without its image, where that is not needed. others: examples and
        negatives. Raises ConfigError where the reranker cannot read it."""
        query = self.query(*pair, *others, patches=plan.patches, written=plan.written)
        check_query(plan.reranker, query)
        return query if plan.query_image else replace(query, image=None)

    def query(
        self,
        query: Query,
        box: Box | None,
        examples: Sequence[Query] = (),
        negatives: Sequence[Query] = (),
        *,
        patches: bool = False,
        written: bool = False,
    ) -> SearchQuery:
        """One query; see `SoirSearcher.search`. The image, box and text are those of `query` itself, and so are its
        patches and what is written on it, which are read where `patches` and `written` say so and the pipeline does
        such a thing."""
        main = self._single(query, box, patches, written)
        positive = [self._single(example, None).vector for example in examples]
        negative = [self._single(example, None).vector for example in negatives]
        if not positive and not negative and self.bank is None:
            return main
        vector: Vector = normalize(np.mean([main.vector, *positive], axis=0))
        if negative:
            vector = vector - np.float32(NEGATIVE_WEIGHT) * np.mean(negative, axis=0)
        if self.bank is not None:
            if len(self.bank) != len(vector):
                raise ConfigError(
                    f"bank: {len(self.bank)} numbers a row, and vectors here have {len(vector)}"
                )
            vector = vector - np.float32(BANK_WEIGHT) * self.bank
        return replace(main, vector=checked(vector, self.store.dim, self.store.collection), looks=None)

    def _single(
        self, query: Query, box: Box | None, patches: bool = False, written: bool = False
    ) -> SearchQuery:
        vector = as_vector(query)
        if box is not None and (vector is not None or isinstance(query, Text)):
            kind = "a vector" if vector is not None else "text"
            raise ConfigError(f"box is for a query image; this query is {kind}")
        if vector is not None:
            return SearchQuery(checked(vector, self.store.dim, self.store.collection))
        self._check_collection()
        if isinstance(query, Text):
            return SearchQuery(self._text(query), text=query.words)
        if isinstance(query, Composed):
            return self._composed(query, box, patches)
        with stage("decode"):
            image, box = open_query(query, box, self.max_pixels)
        with self.lock, stage("encode"):
            encoded = self._encoded(image, box, patches)
            return replace(encoded, written=self.pipeline.query_text(image.rgb, box)) if written else encoded

    def _encoded(self, image: LoadedImage, box: Box | None, patches: bool) -> SearchQuery:
        if not self.pipeline.has_patches:
            return SearchQuery(self.pipeline.query(image.rgb, box=box, mask=image.alpha), image, box)
        look = self.pipeline.query_look(image.rgb, box=box, mask=image.alpha, patches=patches)
        whiten = self.pipeline.whiten
        looks = None if look.looks is None else whiten(look.looks)
        return SearchQuery(
            whiten(look.row),
            image,
            box,
            patches=look.patches,
            looks=looks,
            pixels=look.pixels,
            aspect=look.aspect,
        )

    def _text(self, text: Text) -> Vector:
        """The vector of words, or the mean over their prompts."""
        with self.lock, stage("encode"):
            if not text.prompts:
                return self.pipeline.text(text.words)
            for prompt in text.prompts:
                if "{}" not in prompt:
                    raise ConfigError(
                        f'prompt {prompt!r}: say with {{}} where the words go, as in "a photo of {{}}"'
                    )
            rows = [self.pipeline.text(prompt.replace("{}", text.words)) for prompt in text.prompts]
        return normalize(np.mean(rows, axis=0))

    def _composed(self, query: Composed, box: Box | None, patches: bool) -> SearchQuery:
        """An image's vector, moved by words."""
        main, words = self._single(query.image, box, patches), self._text(Text(query.words))
        weight = np.float32(query.weight)
        if query.instead_of is not None:
            vector = main.vector + weight * (words - self._text(Text(query.instead_of)))
        else:
            vector = (1 - weight) * main.vector + weight * words
        return replace(main, vector=checked(vector, self.store.dim, self.store.collection), looks=None)

    def check_answer(self, points: Sequence[models.ScoredPoint]) -> None:
        """Raises CollectionError where the name has since become that of a collection which another pipeline
        filled: an alias that was switched."""
        stored = ((points[0].payload or {}).get(KEY) or {}).get("encoder") if points else None
        if self._fingerprint and stored and stored != self._fingerprint:
            self._fingerprint, self.store.info = "", None
            self._check_collection()

    def _check_collection(self) -> None:
        """Once: whether the collection was filled by a pipeline like this."""
        with self.lock:
            if self._fingerprint:
                return
            fingerprint = as_json(self.pipeline.fingerprint)
            info = self.store.info or self.store.look()
            self.store.info = None  # refused, it is looked at again
            self.store.accept(info, self.pipeline.dim, fingerprint)
            self._fingerprint = short_hash(fingerprint)


def _bank(rows: NDArray[np.floating]) -> Vector:
    """The mean of a query bank, float32 [D]. Raises ConfigError for what is none."""
    bank = np.asarray(rows, np.float32)
    if bank.ndim != 2 or not len(bank):
        raise ConfigError(f"bank has shape {bank.shape}: give one row a query, [n, D]")
    mean: Vector = bank.mean(0)
    return mean
