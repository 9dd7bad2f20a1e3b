"""In an asyncio service: add and search without holding up the loop; the best pictures of each folder.

python examples/async_service.py PICTURES_FOLDER QUERY_IMAGE [ANOTHER_PICTURE_OF_IT ...]
"""

import asyncio
import sys
from pathlib import Path

from qdrant_client import AsyncQdrantClient

from soir_qdrant import AsyncSoirIngestor, AsyncSoirSearcher, Pipeline

folder, query, *examples = sys.argv[1:]


async def main() -> None:
    client = AsyncQdrantClient(":memory:")  # or url="http://localhost:6333"
    pipeline = Pipeline()  # one for both: the models are loaded once
    files = sorted(Path(folder).rglob("*.jpg"))
    ingestor = AsyncSoirIngestor(client, collection="shop", pipeline=pipeline)
    report = await ingestor.add(files, payloads=[{"folder": file.parent.name} for file in files])
    print(f"{report.added} added, {len(report.failed)} failed")

    searcher = AsyncSoirSearcher(client, collection="shop", pipeline=pipeline)
    for group in await searcher.search_groups(query, "folder", group_size=3, examples=examples):
        print(group.key, [f"{hit.score:.3f} {hit.uri}" for hit in group.hits])
    (best,) = await searcher.search(query, examples=examples, limit=1, with_masks=True)
    if best.mask is not None:
        print(f"{best.uri}: the thing covers {best.mask.mean():.2%} of the picture, in {best.box}")


asyncio.run(main())
