"""Own payloads beside ours, and Qdrant's own filters over both.

python examples/filters.py PICTURES_FOLDER QUERY_IMAGE
"""

import sys
from pathlib import Path

from qdrant_client import QdrantClient, models

from soir_qdrant import SoirIngestor, SoirSearcher, filters

folder, query = sys.argv[1:3]
files = sorted(Path(folder).glob("*.jpg"))
client = QdrantClient(":memory:")

payloads = [{"shelf": i % 4} for i, _ in enumerate(files)]
SoirIngestor(client, collection="shelves").add(files, payloads=payloads)

wanted = models.Filter(
    must=[
        models.FieldCondition(key="shelf", match=models.MatchValue(value=2)),
        filters.min_count(3),
        filters.object_larger_than(0.005),
    ]
)
for hit in SoirSearcher(client, collection="shelves").search(query, filter=wanted, limit=5):
    print(f"{hit.score:.3f}  {hit.uri}  shelf {hit.payload['shelf']}")
