"""Samples of FiftyOne sorted by one thing in an image, with the box that matched. Needs fiftyone.

python examples/fiftyone_similarity.py PICTURES_FOLDER QUERY_IMAGE x0 y0 x1 y1
"""

import sys

import fiftyone as fo
import fiftyone.brain as fob

from soir_qdrant.integrations.fiftyone import SoirSimilarityConfig

folder, image, *corners = sys.argv[1:]
dataset = fo.Dataset.from_images_dir(folder)
index = fob.compute_similarity(
    dataset, backend=SoirSimilarityConfig, brain_key="soir", embeddings=False, path="./needles"
)
print(index.add_samples())
view = index.search(image, box=tuple(map(float, corners)) or None, limit=20)
fo.launch_app(view=view).wait()
