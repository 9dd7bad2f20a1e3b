"""What a collection looks like: how it is made, and whether an existing one is of the right kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from qdrant_client import models

from soir_qdrant.errors import CollectionError, ConfigError
from soir_qdrant.qdrant.payload import KEY, short_hash

Quantization: TypeAlias = Literal["scalar", "binary"] | models.QuantizationConfig
OBJECTS = "objects"  # the name of the multivector
INDEXES: dict[str, Any] = {
    "soir.namespace": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "soir.uris": models.PayloadSchemaType.KEYWORD,
    "soir.labels": models.PayloadSchemaType.KEYWORD,
    "soir.count": models.PayloadSchemaType.INTEGER,
    "soir.uri": models.PayloadSchemaType.KEYWORD,
    "soir.encoder": models.PayloadSchemaType.KEYWORD,
    "soir.objects[].label": models.PayloadSchemaType.KEYWORD,
    "soir.objects[].area": models.PayloadSchemaType.FLOAT,
    "soir.objects[].score": models.PayloadSchemaType.FLOAT,
}


def quantization_of(kind: Quantization | None) -> models.QuantizationConfig | None:
    """The configuration behind a name. Raises ConfigError for an unknown one."""
    if not isinstance(kind, str):
        return kind
    if kind == "scalar":
        int8 = models.ScalarType.INT8
        return models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=int8, quantile=0.99, always_ram=True)
        )
    if kind == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    raise ConfigError(f'quantization={kind!r}: choose "scalar", "binary", or a configuration of Qdrant')


def vectors_config(
    dim: int, vector_name: str, keep_objects: bool, quantization: Quantization | None = None
) -> Any:
    """One cosine vector, unnamed where vector_name is ""; with keep_objects also the multivector, which has
    no HNSW graph and lies on disk, since it only rescores what the first one found. quantization: of the
    first; the vectors themselves then lie on disk, to rescore with."""
    quantized = quantization_of(quantization)
    dense = models.VectorParams(
        size=dim,
        distance=models.Distance.COSINE,
        quantization_config=quantized,
        on_disk=True if quantized else None,
    )
    if not keep_objects:
        return {vector_name: dense} if vector_name else dense
    several = models.VectorParams(
        size=dim,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),
        on_disk=True,
    )
    return {vector_name: dense, OBJECTS: several}


def is_quantized(info: models.CollectionInfo, vector_name: str) -> bool:
    """Whether the dense vector is searched by a shorter form of itself."""
    vectors = info.config.params.vectors
    own = vectors.get(vector_name) if isinstance(vectors, dict) else vectors
    return bool(info.config.quantization_config or (own and own.quantization_config))


def metadata_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a collection that was made for this fingerprint."""
    return {KEY: {"fingerprint": as_json(fingerprint)}}


def check_vectors(
    info: models.CollectionInfo, collection: str, vector_name: str, dim: int | None
) -> tuple[int, bool]:
    """The length of the collection's dense vector, and whether it keeps vectors of single objects.

    Raises CollectionError where there is no such vector, or one of another kind or length than dim.
    """
    where, vectors = f"collection {collection!r}", info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors else {}
    params = named.get(vector_name)
    if params is None:
        names = ", ".join(repr(name) if name else "an unnamed one" for name in named) or "none at all"
        wanted = f"no vector {vector_name!r}" if vector_name else "no unnamed vector"
        raise CollectionError(f"{where} has {wanted}, but {names}: give vector_name, or another collection")
    if params.multivector_config is not None or params.distance != models.Distance.COSINE:
        kind = "multivectors" if params.multivector_config else f"the distance {params.distance}"
        raise CollectionError(
            f"{where} was made for {kind}, not for one cosine vector an image: ingest into a new collection"
        )
    if dim is not None and params.size != dim:
        raise CollectionError(
            f"{where} holds vectors of {params.size} numbers, here they have {dim}: take the profile it was "
            "filled with, or ingest into a new collection"
        )
    several = named.get(OBJECTS)
    return params.size, bool(several and several.multivector_config and several.size == params.size)


def stored_fingerprint(info: models.CollectionInfo) -> dict[str, Any] | None:
    """The fingerprint in the collection's metadata, where the server (1.16 and later) and the client keep
    some."""
    metadata = getattr(info.config, "metadata", None) or {}
    fingerprint: dict[str, Any] | None = (metadata.get(KEY) or {}).get("fingerprint")
    return fingerprint


def check_fingerprint(theirs: Mapping[str, Any], ours: Mapping[str, Any], collection: str) -> None:
    """Raises CollectionError, with both fingerprints and the keys in which they differ."""
    ours = as_json(ours)
    if theirs == ours:
        return
    keys = ", ".join(differing(theirs, ours))
    raise _mismatch(collection, f"{json.dumps(theirs, sort_keys=True)} ({short_hash(theirs)})", ours, keys)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys, dotted where they are nested, whose values are not the same."""
    keys = []
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            keys += [f"{key}.{inner}" for inner in differing(mine, theirs)]
        elif mine != theirs:
            keys.append(key)
    return keys


def check_point(payload: Mapping[str, Any] | None, ours: Mapping[str, Any], collection: str) -> None:
    """The same, for a collection without metadata: by the short hash in the payload of one of its points."""
    encoder = ((payload or {}).get(KEY) or {}).get("encoder")
    if encoder is None:
        raise CollectionError(
            f"collection {collection!r} holds points that this package did not write: choose another name"
        )
    if encoder != short_hash(as_json(ours)):
        raise _mismatch(collection, f"unknown but for its hash ({encoder})", as_json(ours), "")


def _mismatch(collection: str, theirs: str, ours: Mapping[str, Any], keys: str) -> CollectionError:
    return CollectionError(
        f"collection {collection!r} was filled with another encoder or other settings"
        f"{f' ({keys})' if keys else ''}; vectors of the two cannot be compared.\n"
        f"its fingerprint:  {theirs}\n"
        f"this fingerprint: {json.dumps(ours, sort_keys=True)} ({short_hash(ours)})\n"
        "Take the profile and settings it was filled with, or ingest into a new collection"
    )


def as_json(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from the server: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain
