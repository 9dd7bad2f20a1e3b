"""The contract of what orders hits anew.

class Sharpest:
    name = "sharpest"
    candidates = 20
    needs: frozenset[Need] = frozenset({"image"})

    def window(self, page: Page) -> Window:
        return first_candidates(self.candidates, page, self.name)

    def rerank(self, query, hits, *, failed=None):
        return reordered(hits, lambda hit: replace(hit, score=sharpness(open_image(hit).rgb)), failed)

register_reranker("sharpest", lambda context: Sharpest())
searcher.search("mug.png", rerank="sharpest")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.ordering import ByCodes
from soir_qdrant.types import Box, Failure, Hit, LoadedImage, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline

Need: TypeAlias = Literal[
    "payload", "patches", "object vectors", "box", "written", "image", "query image", "query text"
]
MODELS: frozenset[Need] = frozenset({"image", "query image", "query text"})  # needs that take a model to read
MIN_GROUPS, MIN_GROUP_SIZE = 20, 5  # groups, and images of each, that are ordered by what they are worth


@dataclass(frozen=True, slots=True, eq=False)
class SearchQuery:
    """One query, as a reranker reads it.

    Attributes:
        vector: float32 [D], unit length: what the collection is searched for, examples and negatives
            included.
        image: the image that was searched with; None for text and vectors, and where the reranker does not need it.
        box: where the thing is in that image, x0, y0, x1, y1 in pixels; None for all of it.
        text: the words that were searched with; None for images and vectors.
        patches: float32 [n, d], unit rows, of the thing in the image, for late interaction; None where the
            reranker does not read patches, or the pipeline has none at hand.
        looks: float32 [L, D], unit rows, of the thing as it stands, and then turned (`CropSettings.query_turns`);
            None where nothing but `vector` says what it looks like.
        pixels: of the image that are the thing's; 0 where that is not known.
        aspect: width by height of the thing's box; 0 where that is not known.
        written: on the thing in the image, where the reranker needs it and the pipeline reads text; else "".
    """

    vector: Vector
    image: LoadedImage | None = None
    box: Box | None = None
    text: str | None = None
    patches: Vector | None = None
    looks: Vector | None = None
    pixels: float = 0.0
    aspect: float = 0.0
    written: str = ""

    @property
    def rows(self) -> Vector:
        """The looks, or the vector alone: float32 [L, D]."""
        return self.vector[None] if self.looks is None else self.looks


@dataclass(frozen=True, slots=True)
class Page:
    """The part of the ranking that a user wants.

    Attributes:
        limit: hits, or groups.
        offset: hits before them.
        prefetch: candidates to order anew; None leaves the number to the reranker.
        group_size: hits of each group; None where hits are not grouped.
        code_vectors: whether the collection has the codes of objects as vectors.
    """

    limit: int
    offset: int = 0
    prefetch: int | None = None
    group_size: int | None = None
    code_vectors: bool = False


@dataclass(frozen=True, slots=True)
class FinerOrder:
    """A second order of the first hits of each block, by their patches, which are fetched for these alone. The others
    keep their order below them, and the differences of their scores.

    Attributes:
        hits: how many of each block.
        rerank: as that of a `Reranker`, of hits that have the scores of the first order (and boxes, where a reranker
            gave them), and whose payload has the patches too, where they are stored.
        otherwise: the window in place of the one that has this order, of queries and collections without patches.
    """

    hits: int
    rerank: Callable[[SearchQuery, Sequence[Hit]], list[Hit]]
    otherwise: Window


@dataclass(frozen=True, slots=True)
class Window:
    """The part of Qdrant's ranking that is fetched for a page.

    Attributes:
        limit: hits, or groups.
        offset: hits before them.
        block: hits that `rerank` gets at once; 0 gives it all of them, or all of a group.
        by_objects: above 0, Qdrant itself takes so many candidates by the images' vectors and orders them by
            their most similar object vector (MaxSim).
        by_codes: Qdrant itself orders candidates by the image's vector and the codes of its objects, in place of
            `rerank`; with a `finer` order, what is written on the thing in the query counts, too.
        group_size: hits of each group; 0 where hits are not grouped.
        finer: orders the first of each block once more; the hits that `rerank` gets come without patches then.
    """

    limit: int
    offset: int = 0
    block: int = 0
    by_objects: int = 0
    group_size: int = 0
    by_codes: ByCodes | None = None
    finer: FinerOrder | None = None


@runtime_checkable
class Reranker(Protocol):
    """Orders hits anew.

    Attributes:
        name: what `search(rerank=...)` calls it, and what messages do.
        candidates: how many hits it orders anew where `prefetch` does not say.
        needs: what it reads beside ids and scores. "payload": what is stored of each hit, codes included;
            "patches": the stored patches too, where the query has its own, or its image is needed; "object
            vectors": `Hit.object_vectors`, where the collection keeps them; "box": the searcher is to tell the
            box, by object vectors where it may; "written": what is written on the thing in the query, where the
            pipeline reads text; "image": the hits' images, opened again; "query image", "query text": those of the
            query, and a query without them is refused. With one of the last three, `rerank` runs in one thread at a
            time, as encoding does.
    """

    @property
    def name(self) -> str: ...

    @property
    def candidates(self) -> int: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def window(self, page: Page) -> Window:
        """What to fetch for a page: `candidate_blocks` or `first_candidates` of this module, as a rule.

        Raises:
            ConfigError: for groups, where this reranker cannot order them.
        """
        ...

    def rerank(
        self, query: SearchQuery, hits: Sequence[Hit], *, failed: list[Failure] | None = None
    ) -> list[Hit]:
        """Score hits anew.

        Args:
            query: what was searched for.
            hits: best first, with Qdrant's score, the payload as it is stored, and no box yet.
            failed: gets those that could not be scored.

        Returns:
            The same hits with new scores, best first, with `box` and `object` where the reranker knows them.
            One that cannot be scored keeps its place and score (`soir_qdrant.rerank.order`).
        """
        ...


def candidate_blocks(candidates: int, page: Page) -> Window:
    """Of scores that need the hit alone: blocks of the ranking are ordered, each by itself.

    They lie at the same places for every page, so that none repeats or leaves out a hit. Of groups, at least
    MIN_GROUPS of MIN_GROUP_SIZE images are ordered.
    """
    if page.group_size is not None:
        return Window(max(page.limit, MIN_GROUPS), group_size=max(page.group_size, MIN_GROUP_SIZE))
    block = max(page.prefetch or candidates, page.limit)
    start = page.offset // block * block
    end = -(-(page.offset + page.limit) // block) * block
    return Window(end - start, start, block)


def first_candidates(candidates: int, page: Page, name: str) -> Window:
    """Of scores that cost much: the first of the ranking, as many as there are candidates or hits wanted.

    Pages fit together where one `prefetch` covers them all.

    Raises:
        ConfigError: for groups, which would cost as much each.
    """
    if page.group_size is not None:
        raise ConfigError(
            f'rerank="{name}": groups can be reranked by what is stored of them alone: take "codes" or '
            '"objects"'
        )
    return Window(max(page.prefetch or candidates, page.limit + page.offset))


class FirstCandidates:
    """The window of rerankers whose scores cost much: `first_candidates`."""

    name: str
    candidates: int

    def window(self, page: Page) -> Window:
        """Raises ConfigError for groups."""
        return first_candidates(self.candidates, page, self.name)


def checked_reranker(value: object, source: str) -> Reranker:
    """A value of the user's, once it is known to be a reranker. source: where it came from, as messages call it.

    Raises:
        ConfigError: for a class in place of an instance, and for anything else that is no reranker.
    """
    if isinstance(value, type):
        raise ConfigError(f"{source} is the class {value.__name__}: give an instance of it")
    if not isinstance(value, Reranker):
        raise ConfigError(
            f'{source} is a {type(value).__name__}: give a name, such as "codes", None, or an instance of a '
            "class that has name, candidates, needs, window and rerank (soir_qdrant.rerank.base)"
        )
    return value


def check_query(reranker: Reranker, query: SearchQuery) -> None:
    """Raises ConfigError for a query that has not what the reranker needs of it."""
    if "query image" in reranker.needs:
        query_image(reranker, query)
    if "query text" in reranker.needs:
        query_text(reranker, query)


def query_image(reranker: Reranker, query: SearchQuery) -> LoadedImage:
    """The query's image. Raises ConfigError for text and vectors."""
    if query.image is None:
        other = (
            '"codes"' if query.text is None else '"text-q-perturbation", "blip2" or "coca", which read words'
        )
        raise ConfigError(
            f'rerank="{reranker.name}" needs a query image, and this query is {_kind(query)}: search with an '
            f"image, or take rerank={other}"
        )
    return query.image


def query_text(reranker: Reranker, query: SearchQuery) -> str:
    """The query's words. Raises ConfigError for images and vectors."""
    if query.text is None:
        raise ConfigError(
            f'rerank="{reranker.name}" needs words, and this query is {_kind(query)}: search(text=...), or '
            'take rerank="codes"'
        )
    return query.text


def _kind(query: SearchQuery) -> str:
    return "an image" if query.image is not None else "a vector" if query.text is None else "text"


class RerankContext(Protocol):
    """What a factory of rerankers may use: the searcher's own parts."""

    @property
    def pipeline(self) -> Pipeline:
        """What encodes the queries; made on first use."""
        ...

    @property
    def max_pixels(self) -> int:
        """Of the largest image that is opened."""
        ...
