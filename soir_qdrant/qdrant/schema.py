"""What a collection looks like: how it is made, and whether an existing one is of the right kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from qdrant_client import models

from soir_qdrant.errors import CollectionError, ConfigError
from soir_qdrant.qdrant.payload import KEY, short_hash

Preset: TypeAlias = Literal["scalar", "binary", "turbo"]
Quantization: TypeAlias = Preset | models.QuantizationConfig
OBJECTS = "objects"  # the name of the multivector
CODES = "codes"  # the name of another one: the first numbers of each object's vector
CODE_NUMBERS = 256  # see docs/concepts/search.md
FULL_TEXT = models.TextIndexParams(
    type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True
)
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
    "soir.objects[].text": FULL_TEXT,
    "soir.text": FULL_TEXT,
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
    if kind == "turbo":
        if not hasattr(models, "TurboQuantization"):
            raise ConfigError('quantization="turbo": update qdrant-client to 1.18 or later, server too')
        return models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(always_ram=True))
    raise ConfigError(
        f'quantization={kind!r}: choose "scalar", "binary", "turbo", or a configuration of Qdrant'
    )


def vectors_config(
    dim: int,
    vector_name: str,
    keep_objects: bool,
    quantization: Quantization | None = None,
    code_vectors: Quantization | None = None,
) -> Any:
    """One cosine vector, unnamed where vector_name is "", and up to two multivectors that only rescore what it
    found: they have no HNSW graph, and lie on disk.

    Args:
        dim: of the vectors.
        vector_name: of the one.
        keep_objects: with the multivector of the objects' vectors.
        quantization: of the one; the vectors themselves then lie on disk, to rescore with.
        code_vectors: with the multivector of the objects' codes, which are compared in memory in this form.
    """
    quantized = quantization_of(quantization)
    dense = models.VectorParams(
        size=dim,
        distance=models.Distance.COSINE,
        quantization_config=quantized,
        on_disk=True if quantized else None,
    )
    vectors = {vector_name: dense}
    if keep_objects:
        vectors[OBJECTS] = _several(dim)
    if code_vectors:
        codes = _several(min(CODE_NUMBERS, dim))
        codes.quantization_config, codes.datatype = quantization_of(code_vectors), models.Datatype.FLOAT16
        vectors[CODES] = codes
    return dense if list(vectors) == [""] else vectors


def _several(size: int) -> models.VectorParams:
    return models.VectorParams(
        size=size,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),
        on_disk=True,
    )


def is_quantized(info: models.CollectionInfo, vector_name: str) -> bool:
    """Whether the dense vector is searched by a shorter form of itself."""
    vectors = info.config.params.vectors
    own = vectors.get(vector_name) if isinstance(vectors, dict) else vectors
    return bool(info.config.quantization_config or (own and own.quantization_config))


def code_numbers(info: models.CollectionInfo) -> int:
    """Numbers of each code in the multivector of codes; 0 where the collection has none."""
    vectors = info.config.params.vectors
    codes = vectors.get(CODES) if isinstance(vectors, dict) else None
    return codes.size if codes and codes.multivector_config else 0


def metadata_of(fingerprint: Mapping[str, Any], details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of a collection that was made for this fingerprint. details: what was chosen for it."""
    return {KEY: {"fingerprint": as_json(fingerprint), **({"details": dict(details)} if details else {})}}


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
        raise CollectionError(
            f"{where} has {wanted}, but {names}: give vector_name (--vector-name), or another collection"
        )
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
    fingerprint: dict[str, Any] | None = _own_metadata(info).get("fingerprint")
    return fingerprint


def stored_details(info: models.CollectionInfo) -> dict[str, Any]:
    """What was chosen when the collection was made, where its metadata say so."""
    return dict(_own_metadata(info).get("details") or {})


def _own_metadata(info: models.CollectionInfo) -> Mapping[str, Any]:
    metadata = getattr(info.config, "metadata", None) or {}
    return metadata.get(KEY) or {}


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
        "Take the profile and settings it was filled with (those of version 0.1: profile embedded-0.1), or ingest "
        "into a new collection"
    )


def as_json(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from the server: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain
