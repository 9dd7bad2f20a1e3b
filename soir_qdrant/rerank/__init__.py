"""What orders hits anew: the contract, and the rerankers to pass with settings of one's own.

from soir_qdrant.rerank import PatchReranker

searcher.search("mug.png", rerank=PatchReranker(searcher.pipeline, weight=0.5))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soir_qdrant.rerank.base import (
        FinerOrder,
        Need,
        Page,
        RerankContext,
        Reranker,
        SearchQuery,
        Window,
        candidate_blocks,
        first_candidates,
    )
    from soir_qdrant.rerank.cache import TokenCache
    from soir_qdrant.rerank.codes import CodeReranker
    from soir_qdrant.rerank.hit_image import open_image
    from soir_qdrant.rerank.image import ImageReranker
    from soir_qdrant.rerank.objects import ObjectReranker
    from soir_qdrant.rerank.order import reordered
    from soir_qdrant.rerank.patches import PatchReranker
    from soir_qdrant.rerank.q_perturbation.blip2 import Blip2Matcher
    from soir_qdrant.rerank.q_perturbation.coca import CoCaMatcher
    from soir_qdrant.rerank.q_perturbation.image_reranker import QPerturbation
    from soir_qdrant.rerank.q_perturbation.internvl import InternVLMatcher
    from soir_qdrant.rerank.q_perturbation.matcher import Matcher
    from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
    from soir_qdrant.rerank.q_perturbation.text_reranker import TextPerturbation
    from soir_qdrant.rerank.q_perturbation.tower_reranker import TowerPerturbation
    from soir_qdrant.rerank.stored import StoredReranker

__all__ = [
    "Blip2Matcher",
    "CoCaMatcher",
    "CodeReranker",
    "FinerOrder",
    "ImageReranker",
    "InternVLMatcher",
    "Matcher",
    "Need",
    "ObjectReranker",
    "Page",
    "PatchReranker",
    "PerturbSettings",
    "QPerturbation",
    "RerankContext",
    "Reranker",
    "SearchQuery",
    "StoredReranker",
    "TextPerturbation",
    "TokenCache",
    "TowerPerturbation",
    "Window",
    "candidate_blocks",
    "first_candidates",
    "open_image",
    "reordered",
]

# Loaded on first use, since most of them load the model library.
_LAZY = {
    "Blip2Matcher": "q_perturbation.blip2",
    "CoCaMatcher": "q_perturbation.coca",
    "CodeReranker": "codes",
    "FinerOrder": "base",
    "ImageReranker": "image",
    "InternVLMatcher": "q_perturbation.internvl",
    "Matcher": "q_perturbation.matcher",
    "Need": "base",
    "ObjectReranker": "objects",
    "Page": "base",
    "PatchReranker": "patches",
    "PerturbSettings": "q_perturbation.perturb",
    "QPerturbation": "q_perturbation.image_reranker",
    "RerankContext": "base",
    "Reranker": "base",
    "SearchQuery": "base",
    "StoredReranker": "stored",
    "TextPerturbation": "q_perturbation.text_reranker",
    "TokenCache": "cache",
    "TowerPerturbation": "q_perturbation.tower_reranker",
    "Window": "base",
    "first_candidates": "base",
    "candidate_blocks": "base",
    "open_image": "hit_image",
    "reordered": "order",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"soir_qdrant.rerank.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'soir_qdrant.rerank' has no attribute {name!r}")
