"""What was ingested of each image, on disk, so that an evaluation that was killed goes on where it was.

One folder a recipe (settings, fingerprint, trained files, code), one file an image (its content and its
labelled objects): another setting, another head or another label never reads what this one wrote.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.kinds import PartSettings
from soir_qdrant.models.ocr import pack_text, unpack_text
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.recipe import OF_QUERIES
from soir_qdrant.types import LoadedImage, Mask, Scene, SceneObject, Vector

FORMAT = 3  # of the files, and of what the plain rows are
PACKAGE = Path(str(resources.files("soir_qdrant")))
UNRELATED = ("lab", "cli", "report")  # code that does not change what is ingested
PATCHES = "patches"  # of all objects, and how many each has
PLAIN = "plain-"  # before the names of vectors that are not the pipeline's own

Arrays = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Entry:
    """One ingested image.

    features: float32 [K, F], of its objects, before whitening. plain: vectors float32 [D] of the rows that
    the pipeline itself does not make. seconds: core-seconds of ingesting it.
    """

    scene: Scene
    features: Vector
    seconds: float
    plain: dict[str, Vector] = field(default_factory=dict)


class ArrayCache:
    """Files of arrays in FOLDER/<digest of recipe>, each written whole or not at all.

    folder: None keeps nothing. recipe: JSON-able; everything that decides what is in the arrays.
    """

    def __init__(self, folder: Path | None, recipe: Any) -> None:
        self.folder: Path | None = None
        if folder is not None:
            text = json.dumps(recipe, sort_keys=True, indent=1)
            self.folder = folder.expanduser() / hashlib.sha256(text.encode()).hexdigest()[:16]
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.json").write_text(text)

    def load(self, key: str) -> Arrays | None:
        """The arrays of this key; None where there are none, or the file is damaged."""
        if self.folder is None:
            return None
        try:
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            return None

    def save(self, key: str, arrays: Arrays) -> None:
        """Write the arrays of this key, in place of those before."""
        if self.folder is None:
            return
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
        Path(part.name).replace(self.folder / f"{key}.npz")


class SceneCache(ArrayCache):
    """`Entry` of images."""

    def entry(
        self, image: LoadedImage, objects: Sequence[SceneObject] | None, *, patches: bool = False
    ) -> Entry | None:
        """What was ingested of the image; None where nothing was, or without the patches that are needed.
        objects: labelled, None where detected."""
        arrays = self.load(key_of(image, objects))
        return None if arrays is None or (patches and PATCHES not in arrays) else _entry(arrays)

    def add(self, image: LoadedImage, objects: Sequence[SceneObject] | None, entry: Entry) -> None:
        """Keep what was ingested of the image."""
        if self.folder is not None:
            self.save(key_of(image, objects), _arrays(entry))


def key_of(image: LoadedImage, objects: Sequence[SceneObject] | None) -> str:
    """Names an image's content and its labelled objects."""
    if objects is None:
        return f"{image.sha256[:24]}-detected"
    digest = hashlib.sha256()
    for item in objects:
        digest.update(repr((item.box, item.score, item.label)).encode())
        if item.mask is not None:
            digest.update(repr(item.mask.shape).encode() + np.packbits(item.mask).tobytes())
    return f"{image.sha256[:24]}-{digest.hexdigest()[:16]}"


def recipe_of(pipeline: Pipeline) -> dict[str, Any]:
    """Everything but the image that decides what is ingested of it, JSON-able."""
    settings = pipeline.settings
    files = {part: _texts(getattr(settings, part)) for part in ("detector", "segmenter", "encoder")}
    files["whitening"] = [settings.vector.whitening or ""]
    return {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json", exclude={"crop": OF_QUERIES}),
        "fingerprint": pipeline.fingerprint,
        "files": {part: [_digest(part, name) for name in names] for part, names in files.items()},
        "code": code_digest(),
    }


def code_digest() -> str:
    """Of the package's own code, but what has no say in ingesting."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        if name.parts[0] not in UNRELATED:
            digest.update(name.as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _texts(settings: PartSettings) -> list[str]:
    """The settings that may name a file: all that are text."""
    return [value for _, value in settings if isinstance(value, str)]


def _digest(part: str, name: str) -> str:
    """Of the content of a file; of a folder, its files' names, sizes and times; empty for what is neither."""
    if not name:
        return ""
    path = PACKAGE / "data" / f"{part}.safetensors" if name == "shipped" else Path(name).expanduser()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if path.is_dir():
        files = [(file.name, file.stat()) for file in sorted(path.iterdir())]
        listing = repr([(file, stat.st_size, stat.st_mtime_ns) for file, stat in files])
        return hashlib.sha256(listing.encode()).hexdigest()[:16]
    return ""


def _arrays(entry: Entry) -> Arrays:
    scene = entry.scene
    masks = [item.mask for item in scene.objects]
    bits = [np.packbits(mask) for mask in masks if mask is not None]
    shapes = [(-1, -1) if mask is None else mask.shape for mask in masks]
    patches: Arrays = {}
    if scene.patches is not None:
        counts = np.array([len(rows) for rows in scene.patches])
        patches = {PATCHES: np.concatenate(scene.patches).astype(np.float16), f"{PATCHES}-counts": counts}
    return {
        **patches,
        "size": np.array([scene.width, scene.height]),
        "texts": pack_text(scene),
        "boxes": np.array([item.box for item in scene.objects], np.float64).reshape(-1, 4),
        "scores": np.array([item.score for item in scene.objects], np.float64),
        "mask_shapes": np.array(shapes, np.int64).reshape(-1, 2),
        "mask_bits": np.concatenate(bits) if bits else np.zeros(0, np.uint8),
        "vector": scene.vector,
        "object_vectors": scene.object_vectors,
        "features": entry.features,
        "seconds": np.array(entry.seconds),
        **{PLAIN + name: vector for name, vector in entry.plain.items()},
    }


def _entry(arrays: Arrays) -> Entry:
    width, height = arrays["size"].tolist()
    masks = _masks(arrays["mask_shapes"], arrays["mask_bits"])
    rest, texts = unpack_text(arrays["texts"])
    objects = tuple(
        SceneObject((x0, y0, x1, y1), mask, score=score, text=text)
        for (x0, y0, x1, y1), mask, score, text in zip(
            arrays["boxes"].tolist(), masks, arrays["scores"].tolist(), texts, strict=True
        )
    )
    patches = None
    if PATCHES in arrays:
        ends = np.cumsum(arrays[f"{PATCHES}-counts"])[:-1]
        patches = tuple(np.split(arrays[PATCHES].astype(np.float32), ends))
    scene = Scene(width, height, objects, arrays["vector"], arrays["object_vectors"], patches, rest)
    plain = {name[len(PLAIN) :]: array for name, array in arrays.items() if name.startswith(PLAIN)}
    return Entry(scene, arrays["features"], float(arrays["seconds"]), plain)


def _masks(shapes: NDArray[Any], bits: NDArray[np.uint8]) -> list[Mask | None]:
    masks: list[Mask | None] = []
    start = 0
    for h, w in shapes.tolist():
        if h < 0:
            masks.append(None)
            continue
        end = start + -(-h * w // 8)
        masks.append(np.unpackbits(bits[start:end], count=h * w).reshape(h, w).astype(np.bool_))
        start = end
    return masks
