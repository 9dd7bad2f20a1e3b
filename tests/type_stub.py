"""What a user's code looks like to mypy (`make lint` checks it with --strict); it is not run."""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from soir_qdrant import (
    AsyncSoirSearcher,
    Crop,
    Hit,
    HitGroup,
    IngestReport,
    Pipeline,
    SceneObject,
    SearchOptions,
    Settings,
    SoirError,
    SoirIngestor,
    SoirSearcher,
    SyncReport,
    Text,
    filters,
)


def fill(client: QdrantClient, folder: Path) -> IngestReport:
    settings = Settings.for_profile("fast").but(detector={"threshold": 0.4})
    ingestor = SoirIngestor(client, collection="shelves", pipeline=Pipeline(settings), namespace="shop")
    assert_type(ingestor.sync(folder), SyncReport)
    ingestor.add(
        ["a.jpg", b"...", np.zeros((9, 9, 3), np.uint8)], objects=[[SceneObject((0, 0, 4, 4))], [], None]
    )
    return ingestor.add(folder, on_exists="update", payloads={"a.jpg": {"shelf": 2}})


def find(client: QdrantClient) -> list[Hit]:
    searcher = SoirSearcher(client, "shelves")
    wanted = models.Filter(must=[filters.min_count(3)])
    try:
        hits = searcher.search(Crop("room.jpg", (1, 2, 30, 40)), filter=wanted, rerank="codes", limit=5)
    except SoirError:
        return []
    assert_type(searcher.search_groups("mug.png", "shelf"), list[HitGroup])
    assert_type(searcher.search_many(["mug.png", Text("a red mug")]), list[list[Hit]])
    assert_type(searcher.vector("mug.png"), NDArray[np.float32])
    assert_type(searcher.heat("mug.png", hits[0]), NDArray[np.float32])
    return searcher.search(text="a red mug", options=SearchOptions(limit=3, rerank=None)) + hits


async def find_async(client: AsyncQdrantClient) -> list[Hit]:
    return await AsyncSoirSearcher(client, "shelves").search("mug.png", limit=5)
