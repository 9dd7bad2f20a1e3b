"""What every served model takes and gives: the one source of names, shapes, dtypes and tolerances.

The export writes ONNX files after it, `repository` writes Triton's configuration from it, and clients
check a server against it. Standard library only: the smallest client can read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from soir_qdrant.errors import ConfigError
from soir_qdrant.serving.everyday_spec import EVERYDAY as EVERYDAY
from soir_qdrant.serving.everyday_spec import everyday as everyday
from soir_qdrant.serving.model_spec import TOLERANCES as TOLERANCES
from soir_qdrant.serving.model_spec import ModelSpec as ModelSpec
from soir_qdrant.serving.model_spec import Precision as Precision
from soir_qdrant.serving.model_spec import Tensor as Tensor
from soir_qdrant.serving.model_spec import Tolerance as Tolerance
from soir_qdrant.serving.model_spec import facts
from soir_qdrant.serving.scene_spec import SCENE as SCENE
from soir_qdrant.serving.scene_spec import scene as scene
from soir_qdrant.serving.text_spec import TEXT as TEXT
from soir_qdrant.serving.text_spec import text
from soir_qdrant.serving.texture_spec import TEXTURE as TEXTURE
from soir_qdrant.serving.texture_spec import texture as texture

ENCODER = "soir_encoder"
TRUNK = "soir_trunk"
DETECTOR = "soir_detector"
SEGMENTER = "soir_segmenter"
SEGMENTER_ENCODER = "soir_segmenter_encoder"
SEGMENTER_DECODER = "soir_segmenter_decoder"

LAYERS = 4  # rows of `Encoding.layers`
BEST_CELLS = 1000  # of a detector's grid, that may name a box
SMALL = 8  # pixels along a token, in the small image that the detector's head sees
MAX_WINDOWS, MAX_CELLS = 100, 148  # boxes of an image; tokens along a side of one


def encoder(
    *,
    size: int,
    patch: int,
    dim: int,
    dim_out: int,
    cls: int = 1,
    layers: int = LAYERS,
    row_dim: int = 0,
    projection: int = 0,
) -> ModelSpec:
    """A vision transformer on square crops, each with the patches of it that are looked at, and their weights
    in the means.

    size, patch: sides in pixels. dim: of the tokens; dim_out: of the descriptor. cls: tokens before those of
    the patches: CLS, registers. row_dim: numbers of each patch for late interaction, 0 where it gives none;
    projection: digest of what makes them of its token."""
    of_rows = {"row_dim": row_dim, "projection": projection} if row_dim else {}  # as before there were any
    grid = (size // patch) ** 2
    some = max(grid // 8, 1), max(grid // 2, 1), grid
    tokens = Tensor("tokens", "FP32", (-1, dim), *((count + cls, dim) for count in some))
    return ModelSpec(
        ENCODER,
        "encoder",
        facts(size=size, patch=patch, dim=dim, dim_out=dim_out, cls=cls, layers=layers, **of_rows),
        (
            Tensor("crops", "UINT8", (size, size, 3)),
            Tensor("patches", "INT64", (-1,), *((count,) for count in some)),
            Tensor("weights", "FP32", (-1,), *((count,) for count in some)),
        ),
        (
            Tensor("descriptor", "FP32", (dim_out,)),
            Tensor("layers", "FP32", (layers, dim)),
            tokens,  # by far the largest: asked for only by the refinement
            *([Tensor("rows", "FP16", (-1, row_dim), *((m, row_dim) for m in some))] if row_dim else []),
        ),
        max_batch=32,
        usual_batch=8,
        delay_us=2000,
    )


def tokens(
    *,
    patch: int,
    dim: int,
    skip: int,
    min_side: int = 14,
    usual_side: int = 448,
    max_side: int = 1232,
) -> ModelSpec:
    """The trunk alone, for windows and for detectors that run at the client: images of any shape, the patches' tokens
    `skip` blocks before the last. min_side, usual_side, max_side: in pixels; engines are sized for the largest."""

    def side(length: int) -> tuple[int, int, int]:
        cells = max(length // patch, 1)
        return cells * patch, cells * patch, 3

    def count(length: int) -> tuple[int, int]:
        return max(length // patch, 1) ** 2, dim

    images = Tensor("images", "UINT8", (-1, -1, 3), side(min_side), side(usual_side), side(max_side))
    return ModelSpec(
        TRUNK,
        "tokens",
        facts(patch=patch, dim=dim, skip=skip, min_side=min_side, usual_side=usual_side, max_side=max_side),
        (images,),
        (Tensor("tokens", "FP32", (-1, dim), count(min_side), count(usual_side), count(max_side)),),
        # Only images of one shape share a batch, and a large one fills a device by itself.
        max_batch=2,
        usual_batch=2,
        delay_us=500,
    )


def token_head(*, patch: int, dim: int, max_cells: int = MAX_CELLS) -> ModelSpec:
    """The trained detector, trunk, tiles and head: one image a request, without a batch dimension.

    image: sides multiples of `patch`. small: the same image, SMALL pixels along a token. rows, columns:
    of the grid of tokens, those of each tile. boxes: x0 y0 x1 y1 in tokens of the grid, of the best cells in
    their order on it; scores 0..1. tokens: of the grid, for the segmenter. max_cells: along a side.
    """
    some = ((1, 1), (37, 51), (max_cells, max_cells))

    def at(scale: int, *rest: int) -> tuple[tuple[int, ...], ...]:
        return tuple((h * scale, w * scale, *rest) for h, w in some)

    return ModelSpec(
        DETECTOR,
        "token_head",
        facts(patch=patch, dim=dim, max_cells=max_cells),
        (
            Tensor("image", "UINT8", (-1, -1, 3), *at(patch, 3)),
            Tensor("small", "UINT8", (-1, -1, 3), *at(SMALL, 3)),
            Tensor("rows", "INT64", (-1, -1), (1, 1), (1, 37), (5, 37)),
            Tensor("columns", "INT64", (-1, -1), (1, 1), (2, 29), (5, 37)),
        ),
        (
            Tensor("boxes", "FP32", (BEST_CELLS, 4)),
            Tensor("scores", "FP32", (BEST_CELLS,)),
            Tensor("tokens", "FP32", (-1, -1, dim), *at(1, dim)),
        ),
    )


def token_unet(*, dim: int, side: int) -> ModelSpec:
    """The trained segmenter: windows of an image, and the tokens around them, to the chance of each of their pixels to
    be the object's.

    tokens: of g grids (clients send one). windows: m of each. places: x, y, width, height of a window, as shares of the
    grid. boxes: in pixels of the window. side: of a window.
    """

    def at(*rest: int) -> tuple[tuple[int, ...], ...]:
        return tuple((1, count, *rest) for count in (1, 16, MAX_WINDOWS))

    grids = ((1, 1, 1, dim), (1, 37, 51, dim), (1, MAX_CELLS, MAX_CELLS, dim))
    return ModelSpec(
        SEGMENTER,
        "token_unet",
        facts(dim=dim, side=side),
        (
            Tensor("tokens", "FP32", (-1, -1, -1, dim), *grids),
            Tensor("windows", "UINT8", (-1, -1, side, side, 3), *at(side, side, 3)),
            Tensor("places", "FP32", (-1, -1, 4), *at(4)),
            Tensor("boxes", "FP32", (-1, -1, 4), *at(4)),
        ),
        (Tensor("chances", "FP32", (-1, -1, side, side), *at(side, side)),),
    )


def owlv2(*, size: int, patch: int) -> ModelSpec:
    """OWLv2's objectness: a box of every patch, x0 y0 x1 y1 in shares of the padded square, suppressed by nobody."""
    patches = (size // patch) ** 2
    return ModelSpec(
        DETECTOR,
        "owlv2",
        facts(size=size, patch=patch),
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
        facts(size=size, channels=channels, grid=grid),
        (Tensor("images", "UINT8", (size, size, 3)),),
        (Tensor("embeddings", "FP32", (channels, grid, grid)),),
        max_batch=4,
        usual_batch=1,
        delay_us=1000,
    )


def sam_decoder(*, size: int, channels: int, grid: int, max_boxes: int = 64) -> ModelSpec:
    """SAM's prompt encoder and mask decoder: one image, any number of boxes, in pixels of the square; for each the
    mask of highest predicted quality, as logits at low resolution. Without a batch dimension: a graph with both
    images and boxes free fails for more than one image."""
    counts = (1, 16, max_boxes)
    side = 4 * grid
    masks = ((1, count, side, side) for count in counts)
    return ModelSpec(
        SEGMENTER_DECODER,
        "sam_decoder",
        facts(size=size, channels=channels, grid=grid, max_boxes=max_boxes),
        (
            Tensor("embeddings", "FP32", (1, channels, grid, grid)),
            Tensor("boxes", "FP32", (1, -1, 4), *((1, count, 4) for count in counts)),
        ),
        (
            Tensor("masks", "FP32", (1, -1, side, side), *masks),
            Tensor("quality", "FP32", (1, -1), *((1, count) for count in counts)),
        ),
    )


KINDS: Mapping[str, Callable[..., ModelSpec]] = {
    "encoder": encoder,
    "tokens": tokens,
    "token_head": token_head,
    "token_unet": token_unet,
    "everyday": everyday,
    "owlv2": owlv2,
    "sam_encoder": sam_encoder,
    "sam_decoder": sam_decoder,
    "scene": scene,
    "text": text,
    "texture": texture,
}


def describe(model: ModelSpec, fingerprint: str | None = None) -> dict[str, str]:
    """What travels with a model, in the ONNX metadata and in Triton's configuration."""
    description = {
        "soir_spec": model.hash,
        "soir_kind": model.kind,
        "soir_facts": json.dumps(dict(model.facts), sort_keys=True),
    }
    return description | ({"soir_fingerprint": fingerprint} if fingerprint else {})


def read(description: Mapping[str, str], where: str) -> tuple[ModelSpec, str]:
    """The spec and the fingerprint out of what `describe` wrote.

    where: the model in words. Raises ConfigError where they are missing, or mean something else in this version.
    """
    needed = ("soir_spec", "soir_kind", "soir_facts", "soir_fingerprint")
    missing = [key for key in needed if not description.get(key)]
    if missing:
        raise ConfigError(
            f"{where} carries no {', '.join(missing)}: it was not written by `soir export`, or only its "
            "configuration was; export the model and load it again"
        )
    try:
        model = make(description["soir_kind"], json.loads(description["soir_facts"]))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: its description cannot be read ({error}); export it again") from error
    if model.hash != description["soir_spec"]:
        raise ConfigError(
            f"{where} was exported for spec {description['soir_spec']}, and this version of soir_qdrant speaks "
            f"{model.hash}: export it again with this version, or use the version that exported it"
        )
    return model, description["soir_fingerprint"]


def make(kind: str, facts: Mapping[str, int]) -> ModelSpec:
    """Of a kind of model. Raises ConfigError for an unknown one."""
    if kind not in KINDS:
        raise ConfigError(f"a model of kind {kind!r}: known are {', '.join(KINDS)}")
    return KINDS[kind](**facts)
