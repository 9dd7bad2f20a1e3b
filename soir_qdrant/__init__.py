"""Small object image retrieval for Qdrant: put your pictures in, find them by a crop of one small thing.

from qdrant_client import QdrantClient
from soir_qdrant import SoirIngestor, SoirSearcher

client = QdrantClient(path="./needles")
SoirIngestor(client, collection="scenes").add("photos/")
hits = SoirSearcher(client, collection="scenes").search("mug.png", limit=10)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from soir_qdrant.errors import SoirError
from soir_qdrant.types import Composed, Crop, Hit, HitGroup, IngestReport, Scene, SceneObject, Text

if TYPE_CHECKING:
    from soir_qdrant.aio import AsyncSoirIngestor, AsyncSoirSearcher
    from soir_qdrant.config import Settings
    from soir_qdrant.images.options import ReadOptions
    from soir_qdrant.ingest.ingestor import SoirIngestor
    from soir_qdrant.ingest.outcome import IngestStopped
    from soir_qdrant.ingest.sync import SyncReport
    from soir_qdrant.kinds import (
        Kind,
        register_detector,
        register_encoder,
        register_scene,
        register_segmenter,
    )
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.qdrant import filters
    from soir_qdrant.qdrant.edge.client import EdgeClient
    from soir_qdrant.rerank.kinds import register_reranker
    from soir_qdrant.search.options import SearchOptions
    from soir_qdrant.search.searcher import SoirSearcher
    from soir_qdrant.search.text_in_image import find_text

# Threads that wait give their core away: beside a busy process, spinning ones cost twice the time. OpenMP
# reads this once, when torch is imported; who imported torch before, or set it, has decided.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Torch's oneDNN keeps what it compiled for the last 1,024 shapes: photographs of many sizes fill gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

__version__ = "0.2.0.dev0"
__all__ = [
    "AsyncSoirIngestor",
    "AsyncSoirSearcher",
    "Composed",
    "Crop",
    "EdgeClient",
    "Hit",
    "HitGroup",
    "IngestReport",
    "IngestStopped",
    "Kind",
    "Pipeline",
    "ReadOptions",
    "Scene",
    "SceneObject",
    "SearchOptions",
    "Settings",
    "SoirError",
    "SoirIngestor",
    "SoirSearcher",
    "SyncReport",
    "Text",
    "filters",
    "find_text",
    "register_detector",
    "register_encoder",
    "register_reranker",
    "register_scene",
    "register_segmenter",
]

# Loaded on first use, so that importing the package stays light.
_LAZY = {
    "AsyncSoirIngestor": "aio",
    "AsyncSoirSearcher": "aio",
    "EdgeClient": "qdrant.edge.client",
    "Kind": "kinds",
    "Pipeline": "pipeline",
    "ReadOptions": "images.options",
    "SearchOptions": "search.options",
    "Settings": "config",
    "IngestStopped": "ingest.outcome",
    "SoirIngestor": "ingest.ingestor",
    "SoirSearcher": "search.searcher",
    "SyncReport": "ingest.sync",
    "find_text": "search.text_in_image",
    "register_reranker": "rerank.kinds",
    "register_detector": "kinds",
    "register_encoder": "kinds",
    "register_scene": "kinds",
    "register_segmenter": "kinds",
}


def __getattr__(name: str) -> Any:
    if name == "filters":
        return import_module("soir_qdrant.qdrant.filters")
    if name in _LAZY:
        return getattr(import_module(f"soir_qdrant.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'soir_qdrant' has no attribute {name!r}")
