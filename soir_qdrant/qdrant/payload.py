"""The id of a point, what is written beside its vector, and the box that is read back from it.

`payload["soir"]` holds the places of the image's files (`uri`, `uris` ..., see identity.py), `width`,
`height`, `sha256` (of the file), `pixels` (hash of the decoded image), `encoder` (short hash of the
fingerprint), `recipe` (of all that made the point, see recipe.py), `namespace` where there is one, `by_user`
where the user gave the objects, `objects` (each with `box` in pixels, `score`, `area` as a fraction of the
image, and where known `label`, `code` and `text`), `text` (read elsewhere in the image), `labels` (the
different ones, sorted), `count`, and `patches` (of each object, see `pack_patches`). Where no object was found,
the whole image is listed as the one `stand_in`, and `count` is 0. The user's own keys lie beside "soir".

`code` is a sketch of the object's vector: its first c numbers (512 by default), four bits each (codes.py). It
costs 346 characters an object, lets a hit say which object matched, and orders hits anew
(`rerank="codes"`). `best_object` takes the object's own vectors instead where the collection keeps them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticSerializationError, to_jsonable_python

from soir_qdrant.errors import ConfigError, SoirError
from soir_qdrant.geometry.crops import object_pixels
from soir_qdrant.qdrant.codes import cosines, decode, encode
from soir_qdrant.qdrant.detail import missing_detail
from soir_qdrant.qdrant.identity import KEY as KEY
from soir_qdrant.qdrant.identity import Place, as_payload
from soir_qdrant.recipe import short_hash as short_hash
from soir_qdrant.types import Box, LoadedImage, Scene, SceneObject, Vector

SURENESS = 3  # standard deviations of the likeness in an image that a score is worth, where a box is chosen
SHAPE = 0.5  # and those that a box loses for how far its aspect is off, as a logarithm
TOLERANCE = 0.2  # of that, which is usual
SPREAD = 0.1  # as which a larger standard deviation counts: that of a few objects, of which one is the thing
PATCHES = "patches"  # in payload["soir"]: of each object its patches, as `pack_patches` writes them


class PayloadError(SoirError):
    """A user's payload cannot be stored beside an image."""


def clean_payload(user: Mapping[str, Any] | None) -> dict[str, Any]:
    """The user's payload as JSON values (dates and UUIDs become text).

    Raises PayloadError for one that is no mapping with text keys, has the key "soir", or holds something
    that JSON has no form for.
    """
    if user is None:
        return {}
    if not isinstance(user, Mapping) or not all(isinstance(key, str) for key in user):
        raise PayloadError("payload is not a dict with text keys")
    if KEY in user:
        raise PayloadError(f'payload has the key "{KEY}", which is kept for this package: rename it')
    return {key: _as_json(key, value) for key, value in user.items()}


def _as_json(key: str, value: Any) -> Any:
    """One value of a user's payload; NumPy's numbers and arrays become plain ones."""
    try:
        plain = to_jsonable_python(value, fallback=_of_numpy)
        json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()
        key.encode()
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"payload key {key!r} cannot be written as JSON: {error}") from error
    return plain


def _of_numpy(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@dataclass(frozen=True, slots=True)
class Origin:
    """What made a point. encoder, recipe: short hashes of the fingerprint and of all that made it. namespace:
    "" for none. codes: numbers of each object's vector to keep, 0 for none. by_user: the user gave the objects.
    """

    encoder: str
    recipe: str
    namespace: str = ""
    codes: int = 0
    by_user: bool = False


def build_payload(
    image: LoadedImage, scene: Scene, origin: Origin, user: Mapping[str, Any], places: Iterable[Place]
) -> dict[str, Any]:
    """The whole payload of a point. user: from `clean_payload`. places: where the image's files lie. Boxes are in
    pixels of the whole image, at whatever size it was decoded."""
    width, height = image.full_size or (scene.width, scene.height)
    scale = (width / scene.width, height / scene.height) * 2
    objects = [
        {"box": _scaled(item.box, scale), **_object(item, scene.width, scene.height, row, origin.codes)}
        for item, row in zip(scene.objects, scene.object_vectors, strict=True)
    ]
    return {
        KEY: {
            **as_payload(places),
            "width": width,
            "height": height,
            "sha256": image.sha256,
            "pixels": image.pixels,
            "encoder": origin.encoder,
            "recipe": origin.recipe,
            **({"namespace": origin.namespace} if origin.namespace else {}),
            **({"by_user": True} if origin.by_user else {}),
            "objects": objects,
            "labels": sorted({item.label for item in scene.objects if item.label is not None}),
            **({"text": scene.text} if scene.text else {}),
            "count": sum(not item.stand_in for item in scene.objects),
            **({} if scene.patches is None else {PATCHES: [pack_patches(rows) for rows in scene.patches]}),
        },
        **user,
    }


def _scaled(box: Box, scale: Sequence[float]) -> list[float]:
    return [round(float(value) * factor, 2) for value, factor in zip(box, scale, strict=True)]


def _object(item: SceneObject, width: int, height: int, row: Vector, codes: int) -> dict[str, Any]:
    stored: dict[str, Any] = {"score": round(float(item.score), 4)}
    if item.stand_in:  # no object of that size was found: filters by score and area are not to match
        stored |= {"score": 0.0, "stand_in": True}
    else:
        stored["area"] = round(object_pixels(item, width, height) / (width * height), 6)
    if item.label is not None:
        stored["label"] = item.label
    if item.text:
        stored["text"] = item.text
    if codes:
        stored["code"] = encode(row, codes)
    return stored


def pack_patches(rows: Vector) -> str:
    """The signs of rows, float32 [n, d], as base64 of one bit a number, d a multiple of 8."""
    return base64.b64encode(pack_signs(rows).tobytes()).decode()


def unpack_patches(packed: str, dim: int) -> Vector:
    """What `pack_patches` kept, float32 [n, dim], unit rows of +-dim^-1/2. Raises ConfigError for rows of
    another length."""
    stored = np.frombuffer(base64.b64decode(packed), np.uint8)
    if not len(stored) or 8 * len(stored) % dim:
        raise ConfigError(f"{len(stored)} bytes of patches are no rows of {dim} bits: ingest again")
    return unpack_signs(stored.reshape(-1, dim // 8))


def pack_signs(rows: Vector) -> NDArray[np.uint8]:
    """The signs of rows, float32 [n, d], a bit a number: uint8 [n, d / 8]."""
    return np.packbits(rows > 0, axis=1)


def unpack_signs(packed: NDArray[np.uint8]) -> Vector:
    """What `pack_signs` kept, float32 [n, d], unit rows of +-d^-1/2."""
    signs = np.unpackbits(packed, axis=1).astype(np.float32)
    return (2 * signs - 1) / np.float32(signs.shape[1] ** 0.5)


def stored_codes(payload: Mapping[str, Any]) -> Vector | None:
    """The codes of a point's objects, float32 [k, c], as `decode` gives them; None where one has none."""
    objects = payload.get(KEY, {}).get("objects") or []
    if not objects or not all("code" in item for item in objects):
        return None
    return np.stack([decode(item["code"]) for item in objects])


def code_cosines(
    payload: Mapping[str, Any], query: Vector, pixels: float = 0.0, codes: Vector | None = None
) -> Vector | None:
    """How like each object is to the query by its code, float32 [k]; None without codes. See `codes.cosines`.

    pixels: of the thing in the query; what objects of far fewer lose (`detail.missing_detail`) is taken off. codes: of
    `stored_codes`, where they were decoded already.
    """
    codes = stored_codes(payload) if codes is None else codes
    return None if codes is None else cosines(codes, query) - missing_detail(payload[KEY], pixels)


@dataclass(frozen=True, slots=True)
class Match:
    """The stored object that a query is most likely of. index: in `payload["soir"]["objects"]`. score: how like the
    most similar one is, as far as it can be told from what is stored: -1..1, or None."""

    index: int
    box: Box
    score: float | None


def best_object(
    payload: Mapping[str, Any],
    query: Vector,
    rows: Sequence[Sequence[float]] | Vector | None = None,
    *,
    pixels: float = 0.0,
    aspect: float = 0.0,
    codes: Vector | None = None,
) -> Match | None:
    """The stored object that is most like the query, or None where that cannot be known.

    query: float32 [D]. rows: the point's object vectors, [k, D], where the collection keeps them: the
    largest dot product wins. Without them the codes in the payload decide, and the query may be several looks,
    float32 [L, D], and of so many pixels: see `code_cosines`, which codes are handed to; of objects that are about as
    like it, the `likeliest`, for which its aspect is read. A single object needs neither.
    """
    objects = payload.get(KEY, {}).get("objects") or []
    scores: NDArray[np.float32] | None
    if rows is not None and len(rows) == len(objects) > 0:
        scores = np.asarray(rows, np.float32) @ query
        best = int(np.argmax(scores))
    else:
        scores = code_cosines(payload, query, pixels, codes)
        best = 0 if scores is None else likeliest(payload, scores, aspect)
    if scores is None and len(objects) != 1:
        return None
    x0, y0, x1, y1 = (float(value) for value in objects[best]["box"])
    return Match(best, (x0, y0, x1, y1), None if scores is None else float(scores.max()))


def likeliest(payload: Mapping[str, Any], likeness: NDArray[np.floating], aspect: float = 0.0) -> int:
    """The object that a query is most likely of: of those that are about as like it, one that was detected surely and
    is about as wide for its height.

    likeness: [k], of each object. aspect: width by height of the query's thing; 0 where that is not known. How much
    both count: docs/concepts/search.md.
    """
    objects = payload[KEY]["objects"]
    worth = SURENESS * np.array([item.get("score", 1.0) for item in objects])
    if aspect:
        boxes = np.array([item["box"] for item in objects], np.float64)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
        off = np.abs(np.log(sides[:, 0] / sides[:, 1] / aspect))
        worth -= SHAPE * np.maximum(off - TOLERANCE, 0)
    return int(np.argmax(likeness + min(likeness.std(), SPREAD) * worth))


def shown(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload without codes and patches, which mean nothing to a reader."""
    soir = payload.get(KEY)
    if not isinstance(soir, Mapping) or "objects" not in soir:
        return dict(payload)
    objects = [{key: value for key, value in item.items() if key != "code"} for item in soir["objects"]]
    readable = {key: value for key, value in soir.items() if key != PATCHES}
    return {**payload, KEY: {**readable, "objects": objects}}
