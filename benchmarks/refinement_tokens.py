"""Crops, tokens and refined tokens of images and queries, kept on disk: what benchmarks/refinement.py compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from soir_qdrant.config import Settings
from soir_qdrant.lab.evaluate.cache import ArrayCache, Arrays, key_of
from soir_qdrant.lab.evaluate.plain_rows import whole_crop
from soir_qdrant.mao.joint import mao_settings
from soir_qdrant.mao.refine import make_problem, steps
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.types import LoadedImage, SceneObject

STEPS = (1, 2, 5, 10, 20, 40, 80)
PAPER = Settings.for_profile("paper")
FORMAT = 2  # of what is kept


@dataclass(frozen=True)
class Variant:
    """An encoder and what it sees.

    tuned: with the adapter that ships. blocks: 11 or 12. crop: in place of the paper's. masks: the objects' own, or
    their boxes. objects: so many in an image, dealt out anew; None leaves them. vector: settings of MaO in place of
    the paper's.
    """

    title: str
    tuned: bool
    blocks: int
    crop: dict[str, Any] = field(default_factory=dict)
    boxes: bool = False
    vector: dict[str, Any] = field(default_factory=dict)


GREY = {"background": "grey", "native": False, "margin": 0.1}
VARIANTS = {
    "tuned-11": Variant("11 blocks, tuned (the encoder that ships)", True, 11),
    "untuned-12": Variant("12 blocks, untuned", False, 12),
    "untuned-11": Variant("11 blocks, untuned", False, 11),
    "tuned-12": Variant("12 blocks, the first 11 tuned", True, 12),
    "grey": Variant("11 blocks, tuned, background grey, tight crops", True, 11, GREY),
    "tight": Variant(
        "11 blocks, tuned, tight crops with background", True, 11, {**GREY, "background": "keep"}
    ),
    "large": Variant("11 blocks, tuned, crops of twice the box", True, 11, {"margin": 0.5}),
    "boxes": Variant("11 blocks, tuned, boxes as masks", True, 11, boxes=True),
    "batch": Variant("11 blocks, tuned, min-max over an image", True, 11, vector={"normalise": "batch"}),
    "untuned-12-grey": Variant("12 blocks, untuned, background grey, tight crops", False, 12, GREY),
}
_ENCODERS: dict[Any, Any] = {}


def once(key: Any, make: Callable[[], Any]) -> Any:
    """What is loaded once a run."""
    if key not in _ENCODERS:
        _ENCODERS[key] = make()
    return _ENCODERS[key]


class Tokens:
    """Looks at images and queries as a variant does. limits: steps of joint tokens and queries, and of crops."""

    def __init__(self, variant: Variant, cache: Path, limits: tuple[int, int]) -> None:
        self.variant, self.limits = variant, limits
        crop = {**PAPER.crop.model_dump(), **variant.crop}
        self.shipped: Pipeline = once("shipped", Pipeline)
        settings = self.shipped.settings.but(crop=crop, vector=PAPER.vector.model_dump())
        parts = {"encoder": self.shipped.encoder, "segmenter": self.shipped.segmenter}
        self.pipeline = Pipeline(settings, **parts)
        vector = PAPER.vector.model_copy(update=variant.vector)
        self.mao = mao_settings(vector)
        looked = {"format": FORMAT, "crop": crop}
        self.crops_cache = ArrayCache(cache / "crops", looked)
        self.tokens_cache = ArrayCache(cache / "tokens", {**looked, "tuned": variant.tuned})
        known = {**looked, "tuned": variant.tuned, "blocks": variant.blocks, "boxes": variant.boxes}
        self.steps_cache = ArrayCache(cache / "steps", {**known, "mao": repr(self.mao), "limits": limits})
        self.ours_cache = ArrayCache(cache / "ours", {"format": FORMAT})

    @cached_property
    def encoder(self) -> ViTEncoder:
        if self.variant.tuned:
            encoder: ViTEncoder = self.shipped.encoder
            return encoder
        return once("untuned", lambda: ViTEncoder(adapter=None))

    @cached_property
    def block(self) -> LastBlock:
        """The variant's last block."""
        if self.variant.blocks == 11:
            return self.encoder.last_block
        block: LastBlock = once(12, lambda: ViTEncoder("embedded-12", adapter=None).last_block)
        return block

    def image(self, image: LoadedImage, objects: list[SceneObject]) -> Arrays:
        """whole [1, D], joint-n [1, D] and crops-n [k, D] after n steps, ours [1, dim]: unit rows."""
        key = key_of(image, objects)

        def cut() -> Arrays:
            (items,) = self.pipeline.find([image], [objects])
            crops = self.pipeline.crops([image.rgb], [items])
            boxes = self.pipeline.crops([image.rgb], [[SceneObject(item.box) for item in items]])
            return self._packed(image, crops.pixels, crops.masks, boxes.masks)

        def ours() -> Arrays:
            return {"ours": self.shipped.scenes([image], [objects])[0].vector[None]}

        return {**self._looked(key, cut, self.limits), **self._kept(self.ours_cache, key, ours)}

    def query(self, image: LoadedImage) -> Arrays:
        """The same of a query, whose joint token is that of its one crop."""
        key = f"{image.sha256[:24]}-query"

        def cut() -> Arrays:
            crops = self.pipeline.query_crop(image.rgb, mask=image.alpha)
            return self._packed(image, crops.pixels, crops.masks, crops.masks)

        def ours() -> Arrays:
            return {"ours": self.shipped.query(image.rgb, mask=image.alpha)[None]}

        looked = self._looked(key, cut, (0, self.limits[0]))
        return {**looked, **self._kept(self.ours_cache, key, ours)}

    def _packed(self, image: LoadedImage, crops: np.ndarray, masks: np.ndarray, boxes: np.ndarray) -> Arrays:
        whole = whole_crop(image.rgb, self.pipeline.encoder.input_size)
        small = {"masks": masks, "boxes": boxes}
        return {
            "crops": crops,
            "whole": whole,
            **{k: (255 * v).round().astype(np.uint8) for k, v in small.items()},
        }

    def _looked(self, key: str, cut: Callable[[], Arrays], limits: tuple[int, int]) -> Arrays:
        def crops() -> Arrays:
            return self._kept(self.crops_cache, key, cut)

        def tokens() -> Arrays:
            visible = crops()
            both = np.concatenate([visible["crops"], visible["whole"]])
            return {"tokens": np.asarray(self.encoder.encode(both, with_tokens=True).tokens, np.float16)}

        def refined() -> Arrays:
            arrays = self._kept(self.tokens_cache, key, tokens)
            masks = crops()["boxes" if self.variant.boxes else "masks"].astype(np.float32) / 255
            return self.refined(torch.from_numpy(arrays["tokens"].astype(np.float32)), masks, limits)

        return self._kept(self.steps_cache, key, refined)

    @torch.no_grad()
    def refined(self, tokens: torch.Tensor, masks: np.ndarray, limits: tuple[int, int]) -> Arrays:
        """tokens: float32 [k + 1, N, D], entering block 11, of the crops and of the whole image."""
        block = self.block
        if self.variant.blocks == 12:
            tokens = self.encoder.last_block.forward(tokens)
        descriptors = block.descriptor(tokens)
        out = {"whole": unit(descriptors[-1:]), "crops-0": unit(descriptors[:-1])}
        scene, small = torch.zeros(len(masks)).long(), torch.from_numpy(masks)
        for token, name, limit in (("joint", "joint", limits[0]), ("per-crop", "crops", limits[1])):
            settings = self._settings(token, limit)
            if limit:
                problem = make_problem([block], tokens[:-1], descriptors[:-1], small, scene, settings)
                for step, t in enumerate(steps(problem, settings), 1):
                    if step in STEPS:
                        out[f"{name}-{step}"] = unit(t)
        return out

    def _settings(self, token: str, limit: int) -> Any:
        from dataclasses import replace

        return replace(self.mao, token=token, iterations=max(limit, 1), products=None)

    def _kept(self, cache: ArrayCache, key: str, make: Callable[[], Arrays]) -> Arrays:
        arrays = cache.load(key)
        if arrays is None:
            arrays = make()
            cache.save(key, arrays)
        return arrays


def unit(rows: torch.Tensor) -> np.ndarray:
    normalised: np.ndarray = F.normalize(rows, dim=-1).numpy().copy()
    return normalised
