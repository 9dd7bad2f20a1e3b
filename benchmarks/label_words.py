"""Boxes for the words that stand in photographs, read by RapidOCR: a COCO folder again, with them.

    python benchmarks/label_words.py photos/base bench/words --sources coco,openimages,boxes

The file that is written names the photographs where they are: nothing is copied. Lines of text become annotations
named "text", beside those that were there. Needs the extra `ocr`; about a core-second and a half a photograph.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.progress import track

from soir_qdrant import images as image_io
from soir_qdrant.config import OcrSettings
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.models.ocr import TextLine, TextReader

SCORE = 0.6  # of a line of text
MIN_AREA = 0.0006  # share of its photograph
MIN_SIDE = 7  # pixels
MIN_LETTERS = 2
LONGEST = 1280  # pixels of a photograph's side, as it is read


def labelled(folder: Path, reader: TextReader, sources: set[str]) -> dict[str, Any]:
    """The content of the folder's COCO file, with words. sources: of the photographs that are read; empty: all."""
    content: dict[str, Any] = json.loads((folder / "coco.json").read_text(encoding="utf-8"))
    kind = content["annotations"][0]["category_id"]
    entries = load(folder, "coco").gallery  # one for each image, in order
    for image, entry in track(list(zip(content["images"], entries, strict=True)), "words"):
        image["file_name"] = str(entry.file.resolve())
        if sources and image.get("source", "coco") not in sources:
            continue
        for line in reader.read(image_io.load(entry.file).rgb):
            if large(line, image["width"] * image["height"]):
                x0, y0, x1, y1 = line.box
                label = {
                    "id": f"text-{len(content['annotations'])}",
                    "image_id": image["id"],
                    "category_id": kind,
                }
                label |= {"name": "text", "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
                content["annotations"].append(label)
    return content


def large(line: TextLine, area: int) -> bool:
    """Whether a line of text is a thing to find. area: of its photograph, in pixels."""
    wide, high = line.box[2] - line.box[0], line.box[3] - line.box[1]
    letters = sum(letter.isalnum() for letter in line.text)
    return letters >= MIN_LETTERS and wide * high >= MIN_AREA * area and min(wide, high) >= MIN_SIDE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a COCO folder: coco.json, and images where it says")
    parser.add_argument("out", type=Path, help="where to write coco.json")
    parser.add_argument(
        "--sources", default="", help="read only these, by the file's `source`; comma-separated"
    )
    args = parser.parse_args()
    reader = TextReader(OcrSettings(threshold=SCORE, longest=LONGEST))
    content = labelled(args.folder, reader, set(filter(None, args.sources.split(","))))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    print(f"{args.out}: {sum(a.get('name') == 'text' for a in content['annotations'])} words")


if __name__ == "__main__":
    main()
