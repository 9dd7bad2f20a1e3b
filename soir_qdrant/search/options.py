"""How to search, in one place: SearchOptions, which goes whole from the searcher to its requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

from qdrant_client import models

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.arguments import check_minimum
from soir_qdrant.rerank.base import Page, Reranker


class SearchKeywords(TypedDict, total=False):
    """The fields of SearchOptions as keywords of `search`, for type checkers; a test compares the two."""

    limit: int
    offset: int
    filter: models.Filter | None
    rerank: str | Reranker | None
    prefetch: int | None
    score_threshold: float | None
    with_vectors: bool
    with_masks: bool
    search_params: models.SearchParams | None
    consistency: models.ReadConsistency | None
    shard_key: models.ShardKeySelector | None
    timeout: int | None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search; each is a keyword of `search`, `search_many` and `search_groups` too.

    Attributes:
        limit: hits (or groups).
        offset: hits before the first one returned; not for groups.
        filter: Qdrant's; `soir_qdrant.filters` has some conditions ready.
        rerank: what orders the candidates anew; docs/concepts/search.md compares them.
            "stored", the default: by codes, and the first fifty by patches too, where they are stored and the query is
            an image.
            "codes": each three hundred (or as many as the limit, if more) by the image's score (0.2) and its best
            object's (0.8), as the codes in the payload tell it; images without codes keep their score. Both add what
            is written on the thing, where text is read (docs/concepts/text.md).
            None: by the image's score, the dot product of the vectors, alone.
            "objects": the first 100 (or ten times limit and offset), by their most similar object, in the
            same request; the collection must keep the vectors of objects.
            "patches": the first 100 (or the limit), by codes and by their objects' patches, stored or,
            seconds an image, computed again.
            "image": the first 50 (or the limit), by opening their images again and describing their objects anew;
            "q-perturbation": the same, and read by the query, which gained nothing over "image"
            (docs/concepts/q-perturbation.md); "text-q-perturbation": with words, by an encoder that reads
            them; "blip2", "coca": with words, by BLIP-2 or CoCa. A hit whose image cannot be opened keeps its place
            and score.
            The name of a registered reranker (`register_reranker`), or a Reranker.
        prefetch: candidates to order anew; None leaves the number to the reranker. Pages of "objects",
            "patches", "image" and "q-perturbation" fit together where one `prefetch` covers them.
        score_threshold: leaves out images with a smaller score: the image's own, but with "objects".
        with_vectors: put the image's vector into each hit.
        with_masks: put the matched object's pixels into each hit; the images are opened again.
        search_params: Qdrant's; None rescores, where vectors are quantized.
        consistency: Qdrant's.
        shard_key: Qdrant's.
        timeout: seconds for this search's requests, all tries together, a first look into the collection
            included; None is the searcher's.

    Raises:
        ConfigError: for a number out of range.
    """

    limit: int = 10
    offset: int = 0
    filter: models.Filter | None = None
    rerank: str | Reranker | None = "stored"
    prefetch: int | None = None
    score_threshold: float | None = None
    with_vectors: bool = False
    with_masks: bool = False
    search_params: models.SearchParams | None = None
    consistency: models.ReadConsistency | None = None
    shard_key: models.ShardKeySelector | None = None
    timeout: int | None = None

    def __post_init__(self) -> None:
        check_minimum("limit", self.limit, 1)
        check_minimum("offset", self.offset, 0)
        if self.filter is not None and not isinstance(self.filter, models.Filter):
            raise ConfigError(
                f"filter is a {type(self.filter).__name__}: give models.Filter(must=[...]), with conditions in it"
            )
        if self.prefetch is not None:
            check_minimum("prefetch", self.prefetch, 1)
        if self.timeout is not None:
            check_minimum("timeout", self.timeout, 1)

    def page(self, group_size: int | None = None, *, code_vectors: bool = False) -> Page:
        """The part of the ranking that is wanted, as rerankers read it; see `Page`."""
        return Page(self.limit, self.offset, self.prefetch, group_size, code_vectors)


def merged(options: SearchOptions | None, **keywords: Unpack[SearchKeywords]) -> SearchOptions:
    """The options, with what keywords say in their place."""
    return replace(options or SearchOptions(), **keywords)
