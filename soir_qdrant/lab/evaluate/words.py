"""Search by words on a labelled folder: classes that were trained on and new ones apart, captions, and boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soir_qdrant.errors import DatasetError
from soir_qdrant.images import load
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.metrics import average_precision, placed, ranking, recall_at
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.types import Box, Scene, Vector

CAPTIONS = "captions.json"
DEPTH = 50  # images of a ranking that count


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence about one thing of an image. file: absolute. box: x0, y0, x1, y1 in pixels; None if unknown."""

    file: Path
    sentence: str
    box: Box | None


def captions(folder: Path) -> list[Caption]:
    """FOLDER/captions.json: a list of {"image": file below FOLDER, "sentence": text, "box": [x0, y0, x1, y1]}.

    Raises:
        DatasetError: the file is missing or of another form.
    """
    source = folder / CAPTIONS
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
        return [_caption(folder, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f'{source}: give a list of {{"image": file, "sentence": text, "box": [x0, y0, x1, y1]}} ({error!r})'
        ) from error


def _caption(folder: Path, entry: Any) -> Caption:
    box = entry.get("box")
    corners: Any = None if box is None else tuple(float(value) for value in box)
    if corners is not None and len(corners) != 4:
        raise ValueError(f"box {box!r}")
    return Caption((folder / entry["image"]).resolve(), str(entry["sentence"]), corners)


def read_names(file: Path | None) -> list[str]:
    """The names of a file, one a line; none without a file. Raises DatasetError where it cannot be read."""
    if file is None:
        return []
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not readable as names, one a line ({error})") from error


def names_of(benches: Sequence[Bench]) -> list[str]:
    """The different names of all labelled objects, sorted."""
    listed = {item.name for bench in benches for image in bench.gallery for item in image.objects}
    return sorted(name for name in listed if name)


def embedding(pipeline: Pipeline, prompts: Sequence[str]) -> Callable[[Sequence[str]], Vector]:
    """Names -> float32 [n, D], unit rows, the mean over prompts such as "a photo of a {}"."""

    def embed(names: Sequence[str]) -> Vector:
        rows = [[pipeline.text(prompt.replace("{}", name)) for prompt in prompts] for name in names]
        return normalize(np.array(rows, np.float32).reshape(len(names), len(prompts), pipeline.dim).mean(1))

    return embed


def describe(pipeline: Pipeline, files: Sequence[Path], advance: Callable[[], None]) -> list[Scene]:
    """What would be stored of some images."""
    scenes = []
    for file in files:
        scenes += pipeline.scenes([load(file)])
        advance()
    return scenes


def evaluate_classes(
    bench: Bench,
    embed: Callable[[Sequence[str]], Vector],
    scenes: Sequence[Scene],
    novel: Sequence[str] = (),
) -> dict[str, float]:
    """Rank the images for each class by their most similar object or region.

    Args:
        bench: its objects have names. embed: names -> float32 [n, D], unit rows.
        scenes: of its images. novel: names that were not trained on.

    Returns:
        In percent, for "base" and "novel" classes: "mAP@50", the mean over classes of average precision among the
        first 50 images; "LocScore", the share of right first hits whose best box is on such a thing (IoU >= 0.5);
        and the number of "classes".
    """
    names = names_of([bench])
    if not names:
        raise DatasetError(f"{bench.root}: no object has a name: give COCO annotations with categories")
    results: dict[str, float] = {}
    for group, chosen in (
        ("base", [name for name in names if name not in novel]),
        ("novel", [name for name in names if name in novel]),
    ):
        precisions, on = [], []
        for name in chosen:
            vector = embed([name])[0]
            relevant = np.array([any(o.name == name for o in image.objects) for image in bench.gallery])
            order = ranking(np.array([(scene.object_vectors @ vector).max() for scene in scenes]))
            ranked = relevant[order][:DEPTH]
            precisions.append(average_precision(ranked, min(int(relevant.sum()), DEPTH)))
            if ranked[0]:
                first = int(order[0])
                true = [item.box for item in bench.gallery[first].objects if item.name == name]
                on.append(placed(_box(scenes[first], vector), true))
        results |= _means(group, {"mAP@50": precisions, "LocScore": [100.0 * hit for hit in on]})
        results[f"{group} classes"] = len(chosen)
    return results


def evaluate_captions(
    listed: Sequence[Caption], embed: Callable[[Sequence[str]], Vector], scenes: dict[Path, Scene]
) -> dict[str, float]:
    """Find each sentence's image: "R@1", "R@5", "R@10" in percent, and "LocScore" as above.

    Args:
        listed: the sentences. embed: as above. scenes: by file.
    """
    files = list(scenes)
    recalls: dict[str, list[float]] = {"R@1": [], "R@5": [], "R@10": []}
    on = []
    for caption in listed:
        vector = embed([caption.sentence])[0]
        order = ranking(np.array([(scenes[file].object_vectors @ vector).max() for file in files]))
        ranked = np.array([files[i] == caption.file for i in order])
        for k in (1, 5, 10):
            recalls[f"R@{k}"].append(recall_at(ranked, k))
        if ranked[0] and caption.box is not None:
            on.append(100.0 * placed(_box(scenes[caption.file], vector), [caption.box]))
    return _means("captions", recalls | {"LocScore": on}) | {"captions sentences": len(listed)}


def _box(scene: Scene, vector: Vector) -> Box:
    return scene.objects[int((scene.object_vectors @ vector).argmax())].box


def _means(group: str, values: dict[str, list[float]]) -> dict[str, float]:
    return {f"{group} {name}": round(float(np.mean(some)), 2) for name, some in values.items() if some}
