"""Where in a hit's image the thing is: the image opened again, the matched object's mask, a heat map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.geometry.crops import full_mask, min_side, square
from soir_qdrant.types import Box, LoadedImage, Mask, SceneObject, Vector

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline


def mask(pipeline: Pipeline, image: LoadedImage, box: Box) -> Mask:
    """The pixels of the object in a box, as the pipeline's segmenter sees them, bool [H, W], both of the whole
    image."""
    (item,) = pipeline.segment(image.rgb, [SceneObject(image.here(box))])
    mask = full_mask(item, image.width, image.height)
    if image.full_size is None:
        return mask
    whole = cv2.resize(mask.astype(np.uint8), image.full_size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(whole, bool)


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A query as `heat` needs it. descriptor: float32 [D_out], what maps are made of; vector: float32 [dim]."""

    descriptor: Vector
    vector: Vector


def look(pipeline: Pipeline, query: LoadedImage, box: Box | None) -> Look:
    """query, box: as in `Pipeline.query`; refined where queries are."""
    query_object = pipeline.query_look(query.rgb, box=box, mask=query.alpha)
    return Look(query_object.descriptor, pipeline.whiten(query_object.row))


def heat(pipeline: Pipeline, query: Look, image: LoadedImage, objects: list[Box]) -> NDArray[np.float32]:
    """Where the query's object seems to be in an image: in each stored box the LeGrad map of the query's
    descriptor (mao/legrad.py) on the blocks that the encoder exposes, times the object's similarity to the query,
    where that is above 0.

    Args:
        pipeline: that the collection was filled with.
        query: of `look`.
        image: to look into.
        objects: the boxes to look into, x0, y0, x1, y1 in pixels of the whole image.

    Returns:
        float32 [H, W], 0..1, of the image as it was decoded.

    Raises:
        ConfigError: for an encoder without tokens.
    """
    import torch
    import torch.nn.functional as F

    from soir_qdrant.mao.refine import explain_maps, precompute_all

    encoder, device = pipeline.encoder, pipeline.encoder.last_block.device
    items = pipeline.segment(image.rgb, [SceneObject(image.here(box)) for box in objects])
    canvas = np.zeros((image.height, image.width), np.float32)
    if not items:
        return canvas
    crops = pipeline.crops([image.rgb], [items])
    encoding = pipeline.encode_whole(crops)
    similar = pipeline.describe(encoding, crops.masks) @ query.vector
    descriptor = F.normalize(torch.as_tensor(query.descriptor[None], device=device), dim=-1)
    constants = precompute_all(encoder.last_blocks, torch.as_tensor(encoding.tokens, device=device))
    maps = explain_maps(constants, descriptor.expand(len(items), -1), encoder.input_size).cpu().numpy()
    for item, weight, inner in zip(items, similar, maps, strict=True):
        if weight > 0:
            _lay(
                canvas,
                np.clip(inner, 0, 1) * min(float(weight), 1.0),
                _window(pipeline, item.box, canvas.shape),
            )
    return canvas


def _window(pipeline: Pipeline, box: Box, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """x, y and side, in pixels, of the square that the crop of a box is cut from. shape: H, W, ... ."""
    settings = pipeline.settings.crop
    shortest = min_side(settings, pipeline.encoder.input_size, shape[0], shape[1])
    return square(box, shape[1], shape[0], margin=settings.margin, min_side=shortest)


def _lay(canvas: NDArray[np.float32], inner: NDArray[np.float32], window: tuple[int, int, int]) -> None:
    """Put a crop's map [S, S] back where the crop was cut; the larger value stays."""
    x, y, side = window
    height, width = canvas.shape
    full = cv2.resize(inner, (side, side), interpolation=cv2.INTER_LINEAR)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    part = canvas[y0:y1, x0:x1]
    np.maximum(part, full[y0 - y : y1 - y, x0 - x : x1 - x], out=part)
