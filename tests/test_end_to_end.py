"""The real embedded pipeline, from files to hits."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from conftest import counts
from PIL import Image
from qdrant_client import QdrantClient, models

from soir_qdrant import SceneObject, SoirIngestor, SoirSearcher
from soir_qdrant.qdrant.filters import has_label

PICTURES = Path(str(resources.files("soir_qdrant") / "data" / "pictures"))
SCENES = {
    "brick": ["ant", "barber_pole", "bucket"],
    "grass": ["camera", "cactus", "brick"],
    "gravel": ["boar", "candy", "bed"],
}


def draw(folder: Path) -> dict[str, list[SceneObject]]:
    """Three pictures of three small things each; the things by the pictures' names."""
    folder.mkdir()
    drawn = {}
    for ground, things in SCENES.items():
        picture = Image.open(PICTURES / "grounds" / f"{ground}.webp").convert("RGB").resize((640, 480))
        objects = []
        for i, thing in enumerate(things):
            cutout = Image.open(PICTURES / "cutouts" / f"{thing}.webp")
            cutout.thumbnail((80, 80))
            x, y = 60 + 200 * i, 80 + 110 * i
            picture.paste(cutout, (x, y), cutout)
            mask = np.asarray(cutout)[:, :, 3] >= 128
            objects.append(SceneObject((x, y, x + cutout.width, y + cutout.height), mask, thing))
        picture.save(folder / f"{ground}.jpg", quality=92)
        drawn[f"{ground}.jpg"] = objects
    return drawn


@pytest.mark.slow
def test_small_things_are_found_on_disk(tmp_path):
    """Given their objects, pictures are found by cut-outs of the small things in them, with their boxes."""
    objects = draw(tmp_path / "pictures")
    client = QdrantClient(path=str(tmp_path / "db"))
    report = SoirIngestor(client, collection="scenes").add(tmp_path / "pictures", objects=objects)
    assert counts(report) == (3, 0, 0)
    client.close()

    client = QdrantClient(path=str(tmp_path / "db"))
    again = SoirIngestor(client, collection="scenes").add(tmp_path / "pictures", objects=objects)
    assert counts(again) == (0, 3, 0)
    searcher = SoirSearcher(client, collection="scenes")
    right = 0
    for name, items in objects.items():
        for item in items[:2]:
            hit = searcher.search(PICTURES / "cutouts" / f"{item.label}.webp", limit=1)[0]
            right += hit.uri == str(tmp_path / "pictures" / name) and hit.box == item.box
    assert right >= 5  # of 6
    only = models.Filter(must=[has_label("bed")])
    hits = searcher.search(tmp_path / "pictures" / "grass.jpg", box=objects["grass.jpg"][0].box, filter=only)
    assert [Path(hit.uri).name for hit in hits] == ["gravel.jpg"]
    client.close()
