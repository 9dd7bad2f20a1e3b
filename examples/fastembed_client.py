"""Our models under qdrant-client's own calls. Needs the extra fastembed.

python examples/fastembed_client.py PICTURES_FOLDER QUERY_IMAGE [x0 y0 x1 y1]
"""

import sys
from pathlib import Path

from qdrant_client import QdrantClient, models

from soir_qdrant.fastembed import register

folder, query, *corners = sys.argv[1:]
model = register()
client = QdrantClient(":memory:")
size = client.get_embedding_size(model)
client.create_collection("shelves", models.VectorParams(size=size, distance=models.Distance.COSINE))
client.upload_points(
    "shelves",
    (
        models.PointStruct(
            id=i, vector=models.Image(image=str(file), model=model), payload={"file": file.name}
        )
        for i, file in enumerate(sorted(Path(folder).glob("*.jpg")))
    ),
    wait=True,
)
options = {"box": tuple(map(float, corners))} if corners else None
wanted = models.Image(image=query, model=model, options=options)
for point in client.query_points("shelves", query=wanted, limit=5).points:
    print(f"{point.score:.3f}  {point.payload['file']}")
