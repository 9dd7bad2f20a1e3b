"""The protocols of `types` on models that run elsewhere: the same code for ONNX files and for Triton.

Preparing images and reading answers happens here, with NumPy, OpenCV and Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from soir_qdrant.config import DetectorSettings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import from_square
from soir_qdrant.geometry.crops import cut_mask
from soir_qdrant.models.detectors.factory import given, on_tokens
from soir_qdrant.models.tokens import SKIP
from soir_qdrant.serving.spec import ModelSpec
from soir_qdrant.types import RGB, Detections, Encoding, Mask

if TYPE_CHECKING:
    from soir_qdrant.models.last_block import LastBlock

T = TypeVar("T")
U = TypeVar("U")
Arrays = Mapping[str, NDArray[Any]]

GREY = 128  # OWLv2 was trained with 0.5
MEAN_COLOUR = (124, 116, 104)  # zero after normalisation, which is what SAM was padded with


class Session(Protocol):
    """One served model. spec, fingerprint: as it was exported."""

    spec: ModelSpec
    fingerprint: str

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The named outputs. inputs: all of the spec's, by name, B rows each (of a model without a batch
        dimension, as the spec says). B is at least 1; the session cuts it into batches.

        Raises ServerError where the model did not answer.
        """
        ...

    def each(self, action: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """The results of `action` in the order of `items`; several may run at once."""
        ...


class ServedEncoder:
    """`types.Encoder` on a served trunk.

    tokens: whether to fetch the tokens, over a megabyte for four crops: only the refinement reads them.
    Without, `Encoding.tokens` is None. last_block: called when the last block's weights are first needed.
    Raises ConfigError for a session of another kind of model.
    """

    def __init__(
        self, session: Session, *, tokens: bool = True, last_block: Callable[[], LastBlock] | None = None
    ) -> None:
        spec = of_kind(session, "encoder")
        self._session, self._last_block = session, last_block
        self.with_tokens = tokens
        self.input_size, self.patch = spec.fact("size"), spec.fact("patch")
        self.dim = spec.fact("dim_out")
        self.fingerprint = session.fingerprint
        self.name = session.fingerprint.partition("@")[0]

    @cached_property
    def last_block(self) -> LastBlock:
        """In float32. Raises WeightsError where its weights are not to be had here."""
        if self._last_block is None:
            raise ConfigError(f"{self.name}: no last block was given, and the refinement needs it")
        return self._last_block()

    def telling(self) -> ServedEncoder:
        """The same, with tokens."""
        return self if self.with_tokens else ServedEncoder(self._session, last_block=self._last_block)

    def encode(self, crops: NDArray[np.uint8], masks: NDArray[np.float32] | None = None) -> Encoding:
        """crops: uint8 [B, S, S, 3], RGB, S = input_size; masks: float32 [B, S, S], 0..1. See `Encoding`."""
        size = self.input_size
        if crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise ConfigError(f"crops of shape {crops.shape}: expected [B, {size}, {size}, 3]")
        masks = np.ones(crops.shape[:3], np.float32) if masks is None else masks
        if masks.shape != crops.shape[:3]:
            raise ConfigError(f"masks of shape {masks.shape}: expected {crops.shape[:3]}")
        wanted = ["descriptor", "layers", *(["tokens"] if self.with_tokens else [])]
        if len(crops):
            found = self._session.run({"crops": crops, "masks": masks.astype(np.float32, copy=False)}, wanted)
        else:  # Triton refuses a batch of none
            shapes = {tensor.name: (0, *tensor.dims) for tensor in self._session.spec.outputs}
            found = {name: np.zeros(shapes[name], np.float32) for name in wanted}
        return Encoding(found["descriptor"], found["layers"], found.get("tokens"))


class ServedTokens:
    """What `EmbeddedDetector` asks of an encoder, `TokenSource`, on a served trunk."""

    def __init__(self, session: Session) -> None:
        spec = of_kind(session, "tokens")
        if spec.fact("skip") != SKIP:
            raise ConfigError(
                f"{spec.name} gives the tokens {spec.fact('skip')} blocks before the last, and the embedded "
                f"detector reads those {SKIP} before: export it again with this version"
            )
        self._session = session
        self.patch, self.skip = spec.fact("patch"), spec.fact("skip")
        self.most = spec.fact("most") // self.patch

    def __eq__(self, other: object) -> bool:
        """Of the same session: what was computed for one (see `token_grid.tiled_grid`) serves the other."""
        return isinstance(other, ServedTokens) and other._session is self._session

    def __hash__(self) -> int:
        return id(self._session)

    def tokens(self, images: NDArray[np.uint8], *, skip: int = 0) -> NDArray[np.float32]:
        """images: uint8 [B, H, W, 3], H and W multiples of the patch size. Float32 [B, h * w, D].

        An image whose side is beyond the spec (a panorama) is looked at smaller, and its tokens spread: a
        TensorRT engine would be rebuilt for it, or refuse it. skip: as exported, else ConfigError.
        """
        if skip != self.skip:
            raise ConfigError(
                f"tokens {skip} blocks before the last: the served trunk gives those {self.skip}"
            )
        height, width = images.shape[1] // self.patch, images.shape[2] // self.patch
        h, w = min(height, self.most), min(width, self.most)
        if (h, w) != (height, width):
            size = (w * self.patch, h * self.patch)
            images = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])
        tokens = self._session.run({"images": images}, ["tokens"])["tokens"][:, -h * w :]
        if (h, w) == (height, width):
            return tokens
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        grid = tokens.reshape(len(tokens), h, w, -1)[:, rows][:, :, columns]
        return np.ascontiguousarray(grid.reshape(len(tokens), height * width, -1))


class ServedDetector:
    """`types.Detector` on a served model: the embedded one, whose look through the trunk is served and whose
    regions are grown here, or OWLv2, whose suppression is done here.

    settings: their kind must be that of the model; None takes the model's. Raises ConfigError.
    """

    def __init__(self, session: Session, settings: DetectorSettings | None = None) -> None:
        served = {"tokens": "embedded", "owlv2": "owlv2"}.get(session.spec.kind)
        held = settings or DetectorSettings.model_validate({"kind": served})
        if held.kind != served:
            raise ConfigError(
                f"{session.spec.name} serves a model of kind {session.spec.kind!r}, and the setting "
                f"detector.kind is {held.kind!r}: was it exported for another profile?"
            )
        self.name: str = held.kind
        self.settings, self._session = held, session
        self._detect = self._owlv2
        if served == "embedded":
            regions = on_tokens(held, ServedTokens(session), session.fingerprint)
            self._detect = lambda image: regions.detect([image])[0]

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: list of uint8 [H, W, 3]. See `Detector`."""
        return self._session.each(self._detect, images)

    def _owlv2(self, image: RGB) -> Detections:
        pixels = padded(image, self._session.spec.fact("size"))
        found = self._session.run({"images": pixels[None]}, ["boxes", "scores"])
        boxes, scores = (found[name][0].astype(np.float64) for name in ("boxes", "scores"))
        return from_square(boxes, scores, image.shape, **given(self.settings))


class ServedSegmenter:
    """`types.Segmenter`, SAM: the image is encoded once; all its boxes go through the decoder in one call."""

    name = "sam"

    def __init__(self, encoder: Session, decoder: Session) -> None:
        spec = of_kind(encoder, "sam_encoder")
        self.most = of_kind(decoder, "sam_decoder").fact("most")
        self.size = spec.fact("size")
        if encoder.fingerprint != decoder.fingerprint:
            raise ConfigError(
                f"{spec.name} was exported from {encoder.fingerprint}, and {decoder.spec.name} from "
                f"{decoder.fingerprint}: export both from the same weights"
            )
        self._encoder, self._decoder = encoder, decoder

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. See `Segmenter`."""
        if not len(boxes):
            return []
        height, width = image.shape[:2]
        inner = fitted(height, width, self.size)
        pixels = shrunk(image, inner, self.size)
        embeddings = self._encoder.run({"images": pixels[None]}, ["embeddings"])["embeddings"]
        scale = np.array([inner[1] / width, inner[0] / height] * 2, np.float32)
        prompts = np.asarray(boxes, np.float32) * scale
        masks = [
            self._decoder.run(
                {"embeddings": embeddings, "boxes": prompts[None, i : i + self.most]}, ["masks"]
            )["masks"][0]
            for i in range(0, len(prompts), self.most)
        ]
        return [
            in_frame(plane, row, (height, width), inner, self.size)
            for plane, row in zip(np.concatenate(masks), boxes, strict=True)
        ]


def of_kind(session: Session, kind: str) -> ModelSpec:
    """The spec of a session. Raises ConfigError where its model is of another kind."""
    if session.spec.kind != kind:
        raise ConfigError(
            f"{session.spec.name} is a model of kind {session.spec.kind!r}, and {kind!r} is asked for: "
            "was it exported for another profile?"
        )
    return session.spec


def padded(image: RGB, size: int) -> RGB:
    """Padded to a square with grey at the right and bottom, then resized smoothly: uint8 [size, size, 3]."""
    side = max(image.shape[:2])
    square = np.full((side, side, 3), GREY, np.uint8)
    square[: image.shape[0], : image.shape[1]] = image
    return _resized(square, (size, size))


def shrunk(image: RGB, inner: tuple[int, int], size: int) -> RGB:
    """Resized to `inner` (height, width), then padded with the mean colour: uint8 [size, size, 3]."""
    square = np.empty((size, size, 3), np.uint8)
    square[:] = MEAN_COLOUR
    square[: inner[0], : inner[1]] = _resized(image, inner)
    return square


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the image with its longest side at `size`."""
    scale = size / max(height, width)
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def in_frame(
    logits: NDArray[np.float32],
    box: NDArray[np.floating],
    shape: tuple[int, int],
    inner: tuple[int, int],
    size: int,
) -> Mask:
    """A low-resolution mask of the padded square, [m, m], as the bool mask of a box of the image.

    shape: H, W of the image; inner: of what of the square, `size` pixels wide, is not padding.
    """
    whole = cv2.resize(logits, (size, size), interpolation=cv2.INTER_LINEAR)[: inner[0], : inner[1]]
    whole = cv2.resize(whole, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return cut_mask(whole > 0, box)


def _resized(image: RGB, shape: tuple[int, int]) -> RGB:
    # Pillow's is the antialiased bilinear filter that torch has too.
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
