"""Rerankers by name: ours, and those of other packages (entry points of `soir_qdrant.rerankers`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from soir_qdrant.registry import Registry
from soir_qdrant.rerank.base import RerankContext, Reranker, checked_reranker
from soir_qdrant.rerank.codes import CodeReranker
from soir_qdrant.rerank.objects import ObjectReranker
from soir_qdrant.rerank.stored import StoredReranker
from soir_qdrant.rerank.unranked import Unranked

Factory: TypeAlias = Callable[[RerankContext], Reranker]

RERANKERS: Registry[Factory] = Registry("reranker")


def register_reranker(name: str, factory: Factory) -> None:
    """Make `search(rerank=name)` use a reranker.

    Another package does the same with an entry point of the group `soir_qdrant.rerankers`, which is loaded
    when its name is first asked for.

    Args:
        name: takes the place of what had this name before.
        factory: called once per searcher with its `pipeline` (made when it is first read) and `max_pixels`;
            a class whose constructor takes them is one.
    """
    RERANKERS.register(name, factory)


def make_reranker(name: str, context: RerankContext) -> Reranker:
    """The reranker of a name.

    Raises:
        ConfigError: for an unknown name, with those that are known, and where its factory makes no reranker.
    """
    return checked_reranker(RERANKERS.get(name)(context), f"what reranker {name!r} makes")


def _patches(context: RerankContext) -> Reranker:
    from soir_qdrant.rerank.patches import PatchReranker

    return PatchReranker(context.pipeline, max_pixels=context.max_pixels)


def _image(context: RerankContext) -> Reranker:
    from soir_qdrant.rerank.image import ImageReranker

    return ImageReranker(context.pipeline, max_pixels=context.max_pixels)


def _q_perturbation(context: RerankContext) -> Reranker:
    from soir_qdrant.rerank.q_perturbation.image_reranker import QPerturbation

    return QPerturbation(context.pipeline, max_pixels=context.max_pixels)


def _blip2(context: RerankContext) -> Reranker:
    from soir_qdrant.rerank.q_perturbation.blip2 import WEIGHTS, Blip2Matcher
    from soir_qdrant.rerank.q_perturbation.text_reranker import TextPerturbation

    return TextPerturbation(Blip2Matcher.load(WEIGHTS), max_pixels=context.max_pixels)


def _coca(context: RerankContext) -> Reranker:
    from soir_qdrant.rerank.q_perturbation.coca import MODEL, WEIGHTS, CoCaMatcher
    from soir_qdrant.rerank.q_perturbation.text_reranker import TextPerturbation

    return TextPerturbation(CoCaMatcher.load(MODEL, WEIGHTS), max_pixels=context.max_pixels)


def _text_q_perturbation(context: RerankContext) -> Reranker:
    from soir_qdrant.rerank.q_perturbation.tower_reranker import TowerPerturbation

    return TowerPerturbation(context.pipeline, max_pixels=context.max_pixels)


register_reranker("none", lambda _: Unranked())
register_reranker("stored", lambda _: StoredReranker())
register_reranker("codes", lambda _: CodeReranker())
register_reranker("objects", lambda _: ObjectReranker())
register_reranker("patches", _patches)
register_reranker("image", _image)
register_reranker("picture", _image)  # another name of the same
register_reranker("q-perturbation", _q_perturbation)
register_reranker("text-q-perturbation", _text_q_perturbation)
register_reranker("blip2", _blip2)
register_reranker("coca", _coca)
