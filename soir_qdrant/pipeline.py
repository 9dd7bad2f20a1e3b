"""image -> objects -> masks -> crops -> tokens -> one vector. Whoever reads this has read the method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import TEXTURE_CELLS
from soir_qdrant.errors import ConfigError
from soir_qdrant.finder import Finder
from soir_qdrant.geometry.crops import Crops, cut, is_whole, together
from soir_qdrant.geometry.patches import patch_weights
from soir_qdrant.geometry.plain_background import box_of_query, plain_foreground
from soir_qdrant.geometry.query_views import query_views
from soir_qdrant.geometry.resize import Halves
from soir_qdrant.models.ocr import with_text
from soir_qdrant.models.tokens import LAYER
from soir_qdrant.pooling.features import TEXTURE, side_by_side
from soir_qdrant.pooling.patches import Projected, described
from soir_qdrant.pooling.pool import normalize, pool_scenes
from soir_qdrant.pooling.scenes.described import scenes_of
from soir_qdrant.timing import timed
from soir_qdrant.types import (
    RGB,
    Box,
    Encoding,
    LoadedImage,
    Mask,
    QueryLook,
    Scene,
    SceneObject,
    Vector,
)


class Pipeline(Finder):
    """Images to scenes, query crops to vectors: the way through the parts of `Components`."""

    def scenes(
        self,
        images: list[LoadedImage],
        objects: list[list[SceneObject] | None] | None = None,
        seconds: dict[str, float] | None = None,
        *,
        patches: bool = False,
    ) -> list[Scene]:
        """One Scene per image, in order.

        objects: per image those that the user has, else None: they are detected, or a scene encoder describes the
        whole image. An image without any is one object. seconds: stage -> seconds, added to in place.
        patches: with those of the objects, for late interaction.
        Raises ObjectsError where a box or mask does not fit its image.
        """
        seconds = {} if seconds is None else seconds
        known = objects or [None] * len(images)
        lines = self.read(images, seconds)
        if self.scene_encoder is not None and None in known:
            with timed(seconds, "encode"):
                scenes = scenes_of(self, self.scene_encoder, images, known, patches)
        else:
            scenes = self.by_crops(images, self.find(images, known, seconds, lines), seconds, patches=patches)
        return [with_text(scene, some) for scene, some in zip(scenes, lines, strict=True)]

    def by_crops(
        self,
        images: list[LoadedImage],
        listed: list[list[SceneObject]],
        seconds: dict[str, float],
        *,
        patches: bool = False,
    ) -> list[Scene]:
        """The scene of each image and its objects, as `find` lists them. seconds, patches: see `scenes`."""
        with timed(seconds, "encode"):
            crops = self.crops([image.rgb for image in images], listed)
            encoding, rows = self._encode(crops, patches)
        with timed(seconds, "refine"):
            scene_of = np.repeat(np.arange(len(images)), [len(items) for items in listed])
            vectors = self.describe(encoding, crops.masks, scene_of)
            scores = np.array([item.score for items in listed for item in items], np.float32)
            pooled = self.pool(vectors, scene_of, scores, encoding, crops.masks)
        return [
            Scene(
                image.width,
                image.height,
                tuple(items),
                pooled[i],
                vectors[scene_of == i],
                None if rows is None else tuple(rows[k] for k in np.flatnonzero(scene_of == i)),
            )
            for i, (image, items) in enumerate(zip(images, listed, strict=True))
        ]

    def encode(self, crops: Crops, *, with_tokens: bool = False, with_patches: bool = False) -> Encoding:
        """`Encoder.encode` of K objects, with their texture where it is among the features."""
        encoding = self.encoder.encode(
            crops.pixels, crops.masks, with_tokens=with_tokens, with_patches=with_patches
        )
        if crops.surfaces is None:
            return encoding
        return replace(encoding, texture=self.texture(crops))

    def texture(self, crops: Crops) -> Vector:
        """Of K objects, float32 [K, T], zeros of one without a surface; see `Encoder.texture`. Raises ConfigError for
        crops without surfaces."""
        if crops.surfaces is None or crops.surface_masks is None:
            raise ConfigError(
                "crops without surfaces: cut them with `Pipeline.crops`, of settings with textures"
            )
        texture = np.zeros((len(crops.surfaces), self.encoder.texture_dim), np.float32)
        clear = np.flatnonzero(crops.surface_masks.any((1, 2)))
        weights = patch_weights(crops.surface_masks[clear], TEXTURE_CELLS)
        for part in self._batches(len(clear)):
            texture[clear[part]] = self.encoder.texture(crops.surfaces[clear[part]], weights[part])
        return texture

    def _batches(self, count: int) -> list[slice]:
        size = self.settings.encoder.batch
        return [slice(i, i + size) for i in range(0, count, size)]

    def _encode(self, crops: Crops, patches: bool) -> tuple[Encoding, list[Vector] | None]:
        """The encoding of K crops and, where asked for, what `patches` returns, in one pass if possible."""
        with_tokens, at_hand = self.settings.vector.pooling == "mao", patches and self.has_patches
        encoding = self.encode(crops, with_tokens=with_tokens, with_patches=at_hand)
        if encoding.patches is not None and at_hand:
            return encoding, described(encoding.patches, crops.masks, self.patch_projection)
        return encoding, self.patches(crops) if patches else None

    def patches(self, crops: Crops) -> list[Vector]:
        """The patches of K objects for late interaction, float32 [n, d] each, unit rows.

        Raises:
            ConfigError: where no features can be read, or no projection was fitted for them.
        """
        projection, rows = self.patch_projection, list[Vector]()
        if isinstance(projection, Projected):
            return self._encode(Crops(crops.pixels, crops.masks), True)[1] or rows
        for part in self._batches(len(crops.pixels)):
            rows += described(
                self.encoder.features(crops.pixels[part], [LAYER]), crops.masks[part], projection
            )
        return rows

    def crops(self, images: list[RGB], objects: list[list[SceneObject]]) -> Crops:
        """All objects of all images, in order."""
        size = self.encoder.input_size
        side = self.encoder.texture_size if TEXTURE in self.settings.vector.features else 0
        parts = [
            cut(halves, item, self.settings.crop, size, side)
            for halves, items in zip(map(Halves, images), objects, strict=True)
            for item in items
        ]
        return together(parts, size, side)

    def encode_whole(self, crops: Crops) -> Encoding:
        """`encode` with tokens. Raises ConfigError for an encoder that has none."""
        encoding = self.encode(crops, with_tokens=True)
        if encoding.tokens is None:
            raise ConfigError("heat maps and Q-Perturbation read tokens, and this encoder sends none")
        return encoding

    def describe(
        self,
        encoding: Encoding,
        masks: NDArray[np.float32] | None = None,
        scene_of: NDArray[np.int64] | None = None,
    ) -> Vector:
        """Object vectors of K crops, float32 [K, dim], unit rows: the features side by side, or each crop's refined
        token where it has one (`VectorSettings.token`), whitened.

        masks: float32 [K, S, S], 0..1; scene_of: int [K], 0..S-1, ascending, None where all are of one image; both
        are read by the refinement alone.
        """
        if self.settings.vector.refines_crops:
            return self.whiten(self._refined(encoding, masks, scene_of))
        return self.whiten(self.features(encoding))

    def whiten(self, rows: Vector) -> Vector:
        """The rows, float32 [..., F], whitened where the settings say so, float32 [..., dim]."""
        return self.whitening(rows) if self.whitening else rows

    def features(self, encoding: Encoding) -> Vector:
        """The rows that a whitening is fitted on, float32 [K, F]: parts of equal length side by side."""
        return side_by_side(encoding, self.settings.vector.features)

    def pool(
        self,
        vectors: Vector,
        scene_of: NDArray[np.int64],
        scores: NDArray[np.float32],
        encoding: Encoding | None = None,
        masks: NDArray[np.float32] | None = None,
    ) -> Vector:
        """One vector per scene, float32 [S, dim], unit rows.

        vectors: float32 [K, dim], what `describe` returned; scene_of: int [K], 0..S-1, ascending;
        scores: float32 [K]; encoding, masks: of the same crops, read by the refinement alone.
        """
        settings = self.settings.vector
        if settings.pooling != "mao" or settings.refines_crops:
            return pool_scenes(vectors, scene_of, scores, settings)
        return self.whiten(self._refined(encoding, masks, scene_of))

    def query(self, image: RGB, *, box: Box | None = None, mask: Mask | None = None) -> Vector:
        """The vector of one query object, float32 [dim], unit length. See `query_crop`."""
        return self.whiten(self.query_look(image, box=box, mask=mask).row)

    def query_look(
        self, image: RGB, *, box: Box | None = None, mask: Mask | None = None, patches: bool = False
    ) -> QueryLook:
        """One query object, see `query_crop`, from all sides that `query_views` takes: its features are their mean.
        patches: with those of late interaction, of the object as it stands."""
        item = self._query_object(image, box, mask)
        views = query_views(image, item, self.settings, self.encoder.input_size)
        crops = self.crops(views.images, views.objects)
        encoding, rows = self._encode(crops, patches)
        of_it = normalize(views.upright_mean(rows)) if rows else None
        if self.settings.vector.refines_queries:
            token = self._refined(encoding, crops.masks)[0]
            return QueryLook(token, token, of_it, pixels=views.pixels, aspect=views.aspect)
        looks, upright = views.looks(self.features(encoding)), views.upright_mean(encoding.descriptor)
        return QueryLook(upright, looks.mean(0), of_it, looks, views.pixels, views.aspect)

    def query_crop(self, image: RGB, *, box: Box | None = None, mask: Mask | None = None) -> Crops:
        """The query object, alone.

        image: uint8 [H, W, 3]. box: the object in it (the whole image). mask: bool [H, W], its pixels, such as a
        cut-out's opaque ones; without one, they are told by a plain background, else by the segmenter, which
        moves the box to them. Raises ObjectsError for a box that holds no pixel of the image.
        """
        return self.crops([image], [[self._query_object(image, box, mask)]])

    def _query_object(self, image: RGB, box: Box | None, mask: Mask | None) -> SceneObject:
        """See `query_crop`."""
        mask = plain_foreground(image, box) if mask is None else mask
        if box is None:
            box = box_of_query(image, mask)
        elif mask is None and not is_whole(box, image.shape):
            ((box, mask),) = self.query_segmenter.refine_boxes(image, np.array([box]), alone=True)
        (item,) = self.segment(image, [SceneObject(box, mask)], self.query_segmenter)
        return item

    def _refined(
        self,
        encoding: Encoding | None,
        masks: NDArray[np.float32] | None,
        scene_of: NDArray[np.int64] | None = None,
    ) -> Vector:
        """The token of each scene, or of each crop, before whitening. See `mao.joint`."""
        from soir_qdrant.mao.joint import refined_tokens

        if encoding is None or masks is None:
            raise ConfigError("pooling 'mao' reads the crops' tokens and masks")
        scene_of = np.zeros(len(masks), np.int64) if scene_of is None else scene_of
        settings, blocks = self.settings, self.encoder.last_blocks
        return refined_tokens(encoding, masks, scene_of, blocks, settings.vector, settings.encoder.dtype)
