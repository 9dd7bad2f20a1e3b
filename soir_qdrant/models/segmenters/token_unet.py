"""The trained segmenter: the network of `heads/masks.py` on an encoder's tokens, local or served."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from soir_qdrant.config import TokenUnetSettings
from soir_qdrant.contracts import FeatureSource, Segmenter
from soir_qdrant.geometry.resize import Halves
from soir_qdrant.kinds import Parts
from soir_qdrant.models.compatibility import fitting, trunk
from soir_qdrant.models.devices import pick_device, pick_dtype
from soir_qdrant.models.heads.masks import CELLS, SIDE, MaskHead
from soir_qdrant.models.segmenters.grabcut import GrabCutSegmenter
from soir_qdrant.models.segmenters.window_masks import WindowSegmenter
from soir_qdrant.models.segmenters.windows import (
    FEW_CELLS,
    MAX_BATCH,
    Array,
    Window,
    box_planes,
    resized_tokens,
    sampled_tokens,
    window_image,
    window_tokens,
)
from soir_qdrant.models.token_grid import AREA, tiled_grid
from soir_qdrant.types import RGB, Box


class LearnedSegmenter(WindowSegmenter):
    """A mask for each box, by a head that was trained on the tokens of `source`; see `WindowSegmenter`.

    Args:
        source: its tokens are read.
        head: trained on the same ones.
        device: where the head runs.
        dtype: in which precision; a pixel of a mask may depend on how many boxes are cut with it where that is not
            float32.
    """

    def __init__(
        self,
        source: FeatureSource,
        head: MaskHead,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source = source
        self.device = torch.device(device)
        self.fingerprint = f"{self.name} {_digest(head)}"  # what its masks depend on, but for the encoder
        self.dtype = dtype
        self.head = head.fused().to(self.device, self.dtype)

    def window_chances(self, image: RGB, boxes: list[Box], windows: list[Window], *, alone: bool) -> Array:
        """See `WindowSegmenter`."""
        return self.chances(image, boxes, windows, self._tokens(image, windows, alone=alone))

    def chances(self, image: RGB, boxes: list[Box], windows: list[Window], tokens: Array) -> Array:
        """The chance of each pixel of k windows to be the object's, float32 [k, SIDE, SIDE].

        Args:
            image: uint8 [H, W, 3].
            boxes: k of them, x0, y0, x1, y1 in pixels.
            windows: theirs; see `windows.window`.
            tokens: float32 [k, CELLS^2, D], of the windows.
        """
        halves = Halves(image)
        return np.concatenate(
            [
                self._batch(halves, boxes[part], windows[part], tokens[part])
                for part in (slice(i, i + MAX_BATCH) for i in range(0, len(boxes), MAX_BATCH))
            ]
        )

    def _tokens(self, image: RGB, windows: list[Window], *, alone: bool) -> Array:
        if not alone:
            return sampled_tokens(tiled_grid(self.source, image, AREA), image.shape, windows, CELLS)
        few = window_tokens(self.source, [image] * len(windows), windows, FEW_CELLS)
        return resized_tokens(few, CELLS)

    @torch.inference_mode()
    def _batch(self, image: Halves, boxes: list[Box], windows: list[Window], tokens: Array) -> Array:
        small = np.stack([window_image(image, at, SIDE) for at in windows])
        planes = np.stack([box_planes(box, at, SIDE) for box, at in zip(boxes, windows, strict=True)])
        arrays = (torch.from_numpy(x).to(self.device, self.dtype) for x in (small, planes, tokens))
        logits: torch.Tensor = self.head(*arrays)
        return np.asarray(logits.float().sigmoid().cpu().numpy(), np.float32)


def make(settings: TokenUnetSettings, parts: Parts) -> Segmenter:
    """The kind `embedded`: the head that was trained for the encoder, else GrabCut.

    Raises:
        ConfigError: the settings name a head of another encoder.
    """
    source = parts.source
    head = fitting(settings.head, "segmenter.head", MaskHead.load, trunk(source.fingerprint))
    if head is None:
        return GrabCutSegmenter()
    device = pick_device(parts.device)
    return LearnedSegmenter(source, head, device=device, dtype=pick_dtype(parts.dtype, device))


def _digest(head: MaskHead) -> str:
    """Eight hex digits of the weights, as they are in float32."""
    digest = hashlib.sha256()
    for name, weights in sorted(head.state_dict().items()):
        digest.update(name.encode() + weights.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
