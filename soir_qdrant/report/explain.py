"""Where an image's vector comes from: per object its mask, its attention map before and after refinement, and
how similar the vector is to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from soir_qdrant.mao.joint import mao_settings
from soir_qdrant.mao.refine import MaoSettings, explain_maps, precompute_all, refine
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.report.html import Shown, Strip, drawn, heat, write
from soir_qdrant.types import RGB, LoadedImage, SceneObject

Map = NDArray[np.float32]  # [S, S], 0..1
WIDE = 720  # pixels of the page's first image


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """One object.

    Attributes:
        item: where it is.
        crop: uint8 [S, S, 3], as the encoder sees it.
        mask: float32 [S, S], 0..1.
        before: float32 [S, S], 0..1, the LeGrad map of the mean descriptor.
        after: the same of the refined token: the joint one, or its own.
        similarity: cosine of the stored vector with this object's.
        to_mean: cosine of its descriptor with the mean of all.
        to_refined: cosine of its descriptor with the refined token.
    """

    item: SceneObject
    crop: RGB
    mask: Map
    before: Map
    after: Map
    similarity: float
    to_mean: float
    to_refined: float


def explain(
    pipeline: Pipeline, image: LoadedImage, objects: Sequence[SceneObject] | None = None
) -> list[Explained]:
    """What an image's vector comes from; refined as `settings.vector` says where its pooling is "mao", else
    by the paper's 80 steps.

    Args:
        pipeline: that makes the vector.
        image: of the objects.
        objects: None detects them.

    Returns:
        One entry per object, in their order.
    """
    (items,) = pipeline.find([image], [None if objects is None else list(objects)])
    crops = pipeline.crops([image.rgb], [items])
    masks = crops.masks
    device, encoding = pipeline.encoder.last_block.device, pipeline.encode_whole(crops)
    vectors, scene = pipeline.describe(encoding, masks), np.zeros(len(items), np.int64)
    scores = np.array([item.score for item in items], np.float32)
    stored = pipeline.pool(vectors, scene, scores, encoding, masks)[0]

    tokens = torch.as_tensor(encoding.tokens, device=device)
    read = torch.as_tensor(encoding.descriptor, device=device)
    descriptors = F.normalize(read, dim=-1)
    mean = F.normalize(descriptors.mean(0, keepdim=True), dim=-1)
    refined = refine(
        pipeline.encoder.last_blocks,
        tokens,
        read,
        torch.as_tensor(masks, device=device),
        torch.as_tensor(scene, device=device),
        _refinement(pipeline),
    )
    constants = precompute_all(pipeline.encoder.last_blocks, tokens)
    before, after = (
        explain_maps(constants, t.expand(len(items), -1), crops.pixels.shape[1]).cpu().numpy()
        for t in (mean, refined)
    )
    near_mean, near_refined = ((descriptors * t).sum(1).tolist() for t in (mean, refined))
    # pooling "mao" without whitening stores the joint token itself, which lives among the descriptors
    similar = (vectors @ stored).tolist() if vectors.shape[1] == len(stored) else near_refined
    return [
        Explained(
            item, crops.pixels[i], masks[i], before[i], after[i], similar[i], near_mean[i], near_refined[i]
        )
        for i, item in enumerate(items)
    ]


def _refinement(pipeline: Pipeline) -> MaoSettings:
    """Of the settings where they refine, else the paper's."""
    vector = pipeline.settings.vector
    if vector.pooling != "mao":
        return MaoSettings()
    return mao_settings(vector)


def save(file: Path, name: str, image: RGB, explained: Sequence[Explained]) -> None:
    """Write it as a page. name: of the image; image: uint8 [H, W, 3]."""
    strips = [
        Strip(
            f"object {i}: similarity of the stored vector {one.similarity:.2f}, of the mean descriptor "
            f"{one.to_mean:.2f}, of the joint token {one.to_refined:.2f}",
            [
                ("crop", one.crop),
                ("mask", heat(one.crop, one.mask)),
                ("map before", heat(one.crop, one.before)),
                ("map after", heat(one.crop, one.after)),
            ],
        )
        for i, one in enumerate(explained, 1)
    ]
    whole = drawn(Shown(image, [one.item.box for one in explained], None, name, True), WIDE)
    lead = (
        "Each object as the encoder sees it, its mask, and where the image's joint token looks in it: the "
        "mean of the descriptors before, the token refined until its maps match all masks after."
    )
    write(file, f"What {name} is made of", lead, [], [Strip("image", [("", whole)]), *strips])
