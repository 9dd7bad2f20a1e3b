"""The values that travel through the pipeline. NumPy only: importing this loads no model library."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

RGB: TypeAlias = NDArray[np.uint8]  # [H, W, 3], 0..255, after EXIF rotation
Mask: TypeAlias = NDArray[np.bool_]
Vector: TypeAlias = NDArray[np.float32]
Box: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1, y1 exclusive


@dataclass(frozen=True, slots=True, eq=False)
class SceneObject:
    """One object of an image.

    box: x0, y0, x1, y1 in pixels of the image after EXIF rotation; x1, y1 exclusive.
    mask: bool, either [H, W] (the whole image) or [h, w] (the box, rounded outwards to whole pixels);
        None means every pixel of the box.
    score: objectness, 0..1. stand_in: the whole image, listed where no object was found in it.
    line: it is a line of text. text: what is written on it, where that was read.
    """

    box: Box
    mask: Mask | None = None
    label: str | None = None
    score: float = 1.0
    stand_in: bool = False
    line: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """A decoded image and where it came from.

    rgb: uint8 [H, W, 3]. alpha: bool [H, W], the opaque pixels, where the file has transparency.
    name: what to call it in messages. uri: stored in the payload, so that it can be opened again.
    sha256: hex digest of the file's bytes (of the pixels, where there was no file, or of a part of one). stamp: size
    of the file in bytes, and the time of its last change in nanoseconds. further: its file holds further pages or
    frames, which were not read with it. data: the file's bytes, where there was one and this is no part of it.
    full_size: width and height of the file's image, where it was decoded at a reduced size.
    """

    rgb: RGB
    name: str
    uri: str | None
    sha256: str
    alpha: Mask | None = None
    stamp: tuple[int, int] | None = None
    further: bool = False
    data: bytes | None = None
    full_size: tuple[int, int] | None = None

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def whole(self) -> tuple[int, int]:
        """Width and height of the file's image, which boxes are in pixels of."""
        return self.full_size or (self.width, self.height)

    def here(self, box: Box) -> Box:
        """A box of the file's image, in pixels of this one."""
        x, y = self.width / self.whole[0], self.height / self.whole[1]
        return box[0] * x, box[1] * y, box[2] * x, box[3] * y

    @property
    def pixels(self) -> str:
        """16 hex digits that stand for the decoded image: the same after a change of its metadata alone."""
        digest = hashlib.sha256(repr(self.rgb.shape).encode())
        digest.update(np.ascontiguousarray(self.rgb).data)
        if self.alpha is not None:
            digest.update(np.packbits(self.alpha).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """boxes: float32 [k, 4], x0 y0 x1 y1 in pixels, inside the image; scores: float32 [k], 0..1, descending."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """What an encoder says of B crops.

    descriptor: float32 [B, D_out], the model's own read-out. layers: float32 [B, L, D], the mean of the
    patch tokens under each crop's mask after each of the last L blocks, through the final LayerNorm; the
    last block's comes last. tokens: [B, N, D], those that enter the first of the encoder's `last_blocks`,
    prefix tokens first: a NumPy array or a torch tensor, on the encoder's device. patches: float16
    [B, h, w, D], what late interaction compares; of an encoder with a `projection` the rows of it,
    [B, h, w, d]. texture: float32 [B, T], see `Encoder.texture`. None, each, where it was not asked for.
    """

    descriptor: Vector
    layers: Vector
    tokens: Any = None
    patches: NDArray[np.float16] | None = None
    texture: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class QueryLook:
    """What a query object looks like to the encoder.

    descriptor: float32 [D_out], the model's own read-out; row: float32 [F], its features before whitening; both are
    its refined token where queries are refined as images are. patches: float32 [n, d], unit rows, of late
    interaction; None where they were not asked for. looks: float32 [L, F], the features of the object as it stands,
    and then turned, whose mean `row` is; None where it is refined. pixels: of the image that are the object's. aspect:
    width by height of its box.
    """

    descriptor: Vector
    row: Vector
    patches: Vector | None = None
    looks: Vector | None = None
    pixels: float = 0.0
    aspect: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """What a scene encoder says of one image.

    vectors: float32 [k, D], unit rows, one for each region. objects: k of them, where each one looks: its box,
    mask and score. whole: float32 [D], unit length, the model's own descriptor of the image.
    """

    vectors: Vector
    objects: tuple[SceneObject, ...]
    whole: Vector


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What is stored of one image.

    vector: float32 [D], unit length. object_vectors: float32 [k, D], unit rows, in the order of objects.
    patches: of each object, float32 [n, d], unit rows, for late interaction; None where not asked for.
    text: what was read in the image outside of its objects.
    """

    width: int
    height: int
    objects: tuple[SceneObject, ...]
    vector: Vector
    object_vectors: Vector
    patches: tuple[Vector, ...] | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """An image that a search returns.

    Attributes:
        id: of its point.
        score: what the hits are ordered by, larger first; `search` says of what.
        uri: where its file was when it was ingested; None for arrays.
        box: the stored object that matched best, x0, y0, x1, y1 in pixels of the image after EXIF rotation;
            None where that cannot be known.
        payload: what was stored beside the vector.
        vector: float32 [D], the image's, where it was asked for.
        object: number of the matched object in `payload["soir"]["objects"]`.
        mask: bool [H, W], the matched object's pixels, where they were asked for.
        object_vectors: float32 [k, D], of the image's objects, for rerankers that need them; None in what a
            search returns.
    """

    id: str | int
    score: float
    uri: str | None
    box: Box | None
    payload: dict[str, Any]
    vector: Vector | None = None
    object: int | None = None
    mask: Mask | None = None
    object_vectors: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HitGroup:
    """The best images of those that share a payload value.

    Attributes:
        key: that value.
        hits: best first.
    """

    key: str | int
    hits: list[Hit]


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """An image and the place of one thing in it, to search with.

    Attributes:
        image: in any form that the ingestor takes.
        box: x0, y0, x1, y1 in pixels.
    """

    image: Any
    box: Box


@dataclass(frozen=True, slots=True)
class Text:
    """Words to search with, where the encoder reads text; a bare string is a path.

    Attributes:
        words: such as "a red mug".
        prompts: what they are put into, such as "a photo of {}" and "{} on a shelf": the mean of all is searched
            for. None: the words as they are.
    """

    words: str
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """An image of a thing and words that change it, to search with: this mug, but blue.

    Attributes:
        image: in any form that the ingestor takes, or a Crop.
        words: what is wanted, such as "a blue mug".
        instead_of: what the image shows, such as "a mug". With it, the image's vector is moved by `weight` in the
            direction from these words to those (arXiv 2502.07215); without, the weighted mean is searched for.
        weight: of the words, 0..1 in a mean.
    """

    image: Any
    words: str
    instead_of: str | None = None
    weight: float = 0.5


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be ingested, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class IngestReport:
    """What became of the images.

    Attributes:
        added: new in the collection.
        updated: were in it, and were made anew.
        skipped: are in it, and were left as they are.
        stale: of the skipped ones, those that were stored by another recipe (detector, segmenter, heads,
            thresholds ...): `on_exists="update"` makes them anew.
        relocated: of the skipped ones, those that lie at a place which was not known. It is now.
        changed: of the skipped ones, those whose image was another one when they were stored, under an id
            of your own; the same renews them.
        superseded: of the added ones, those whose file held another image when it was stored. Its point stays
            beside the new one until `on_exists="update"` or `sync`.
        failed: with reasons.
        left_out: of folders, linked folders, videos and images of formats that are not read, and files whose
            further pages or frames were not.
        excluded: how many files were by patterns of yours.
        seconds: per stage (load, detect, segment, encode, refine, store).
    """

    added: int = 0
    updated: int = 0
    skipped: int = 0
    stale: int = 0
    changed: int = 0
    superseded: int = 0
    relocated: int = 0
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    excluded: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many images were added, updated and skipped."""
        return {"added": self.added, "updated": self.updated, "skipped": self.skipped}


OnExists: TypeAlias = Literal["skip", "update", "replace"]
