"""Published sets of small objects as a `Bench`. Nothing is downloaded.

Most are in the one layout that the authors of MaO use: a torch file holds `{image: {"is_query", "bbox", "ins", "set"?,
"mask"?}}`; see docs/how-to/evaluation.md. Masks in it are not read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate import ilias
from soir_qdrant.lab.evaluate.bench import Bench, BenchObject, BenchQuery, GalleryImage
from soir_qdrant.lab.evaluate.metrics import box_shares, image_size
from soir_qdrant.types import Box

NAMES = ("anns.pt", "annotations.pt")
MAO = "arXiv 2503.07038"
AUTHORS = f"the file from the authors of {MAO} (github.com/pihash2k/VoxDet-SoIR)"


@dataclass(frozen=True, slots=True)
class Published:
    """A published set and its protocol.

    origin: where to get it. part: the one "set" of the file whose entries are read (all). max_share: gallery images are
    those whose objects are smaller, as a share of the image (all). depth: ranks that the average precision looks at
    (all). size: queries and gallery images as published, where that is stated. figures: mAP to compare with, and of
    which paper.
    """

    title: str
    origin: str
    figures: str
    part: str | None = None
    max_share: float | None = None
    depth: int | None = None
    size: tuple[int, int] | None = None

    def note(self, bench: Bench) -> str:
        """What a run on these files is to be compared with."""
        here = (len(bench.queries), len(bench.gallery))
        other = self.size is not None and self.size != here
        published = f" (published: {self.size[0]} and {self.size[1]})" if other and self.size else ""
        return f"{self.title}: {here[0]} queries, {here[1]} images{published}. {self.figures}"


VOXDET = (
    "get the images from github.com/Jaraxxus-Me/VoxDet, and make the file with create_dataset.py of "
    "github.com/pihash2k/VoxDet-SoIR"
)
INSTRE = f"get the images from the authors of INSTRE (Wang and Jiang, ACM TOMM 2015), and {AUTHORS}"
SETS = {
    "voxdet": Published(
        "VoxDet-SoIR (RoboTools)",
        VOXDET,
        f"{MAO}, mAP, ViT-B: zero-shot DINOv2 51.2, GSS 52.0, MaO-DINOv2 70.2; fine-tuned DINOv2 54.3, MaO-DINOv2 83.7",
        part="RoboTools",
    ),
    "owid": Published("OWID, the synthetic part of VoxDet-SoIR", VOXDET, f"{MAO} trains on it", part="OWID"),
    "instre": Published("INSTRE", INSTRE, f"{MAO} has figures of its parts, instre-xs and instre-xxs"),
    "instre-xs": Published(
        "INSTRE-XS",
        INSTRE,
        f"{MAO}, mAP, ViT-B, zero-shot: MaO-DINOv2 71.3, GeM 74.7, GSS 82.3, MaO-CLIP 89.4; fine-tuned MaO-DINOv2 90.0",
        max_share=0.15,
        size=(2428, 2065),
    ),
    "instre-xxs": Published(
        "INSTRE-XXS",
        INSTRE,
        f"{MAO}, mAP, ViT-B, zero-shot: MaO-DINOv2 53.1, GeM 53.3, GSS 68.0, MaO-CLIP 71.2; fine-tuned MaO-DINOv2 75.9",
        max_share=0.05,
        size=(106, 120),
    ),
    "permir": Published(
        "PerMiR",
        f"get the images from github.com/NVlabs/PDM, and {AUTHORS}",
        f"{MAO}, mAP, ViT-B: zero-shot DINOv2 40.6, MaO-DINOv2 89.9; fine-tuned MaO-DINOv2 90.1",
        size=(150, 450),
    ),
    "ilias": Published(
        "ILIAS, core images",
        "get ilias_core.tar as github.com/ilias-vrg/ilias says, and extract it",
        "arXiv 2502.11748, mAP@1k: its figures are with 5 or 100 million distractors, so that a run without them is "
        "to be compared with other runs of this kind alone",
        depth=1000,
        size=(1232, 4715),
    ),
}


def load(path: Path, name: str) -> Bench:
    """A set by its name in SETS. Its protocol: every image of the gallery is ranked; right are those that show the
    query's instance; queries without a right answer are left out.

    path: the folder, or its file of annotations. Raises DatasetError saying what is missing and where the set is had.
    """
    chosen = SETS[name]
    if name == "ilias":
        return _answerable(replace(ilias.load(path, chosen.origin), depth=chosen.depth))
    bench = _authors(path, chosen)
    if chosen.max_share is not None:
        bench = replace(bench, gallery=[image for image in bench.gallery if _small(image, chosen.max_share)])
    return _answerable(bench)


def _small(image: GalleryImage, max_share: float) -> bool:
    return bool((box_shares(image.boxes, image_size(image.file)) < max_share).all())


def _answerable(bench: Bench) -> Bench:
    known = {o.instance for image in bench.gallery for o in image.objects}
    queries = [query for query in bench.queries if query.instance in known]
    if not queries:
        raise DatasetError(f"{bench.root}: no query shows anything that the gallery holds")
    return replace(bench, queries=queries)  # a query without a right answer has no average precision


def _authors(path: Path, chosen: Published) -> Bench:
    file = _annotations(path, chosen)
    locate = _Images(file.parent)
    gallery: list[GalleryImage] = []
    queries: list[BenchQuery] = []
    for name, entry in _read(file).items():
        try:
            if chosen.part is not None and entry.get("set", chosen.part) != chosen.part:
                continue
            if entry.get("is_query", False):
                queries.append(BenchQuery(locate(name), str(entry["ins"]), _box(entry.get("bbox"))))
            else:
                image = locate(name)
                gallery.append(GalleryImage(image, None, _objects(entry, image)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DatasetError(
                f"{file}: entry {name!r} is not as docs/how-to/evaluation.md says ({error!r})"
            ) from error
    if not gallery or not queries:
        raise DatasetError(
            f"{file}: {len(gallery)} gallery images, {len(queries)} queries: not {chosen.title}"
        )
    return Bench(file.parent, gallery, queries)


def _annotations(path: Path, chosen: Published) -> Path:
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise DatasetError(f"{path / NAMES[0]} is missing. {chosen.title}: {chosen.origin}")


def _read(file: Path) -> dict[str, Any]:
    import torch

    try:  # boxes are tuples of NumPy integers in the authors' own files
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise DatasetError(f"{file}: not readable by torch.load(weights_only=True): {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: holds a {type(content).__name__}, not one entry per image")
    return content


def _numpy_scalars() -> list[Any]:
    """What a pickled NumPy scalar or array is made of: plain data, no code."""
    kinds: list[Any] = [np.dtype, np.ndarray, type(np.dtype("int64")), type(np.dtype("int32"))]
    kinds += [type(np.dtype(name)) for name in ("float32", "float64", "uint8", "bool")]
    core = np._core.multiarray  # type: ignore[attr-defined]
    old = "numpy.core.multiarray"  # NumPy 1 wrote this name
    for function in (core.scalar, core._reconstruct):
        kinds += [function, (function, f"{old}.{function.__name__}")]
    return kinds


def _objects(entry: dict[str, Any], image: Path) -> list[BenchObject]:
    """ins and bbox are lists side by side, or one of each; an image without a box is one object."""
    instances, boxes = entry["ins"], entry.get("bbox")
    if not isinstance(instances, list):
        instances, boxes = [instances], [boxes]
    elif boxes is None:
        boxes = [None] * len(instances)
    pairs = zip(instances, boxes, strict=True)
    return [BenchObject(str(name), _box(box) or _whole(image)) for name, box in pairs]


def _whole(image: Path) -> Box:
    width, height = image_size(image)
    return 0.0, 0.0, float(width), float(height)


def _box(values: Any) -> Box | None:
    """x0, y0, x1, y1 in pixels; None where there is none."""
    if values is None or len(values) == 0:
        return None
    x0, y0, x1, y1 = (float(v) for v in values)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"box {(x0, y0, x1, y1)} is empty")
    return max(x0, 0.0), max(y0, 0.0), x1, y1


class _Images:
    """Locates images that are named by the paths of the machine the file was written on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skip = 0  # leading parts of a name that are not here: the same for all of them

    def __call__(self, name: Any) -> Path:
        path = Path(str(name))
        parts = PurePosixPath(str(name).replace("\\", "/")).parts
        here = path if path.is_absolute() and path.is_file() else self._below(parts)
        if here is None:
            raise DatasetError(f"{self.root}: image {str(name)!r} is missing, though the annotations name it")
        return here

    def _below(self, parts: tuple[str, ...]) -> Path | None:
        for skip in (self.skip, *range(len(parts))):
            if parts[skip:] and (self.root.joinpath(*parts[skip:])).is_file() and parts[skip] != "/":
                self.skip = skip
                return self.root.joinpath(*parts[skip:])
        return None
