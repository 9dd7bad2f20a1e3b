"""Where boxes and masks are known already, give them: then no detector runs.

python examples/own_objects.py NEEDLEBENCH_FOLDER     (made by `soir needle`)
"""

import sys
from pathlib import Path

from qdrant_client import QdrantClient

from soir_qdrant import SceneObject, SoirIngestor, SoirSearcher
from soir_qdrant.lab.evaluate.bench import load

bench = load(Path(sys.argv[1]))
client = QdrantClient(":memory:")
objects = (
    [
        SceneObject(item.box, mask, label=item.instance)
        for item, mask in zip(entry.objects, entry.masks() or [], strict=True)
    ]
    for entry in bench.gallery
)
SoirIngestor(client, collection="labelled").add([entry.file for entry in bench.gallery], objects=objects)

query = bench.queries[0]
for hit in SoirSearcher(client, collection="labelled").search(query.file, limit=5):
    print(f"{hit.score:.3f}  {hit.uri}  {query.instance in hit.payload['soir']['labels']}")
