"""image -> objects -> masks -> crops -> tokens -> one vector. Whoever reads this has read the method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import SCHEMA, Settings, VitSettings
from soir_qdrant.contracts import Detector, Encoder, Segmenter
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.boxes import pick
from soir_qdrant.geometry.crops import crop, full_mask, square, whole_box
from soir_qdrant.geometry.plain_background import plain_foreground
from soir_qdrant.kinds import Parts, make_detector, make_encoder, make_segmenter
from soir_qdrant.models.tokens import LAYER
from soir_qdrant.pooling.patches import READ, PatchProjection, described, projection_of
from soir_qdrant.pooling.pool import generalized_max_pool, mean_pool, normalize
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.types import RGB, Box, Detections, Encoding, LoadedImage, Mask, Scene, SceneObject, Vector

if TYPE_CHECKING:
    from soir_qdrant.models.encoders.text import TextEncoder

SHIPPED = Path(str(resources.files("soir_qdrant") / "data" / "whitening.safetensors"))
QUERY_FRAME = 0.05  # of each side of a query crop that is taken for ground


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to `seconds[stage]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def feature(encoding: Encoding, name: str) -> Vector:
    """ "cls": the descriptor; "patches": the patch mean after the last block; "patches-n": n earlier."""
    if name == "cls":
        return encoding.descriptor
    return encoding.layers[:, -1 - int(name.partition("-")[2] or 0)]


class Pipeline:
    """Images to scenes, query crops to vectors.

    settings: see `Settings`. detector, segmenter, encoder: used instead of those the settings name;
    each is loaded when it is first needed. patch_projection: what makes patches small; None is the
    whitening's part for them.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        detector: Detector | None = None,
        segmenter: Segmenter | None = None,
        encoder: Encoder | None = None,
        patch_projection: PatchProjection | None = None,
    ) -> None:
        self.settings = settings or Settings.for_profile()
        self._patch_projection = patch_projection
        self._detector, self._segmenter, self._encoder = detector, segmenter, encoder

    def scenes(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None] | None = None,
        seconds: dict[str, float] | None = None,
        *,
        patches: bool = False,
    ) -> list[Scene]:
        """One Scene per image, in order.

        objects: per image the objects where the user has them already, else None: then they are
        detected. An image without any is one object. seconds: stage -> seconds, added to in place.
        patches: with those of the objects, for late interaction.
        Raises ObjectsError where a box or mask does not fit its image.
        """
        seconds = {} if seconds is None else seconds
        found = self.find(images, objects or [None] * len(images), seconds)
        with timed(seconds, "encode"):
            crops, masks = self.crops([image.rgb for image in images], found)
            encoding, rows = self._encode(crops, masks, patches)
            vectors = self.describe(encoding)
        with timed(seconds, "refine"):
            scene_of = np.repeat(np.arange(len(images)), [len(items) for items in found])
            scores = np.array([item.score for items in found for item in items], np.float32)
            pooled = self.pool(vectors, scene_of, scores, encoding, masks)
        return [
            Scene(
                image.width,
                image.height,
                tuple(items),
                pooled[i],
                vectors[scene_of == i],
                None if rows is None else tuple(rows[k] for k in np.flatnonzero(scene_of == i)),
            )
            for i, (image, items) in enumerate(zip(images, found, strict=True))
        ]

    def _encode(
        self, crops: NDArray[np.uint8], masks: NDArray[np.float32], patches: bool
    ) -> tuple[Encoding, list[Vector] | None]:
        """The encoding of K crops and, where asked for, what `patches` returns, in one pass if possible."""
        with_tokens = self.settings.vector.pooling == "mao"
        encoding = self.encoder.encode(crops, masks, with_tokens=with_tokens, with_patches=patches)
        if not patches:
            return encoding, None
        if encoding.patches is None:
            return encoding, self.patches(crops, masks)
        return encoding, described(encoding.patches, masks, self.patch_projection)

    def patches(self, crops: NDArray[np.uint8], masks: NDArray[np.float32]) -> list[Vector]:
        """The patches of K objects for late interaction, float32 [n, d] each, unit rows.

        Args:
            crops: uint8 [K, S, S, 3], as `crops` cuts them.
            masks: float32 [K, S, S], 0..1.

        Raises:
            ConfigError: where no features can be read, or no projection was fitted for them.
        """
        projection, batch = self.patch_projection, self.settings.encoder.batch
        rows: list[Vector] = []
        for i in range(0, len(crops), batch):
            part = slice(i, i + batch)
            rows += described(self.encoder.features(crops[part], [LAYER]), masks[part], projection)
        return rows

    @cached_property
    def patch_projection(self) -> PatchProjection:
        """What makes patches small. Raises ConfigError where the settings have no whitening of them."""
        if self._patch_projection is not None:
            return self._patch_projection
        if self.whitening is None or READ not in self.settings.vector.features:
            raise ConfigError(
                f'rerank="patches" needs a whitening of the feature "{READ}", and these settings have none: '
                "take the profile embedded, or set vector.features and fit one with `soir calibrate`"
            )
        return projection_of(self.whitening, self.settings.vector.features, self.encoder.last_block)

    def find(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None],
        seconds: dict[str, float] | None = None,
    ) -> list[list[SceneObject]]:
        """The objects of each image with their masks, at least one: those given, else those detected, their
        boxes fitted to them where the segmenter can, and of those that then are much the same the best, else
        the whole image. seconds: see `scenes`."""
        seconds = {} if seconds is None else seconds
        wanted = [i for i, items in enumerate(objects) if items is None]
        detected: dict[int, Detections] = {}
        with timed(seconds, "detect"):
            if wanted and self.detector is not None:
                seen = self.detector.detect([images[i].rgb for i in wanted])
                detected = dict(zip(wanted, seen, strict=True))
        found = []
        with timed(seconds, "segment"):
            for i, (image, items) in enumerate(zip(images, objects, strict=True)):
                held = items or self._different(self.fitted(image.rgb, detected.get(i)))
                whole = SceneObject((0.0, 0.0, float(image.width), float(image.height)))
                found.append(self.segment(image.rgb, held or [whole]))
        return found

    def fitted(self, image: RGB, seen: Detections | None) -> list[SceneObject]:
        """What was detected, boxes fitted to their masks where the segmenter can. image: uint8 [H, W, 3]."""
        if seen is None or not len(seen.boxes):
            return []
        refined = self.segmenter.refine_boxes(image, seen.boxes)
        return [
            SceneObject(box, mask, score=float(score))
            for (box, mask), score in zip(refined, seen.scores, strict=True)
        ]

    def _different(self, items: list[SceneObject]) -> list[SceneObject]:
        """Suppressed again: two boxes of one object may be the same only once they are fitted."""
        if not items:
            return []
        boxes, scores = np.array([item.box for item in items]), np.array([item.score for item in items])
        held = self.settings.detector
        kept, _ = pick(boxes, scores, iou=held.fitted_iou, most=held.most)
        return [items[i] for i in kept]

    def segment(
        self, image: RGB, objects: list[SceneObject], segmenter: Segmenter | None = None
    ) -> list[SceneObject]:
        """The same objects, each with a mask. image: uint8 [H, W, 3]."""
        segmenter = segmenter or self.segmenter
        height, width = image.shape[:2]
        bare = [item for item in objects if item.mask is None]
        whole = [whole_box(item.box, width, height) == (0, 0, width, height) for item in bare]
        asked = [item for item, all_of_it in zip(bare, whole, strict=True) if not all_of_it]
        if not asked:
            return objects
        boxes = np.array([item.box for item in asked], np.float64)  # rounded, a frame may lose a pixel
        masks = dict(zip(map(id, asked), segmenter.segment(image, boxes), strict=True))
        return [replace(item, mask=masks.get(id(item), item.mask)) for item in objects]

    def crops(
        self, images: list[RGB], objects: list[list[SceneObject]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """All objects of all images, in order: crops, uint8 [K, S, S, 3]; masks, float32 [K, S, S], 0..1."""
        size = self.encoder.input_size
        cut = [
            self._crop(image, item) for image, items in zip(images, objects, strict=True) for item in items
        ]
        if not cut:
            return np.zeros((0, size, size, 3), np.uint8), np.zeros((0, size, size), np.float32)
        return np.stack([c for c, _ in cut]), np.stack([m for _, m in cut])

    def _crop(self, image: RGB, item: SceneObject) -> tuple[RGB, NDArray[np.float32]]:
        height, width = image.shape[:2]
        held, size = self.settings.crop, self.encoder.input_size
        return crop(
            image,
            full_mask(item, width, height),
            item.box,
            size,
            margin=held.margin,
            least=self._least(height, width),
            background=held.background,
        )

    def _least(self, height: int, width: int) -> int:
        return min(self.encoder.input_size, height, width) if self.settings.crop.native else 0

    def window(self, box: Box, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """x, y and side, in pixels, of the square that the crop of a box is cut from. shape: H, W, ... ."""
        height, width = shape[:2]
        least = self._least(height, width)
        return square(box, width, height, margin=self.settings.crop.margin, least=least)

    def encode_whole(self, crops: NDArray[np.uint8], masks: NDArray[np.float32]) -> Encoding:
        """`encoder.encode` with its tokens. Raises ConfigError for an encoder that has none."""
        encoding = self.encoder.encode(crops, masks, with_tokens=True)
        if encoding.tokens is None:
            raise ConfigError("heat maps and Q-Perturbation read tokens, and this encoder sends none")
        return encoding

    def describe(self, encoding: Encoding) -> Vector:
        """Object vectors of K crops, float32 [K, dim], unit rows: the features side by side, whitened."""
        rows = self.features(encoding)
        return self.whitening(rows) if self.whitening else rows

    def features(self, encoding: Encoding) -> Vector:
        """The rows that a whitening is fitted on, float32 [K, F]: parts of equal length side by side."""
        names = self.settings.vector.features
        parts = [normalize(feature(encoding, name)) for name in names]
        return normalize(np.concatenate(parts, axis=1))

    def pool(
        self,
        vectors: Vector,
        scene_of: NDArray[np.int64],
        scores: NDArray[np.float32],
        encoding: Encoding | None = None,
        masks: NDArray[np.float32] | None = None,
    ) -> Vector:
        """One vector per scene, float32 [S, dim], unit rows.

        vectors: float32 [K, dim], what `describe` returned; scene_of: int [K], 0..S-1, rising;
        scores: float32 [K]; encoding, masks: of the same crops, read by the refinement alone.
        """
        held = self.settings.vector
        count = int(scene_of[-1]) + 1 if len(scene_of) else 0
        if held.pooling == "mao":
            if encoding is None or masks is None:
                raise ConfigError("pooling 'mao' reads the crops' tokens and masks")
            return self._refined(scene_of, encoding, masks)
        rows = [vectors[scene_of == i] for i in range(count)]
        weights = [scores[scene_of == i] ** held.by_score for i in range(count)]
        if held.pooling == "mean":
            return np.stack([mean_pool(v, w) for v, w in zip(rows, weights, strict=True)])
        return np.stack([generalized_max_pool(v, held.ridge, w) for v, w in zip(rows, weights, strict=True)])

    def query(self, image: RGB, *, box: Box | None = None, mask: Mask | None = None) -> Vector:
        """The vector of one query object, float32 [dim], unit length. See `query_crop`."""
        row = self.query_row(image, box=box, mask=mask)
        return self.whitening(row) if self.whitening else row

    def text(self, words: str) -> Vector:
        """The vector of words, float32 [dim], unit length. Raises ConfigError for an encoder without text."""
        if self.text_encoder is None:
            raise ConfigError(
                f"text {words!r}: this encoder reads no text: give an image of the thing, or take a profile "
                "that does (clip, siglip)"
            )
        row: Vector = (self.whitening or normalize)(self.text_encoder.encode([words]))[0]
        return row

    def query_row(self, image: RGB, *, box: Box | None = None, mask: Mask | None = None) -> Vector:
        """The row of one query object before whitening, float32 [F]. See `query_crop`."""
        row: Vector = self.features(self.encoder.encode(*self.query_crop(image, box=box, mask=mask)))[0]
        return row

    def query_crop(
        self, image: RGB, *, box: Box | None = None, mask: Mask | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The query object's crop, uint8 [1, S, S, 3], and its mask, float32 [1, S, S].

        image: uint8 [H, W, 3]. box: the object in it (the whole image). mask: bool [H, W], its pixels,
        such as a cut-out's opaque ones; without one, they are told by a plain background, else by the
        segmenter. Raises ObjectsError for a box that holds no pixel of the image.
        """
        height, width = image.shape[:2]
        if mask is None:
            mask = plain_foreground(image, box)
        if box is None and mask is not None and mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        if box is None:  # a frame is left for the segmenter to learn the ground from
            x, y = round(width * QUERY_FRAME), round(height * QUERY_FRAME)
            box = (float(x), float(y), float(width - x), float(height - y))
        item = SceneObject(box, mask)
        item = self.segment(image, [item], self.query_segmenter)[0]
        cut, inside = self._crop(image, item)
        return cut[None], inside[None]

    @cached_property
    def encoder(self) -> Encoder:
        if self._encoder is not None:
            return self._encoder
        return make_encoder(self.settings.encoder, Parts(self.settings))

    @cached_property
    def text_encoder(self) -> TextEncoder | None:
        """The text tower beside the encoder; None where it has none, or objects are not described by the
        descriptor that texts are compared with."""
        if self.settings.vector.features != ("cls",):
            return None
        from soir_qdrant.models.encoders.text import text_encoder

        held = self.settings.encoder
        return text_encoder(held.weights, device=held.device) if isinstance(held, VitSettings) else None

    @cached_property
    def detector(self) -> Detector | None:
        if self._detector is not None:
            return self._detector
        return make_detector(self.settings.detector, self._parts)

    @cached_property
    def segmenter(self) -> Segmenter:
        if self._segmenter is not None:
            return self._segmenter
        return make_segmenter(self.settings.segmenter, self._parts)

    @property
    def _parts(self) -> Parts:
        return Parts(self.settings, lambda: self.encoder)

    @cached_property
    def query_segmenter(self) -> Segmenter:
        """What cuts queries: they are few, and all depends on each."""
        return self.segmenter.for_queries()

    @cached_property
    def whitening(self) -> Whitening | None:
        """The whitening of the settings: the shipped one of the encoder, a file, or none."""
        held = self.settings.vector
        if held.whitening is None:
            return None
        path = SHIPPED if held.whitening == "shipped" else Path(held.whitening).expanduser()
        whitening = Whitening.load(path)
        if whitening.fitted_for != self.whitened:
            raise ConfigError(
                f"whitening {held.whitening!r} was fitted for {whitening.fitted_for!r}, and the settings "
                f"ask for {self.whitened!r}: fit one with `soir calibrate`, or set vector.whitening to None"
            )
        return whitening.truncated(held.dim)

    @property
    def prior(self) -> Whitening | None:
        """The whitening to refit: the file that the settings name, else the one that ships; None where that
        is of another encoder."""
        if self.settings.vector.whitening not in (None, "shipped"):
            return self.whitening
        found = Whitening.load(SHIPPED)
        return found if found.fitted_for == self.whitened else None

    @property
    def whitened(self) -> str:
        """What a whitening has to be fitted for: encoder, crop and features in one line."""
        crop, vector = self.settings.crop, self.settings.vector
        cut = f"{'native' if crop.native else 'tight'}{crop.margin:g}{crop.background}"
        return f"{self.encoder.fingerprint} {cut} {'+'.join(vector.features)}"

    @cached_property
    def dim(self) -> int:
        """Length of the stored vector."""
        if self.whitening is not None:
            return self.whitening.dim
        names = self.settings.vector.features
        return sum(self.encoder.dim if name == "cls" else self.encoder.width for name in names)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What two vectors must share to be compared: JSON-able, the same on every machine and device."""
        vector = self.settings.vector.model_dump(exclude={"whitening", "by_score"})
        if self.settings.vector.pooling != "mao":
            vector = {k: v for k, v in vector.items() if k not in ("iterations", "lr", "alpha", "blocks")}
        return {
            "schema": SCHEMA,
            "encoder": self.encoder.fingerprint,
            "crop": self.settings.crop.model_dump(),
            "vector": vector | {"features": list(self.settings.vector.features)},
            "whitening": self.whitening.digest if self.whitening else None,
            "dim": self.dim,
        }

    def _refined(self, scene_of: NDArray[np.int64], encoding: Encoding, masks: NDArray[np.float32]) -> Vector:
        """The joint token of each scene, in the space of the descriptor. See `mao.refine`."""
        import torch

        from soir_qdrant.mao.refine import MaoSettings, refine
        from soir_qdrant.models.devices import pick_dtype

        held, block = self.settings.vector, self.encoder.last_block
        if encoding.tokens is None:
            raise ConfigError("pooling 'mao' reads the tokens: encode the crops with with_tokens=True")
        if held.features != ("cls",):
            raise ConfigError("pooling 'mao' refines the descriptor: set vector.features to ('cls',)")
        blocks = self.encoder.last_blocks
        if len(blocks) != held.blocks:
            raise ConfigError(f"vector.blocks {held.blocks}: this encoder exposes {len(blocks)}")
        dtype = pick_dtype(self.settings.encoder.dtype, block.device)
        refined = refine(
            blocks,
            torch.as_tensor(encoding.tokens, device=block.device),
            torch.as_tensor(encoding.descriptor, device=block.device),
            torch.as_tensor(masks, device=block.device),
            torch.as_tensor(scene_of, device=block.device),
            MaoSettings(
                held.iterations,
                held.lr,
                held.alpha,
                products="float32" if dtype == torch.float32 else "bfloat16",
            ),
        )
        rows: Vector = refined.cpu().numpy()
        return self.whitening(rows) if self.whitening else rows
