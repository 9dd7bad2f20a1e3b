"""What made a point. Two answers, both JSON-able and the same on every machine:

`fingerprint` is what two vectors must share to be compared. It lies in the collection's metadata, and
another one is refused. `recipe` is everything that decides what is stored of an image. Its short hash lies
in each point's payload under `soir.recipe`, so that a point made by other settings or trained files can be
told, and made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from soir_qdrant.config import SCHEMA, Settings
from soir_qdrant.types import SceneObject

VERSION = 1  # of the code behind the settings: raise it where the same settings make other points
SHIPPED = Path(str(resources.files("soir_qdrant") / "data"))
BY_FINGERPRINT = {"encoder", "crop"}  # groups of settings that the fingerprint covers
SCENE = "scene"  # in the fingerprint of those that describe whole images
ONLY_MAO = ("iterations", "lr", "alpha", "blocks")
AS_BEFORE = {  # settings that came later, where they refine images as 0.1 did: its collections go on
    "refine_query": True,
    "weight_decay": 0.01,
    "upsample": False,
    "normalise": "crop",
    "token": "joint",
}
OF_FAINT = ("full_score", "texture_score")  # of the crop's: they decide what is stored of faint objects
OF_QUERIES = {"query_turns", "query_lights"}  # of the crop's: they change no point
NOT_COMPARED = {"whitening", "by_score"}  # of the vector's: by its digest; weights of objects


def short_hash(content: Mapping[str, Any]) -> str:
    """16 hex digits that stand for a fingerprint or a recipe."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(
    settings: Settings, *, encoder: str, whitening: str | None, dim: int, scene: str = ""
) -> dict[str, Any]:
    """What two vectors must share to be compared.

    Args:
        settings: of the pipeline.
        encoder: its fingerprint: weights, adapter, input size.
        whitening: digest of the projection, or None.
        dim: length of the stored vector.
        scene: fingerprint of the scene encoder, where there is one.
    """
    vector = settings.vector.model_dump(mode="json", exclude=NOT_COMPARED)
    refines = settings.vector.pooling == "mao"
    for name in () if refines else ONLY_MAO:
        del vector[name]
    for name, before in AS_BEFORE.items():
        if not refines or vector[name] == before:
            del vector[name]
    return {
        "schema": SCHEMA,
        "encoder": encoder,
        "crop": settings.crop.model_dump(mode="json", exclude={*OF_FAINT, *OF_QUERIES}),
        "vector": vector,
        "whitening": whitening,
        "dim": dim,
        **({SCENE: {**settings.scene.model_dump(exclude={"head"}), "head": scene}} if settings.scene else {}),
    }


def recipe(
    settings: Settings, fingerprint: Mapping[str, Any], replaced: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Everything of a pipeline that decides what is stored of an image.

    A setting that names a file or folder counts by the content of that, wherever it lies. Not part of it:
    the encoder's `batch`, `device` and `dtype`, and the precision of an export, which change digits of numbers, and
    not what they stand for.

    Args:
        settings: of the pipeline. A new group of settings, or field of one, is part of the recipe by itself.
        fingerprint: of the pipeline.
        replaced: detector or segmenter that stand in for those of the settings -> their names.
    """
    groups = settings.model_dump(mode="json")
    vector, crop = groups.pop("vector"), groups["crop"]
    return {
        "version": VERSION,
        "fingerprint": short_hash(fingerprint),
        "by_score": vector["by_score"],
        "replaced": dict(replaced or {}),
        **{name: crop[name] for name in OF_FAINT if crop[name]},
        **{
            name: _by_content(name, values)
            for name, values in groups.items()
            if name not in BY_FINGERPRINT and isinstance(values, dict)
        },
    }


def of_point(
    recipe: Mapping[str, Any],
    *,
    codes: int,
    patches: bool,
    objects: Iterable[SceneObject] | None = None,
    reduced: int | None = None,
) -> str:
    """The short hash that is stored with a point.

    Args:
        recipe: of the pipeline.
        codes: numbers of each object's vector in the payload.
        patches: whether the objects' patches are in the payload.
        objects: those that the user gave; they count instead of the detector. None: they were detected.
        reduced: the pixels that were enough of an image which was decoded at a reduced size; None for a whole one.
    """
    ingredients = {**recipe, "codes": codes, "patches": patches}
    if reduced is not None:
        ingredients["reduced"] = reduced
    if objects is not None:
        ingredients |= {"detector": None, "objects": _objects_digest(objects)}
    return short_hash(ingredients)


def _objects_digest(objects: Iterable[SceneObject]) -> str:
    """Of boxes, masks, labels and scores as they were handed in, which may be nonsense yet."""
    digest = hashlib.sha256()
    for item in objects:
        try:
            box = np.asarray(item.box, np.float64).tolist()
            digest.update(repr((box, item.label, float(item.score))).encode())
            if item.mask is not None:
                mask = np.asarray(item.mask, np.bool_)
                digest.update(repr(mask.shape).encode() + np.packbits(mask).tobytes())
        except (AttributeError, OverflowError, TypeError, ValueError):
            digest.update(repr(item).encode(errors="replace"))
    return digest.hexdigest()[:16]


def _by_content(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if name == "kind" else content(group, value) for name, value in sorted(values.items())
    }


def content(group: str, value: Any) -> Any:
    """A digest instead of a file's name, so that the same file counts the same wherever it lies."""
    if not isinstance(value, str) or not value:
        return value
    path = SHIPPED / f"{group}.safetensors" if value == "shipped" else Path(value).expanduser()
    if path.is_file():
        return _digest([path])
    if path.is_dir():
        return _digest(sorted(path.glob("*.safetensors")) or sorted(path.glob("*.json")))
    return value


def _digest(files: list[Path]) -> str:
    stats = [(file, file.stat()) for file in files]
    return _read_digest(tuple((str(file.absolute()), s.st_size, s.st_mtime_ns) for file, s in stats))


@lru_cache(maxsize=64)
def _read_digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """sha256 of the files' contents, read anew where size or time of one has changed."""
    digest = hashlib.sha256()
    for name, size, _ in files:
        with Path(name).open("rb") as stream:
            if name.endswith(".safetensors"):
                digest.update(_header(stream, size))
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def _header(stream: BinaryIO, size: int) -> bytes:
    """That of a safetensors file in one order: it is written in another one each time."""
    length = int.from_bytes(stream.read(8), "little")
    try:
        header = json.loads(stream.read(min(length, size)))
    except ValueError:  # damaged: whoever loads it says so
        stream.seek(0)
        return b""
    return json.dumps(header, sort_keys=True).encode()
