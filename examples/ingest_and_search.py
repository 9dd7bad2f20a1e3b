"""Put a folder of pictures into embedded Qdrant and find one small thing in them.

python examples/ingest_and_search.py PICTURES_FOLDER QUERY_IMAGE
"""

import sys

from qdrant_client import QdrantClient

from soir_qdrant import SoirIngestor, SoirSearcher

folder, query = sys.argv[1:3]
client = QdrantClient(path="./needles")  # or ":memory:", or url="http://localhost:6333"

report = SoirIngestor(client, collection="scenes").add(folder)
print(f"{report.added} added, {report.skipped} there already, {len(report.failed)} failed")

for hit in SoirSearcher(client, collection="scenes").search(query, limit=5):
    print(f"{hit.score:.3f}  {hit.uri}  {hit.box}")
