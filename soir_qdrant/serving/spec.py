"""What every served model takes and gives: the one source of names, shapes, dtypes and tolerances.

The export writes ONNX files after it, `repository` writes Triton's configuration from it, and clients
check a server against it. Standard library only: the smallest client can read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from soir_qdrant.errors import ConfigError

DType = Literal["UINT8", "INT64", "FP32"]
Precision = Literal["fp32", "fp16"]

ENCODER = "soir_encoder"
DETECTOR = "soir_detector"
SEGMENTER_ENCODER = "soir_segmenter_encoder"
SEGMENTER_DECODER = "soir_segmenter_decoder"

LAYERS = 4  # rows of `Encoding.layers`


@dataclass(frozen=True, slots=True)
class Tensor:
    """dims: without the batch; -1 where the size is free. least, usual, most: the same with the free ones
    filled in, for TensorRT's shape profiles and the warm-up; empty where none is free."""

    name: str
    dtype: DType
    dims: tuple[int, ...]
    least: tuple[int, ...] = ()
    usual: tuple[int, ...] = ()
    most: tuple[int, ...] = ()

    def at(self, which: Literal["least", "usual", "most"]) -> tuple[int, ...]:
        """The dims with no free one."""
        filled: tuple[int, ...] = getattr(self, which)
        return filled or self.dims


@dataclass(frozen=True, slots=True)
class Tolerance:
    """error: largest difference, as a share of the largest value of the output. cosine: least, over the
    rows of an output."""

    error: float
    cosine: float


# Of an exported model against torch in float32. Half precision is judged by directions, which is what
# retrieval sees, rather than by single numbers.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(error=1e-3, cosine=0.99999),
    "fp16": Tolerance(error=0.1, cosine=0.999),
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model.

    kind, facts: what `make` needs to build this spec again. max_batch: 0 where the model takes no batch
    dimension; its dims are then whole shapes. usual_batch: what clients send at once. delay_us: how long
    the server waits for more requests to join a batch.
    """

    name: str
    kind: str
    facts: tuple[tuple[str, int], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    usual_batch: int
    delay_us: int

    @property
    def hash(self) -> str:
        """16 hex digits that change with what client and model must agree on; not with the batching."""
        tensors = [[(t.name, t.dtype, t.dims) for t in side] for side in (self.inputs, self.outputs)]
        text = json.dumps([self.name, self.kind, self.facts, tensors, self.max_batch > 0])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fact(self, name: str) -> int:
        return dict(self.facts)[name]

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The whole shape, -1 where it is free."""
        return (-1, *tensor.dims) if self.max_batch else tensor.dims


def _facts(**facts: int) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(facts.items()))


def encoder(
    *, size: int, patch: int, dim: int, dim_out: int, cls: int = 1, layers: int = LAYERS
) -> ModelSpec:
    """The trunk and the last block of a vision transformer, on square crops, each with the patches of it that
    are looked at.

    size, patch: sides in pixels. dim: of the tokens; dim_out: of the descriptor. cls: tokens before those of
    the patches: CLS, registers.
    """
    grid = (size // patch) ** 2
    some = max(grid // 8, 1), max(grid // 2, 1), grid
    patches = Tensor("patches", "INT64", (-1,), *((count,) for count in some))
    tokens = Tensor("tokens", "FP32", (-1, dim), *((count + cls, dim) for count in some))
    return ModelSpec(
        ENCODER,
        "encoder",
        _facts(size=size, patch=patch, dim=dim, dim_out=dim_out, cls=cls, layers=layers),
        (Tensor("crops", "UINT8", (size, size, 3)), Tensor("masks", "FP32", (size, size)), patches),
        (
            Tensor("descriptor", "FP32", (dim_out,)),
            Tensor("layers", "FP32", (layers, dim)),
            tokens,  # by far the largest: asked for only by the refinement
        ),
        max_batch=32,
        usual_batch=8,
        delay_us=2000,
    )


def tokens(
    *, patch: int, dim: int, skip: int, least: int = 14, usual: int = 448, most: int = 1232
) -> ModelSpec:
    """The trunk that detectors look through: images of any shape, the patches' tokens `skip` blocks before
    the last. least, usual, most: sides of an image in pixels; the detector's tiles have about the area of
    `usual` squared, and engines are sized for a square of `most`."""

    def side(length: int) -> tuple[int, int, int]:
        cells = max(length // patch, 1)
        return cells * patch, cells * patch, 3

    def count(length: int) -> tuple[int, int]:
        return max(length // patch, 1) ** 2, dim

    images = Tensor("images", "UINT8", (-1, -1, 3), side(least), side(usual), side(most))
    return ModelSpec(
        DETECTOR,
        "tokens",
        _facts(patch=patch, dim=dim, skip=skip, least=least, usual=usual, most=most),
        (images,),
        (Tensor("tokens", "FP32", (-1, dim), count(least), count(usual), count(most)),),
        # Only images of one shape share a batch, and a large one fills a device by itself.
        max_batch=2,
        usual_batch=2,
        delay_us=500,
    )


def owlv2(*, size: int, patch: int) -> ModelSpec:
    """OWLv2's objectness: every patch proposes one box. Boxes are x0 y0 x1 y1 in shares of the padded
    square; scores are after the sigmoid. All are returned: suppression is the client's."""
    patches = (size // patch) ** 2
    return ModelSpec(
        DETECTOR,
        "owlv2",
        _facts(size=size, patch=patch),
        (Tensor("images", "UINT8", (size, size, 3)),),
        (Tensor("boxes", "FP32", (patches, 4)), Tensor("scores", "FP32", (patches,))),
        max_batch=8,
        usual_batch=2,
        delay_us=2000,
    )


def sam_encoder(*, size: int, channels: int, grid: int) -> ModelSpec:
    """SAM's image encoder, on images padded to a square with the mean colour."""
    return ModelSpec(
        SEGMENTER_ENCODER,
        "sam_encoder",
        _facts(size=size, channels=channels, grid=grid),
        (Tensor("images", "UINT8", (size, size, 3)),),
        (Tensor("embeddings", "FP32", (channels, grid, grid)),),
        max_batch=4,
        usual_batch=1,
        delay_us=1000,
    )


def sam_decoder(*, size: int, channels: int, grid: int, most: int = 64) -> ModelSpec:
    """SAM's prompt encoder and mask decoder: one image, any number of boxes, in pixels of the square; for
    each the mask of highest predicted quality, as logits at low resolution.

    Without a batch dimension: a graph with both images and boxes free fails for more than one image.
    """
    boxes = Tensor("boxes", "FP32", (1, -1, 4), (1, 1, 4), (1, 16, 4), (1, most, 4))
    side = 4 * grid
    return ModelSpec(
        SEGMENTER_DECODER,
        "sam_decoder",
        _facts(size=size, channels=channels, grid=grid, most=most),
        (Tensor("embeddings", "FP32", (1, channels, grid, grid)), boxes),
        (
            Tensor(
                "masks", "FP32", (1, -1, side, side), (1, 1, side, side), (1, 16, side, side),
                (1, most, side, side),
            ),
            Tensor("quality", "FP32", (1, -1), (1, 1), (1, 16), (1, most)),
        ),
        max_batch=0,
        usual_batch=0,
        delay_us=0,
    )  # fmt: skip


KINDS: Mapping[str, Callable[..., ModelSpec]] = {
    "encoder": encoder,
    "tokens": tokens,
    "owlv2": owlv2,
    "sam_encoder": sam_encoder,
    "sam_decoder": sam_decoder,
}

# As published: what the checked-in configurations are made for. An export takes the sizes of its weights.
PROFILES: Mapping[str, tuple[ModelSpec, ...]] = {
    "embedded": (
        tokens(patch=14, dim=384, skip=2),
        encoder(size=224, patch=14, dim=384, dim_out=384),
    ),
    "paper": (
        owlv2(size=960, patch=16),
        sam_encoder(size=1024, channels=256, grid=64),
        sam_decoder(size=1024, channels=256, grid=64),
        encoder(size=224, patch=14, dim=768, dim_out=768),
    ),
}


def describe(spec: ModelSpec, fingerprint: str | None = None) -> dict[str, str]:
    """What travels with a model, in the ONNX metadata and in Triton's configuration."""
    told = {
        "soir_spec": spec.hash,
        "soir_kind": spec.kind,
        "soir_facts": json.dumps(dict(spec.facts), sort_keys=True),
    }
    return told | ({"soir_fingerprint": fingerprint} if fingerprint else {})


def read(told: Mapping[str, str], where: str) -> tuple[ModelSpec, str]:
    """The spec and the fingerprint out of what `describe` wrote.

    where: the model in words. Raises ConfigError where they are missing, or were written by a version of
    this package that means something else by them.
    """
    missing = [k for k in ("soir_spec", "soir_kind", "soir_facts", "soir_fingerprint") if not told.get(k)]
    if missing:
        raise ConfigError(
            f"{where} carries no {', '.join(missing)}: it was not written by `soir export`, or only its "
            "configuration was; export the model and load it again"
        )
    try:
        spec = make(told["soir_kind"], json.loads(told["soir_facts"]))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: its description cannot be read ({error}); export it again") from error
    if spec.hash != told["soir_spec"]:
        raise ConfigError(
            f"{where} was exported for spec {told['soir_spec']}, and this version of soir_qdrant speaks "
            f"{spec.hash}: export it again with this version, or use the version that exported it"
        )
    return spec, told["soir_fingerprint"]


def make(kind: str, facts: Mapping[str, int]) -> ModelSpec:
    """The spec of a kind of model. Raises ConfigError for an unknown kind."""
    if kind not in KINDS:
        raise ConfigError(f"a model of kind {kind!r}: known are {', '.join(KINDS)}")
    return KINDS[kind](**facts)
