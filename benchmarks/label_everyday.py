"""Boxes of everyday things in photographs that have no labels, by the detector of them: a COCO folder to learn from.

    python benchmarks/label_everyday.py DoorDetect-Dataset/images bench/door --names '????????????????.jpg'

What it is sure of is a thing, what it is less sure of "perhaps" (`soir train detector --unknown perhaps`); people are
"person". The photographs are named where they are, and not exhaustively labelled. A twentieth of a core-second each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from soir_qdrant import images as image_io
from soir_qdrant.geometry.boxes import pick
from soir_qdrant.geometry.resize import resized
from soir_qdrant.models.detectors import everyday

NAMES = ("thing", "perhaps", "person")
PERSON = 0  # the first of COCO's kinds
SURE, PERHAPS, IOU = 0.45, 0.2, 0.65  # scores; overlap of two boxes of one thing


def labels(file: Path) -> tuple[tuple[int, int], list[tuple[str, list[float]]]]:
    """Width and height of a photograph, and what is in it: name, and x, y, width, height in pixels."""
    image = image_io.load(file).rgb
    height, width = image.shape[:2]
    whole = resized(image, everyday.SIDE, everyday.SIDE)[None]
    answer = everyday.session().run([*everyday.OUTPUTS, "kinds"], {"images": whole})
    shares, scores, kinds = (array[0, answer[1][0] >= PERHAPS] for array in answer)
    boxes = np.clip(shares, 0, 1) * [width, height, width, height]
    things = []
    for i in pick(boxes, scores, iou=IOU, max_count=100)[0]:
        name = "person" if kinds[i] == PERSON else "thing" if scores[i] >= SURE else "perhaps"
        x0, y0, x1, y1 = boxes[i].tolist()
        things.append((name, [x0, y0, x1 - x0, y1 - y0]))
    return (width, height), things


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("out", type=Path, help="where to write coco.json")
    parser.add_argument("--names", default="*.jpg", help="which of them: a pattern")
    args = parser.parse_args()
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    for file in track(sorted(args.folder.glob(args.names)), "photographs"):
        (width, height), things = labels(file)
        image = {"id": len(content["images"]), "file_name": str(file.resolve()), "exhaustive": False}
        content["images"].append({**image, "width": width, "height": height})
        for name, box in things:
            label = {"id": len(content["annotations"]), "image_id": image["id"], "bbox": box, "iscrowd": 0}
            content["annotations"].append({**label, "category_id": NAMES.index(name), "name": name})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    print(f"{args.out}: {len(content['images'])} photographs, {len(content['annotations'])} boxes")


if __name__ == "__main__":
    main()
