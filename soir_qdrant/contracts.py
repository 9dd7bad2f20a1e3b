"""What an encoder, a detector, a segmenter and a scene encoder are, ours and those of other packages.
Importing this loads no model library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.types import RGB, Box, Detections, Encoding, Mask, Regions, Vector

if TYPE_CHECKING:
    from soir_qdrant.models.last_block import LastBlock

TEXTURE_LAYER = -9  # of the block whose tokens are a surface's texture: the third of the shipped encoder
TEXTURE_CELLS = 9  # patches along each side of a surface


@runtime_checkable
class Detector(Protocol):
    """Finds objects of any class."""

    name: str

    def detect(self, images: list[RGB]) -> list[Detections]:
        """images: uint8 [H, W, 3] each, sizes may differ. One Detections each, empty where none is found."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Turns boxes into masks. A subclass gets `refine_boxes`, `for_queries` and `fingerprint` as they stand here.

    Attributes:
        name: of the kind.
        fingerprint: names a trained head; empty for one that its settings describe.
    """

    name: str
    fingerprint: str = ""

    def segment(self, image: RGB, boxes: NDArray[np.floating]) -> list[Mask]:
        """image: uint8 [H, W, 3]; boxes: [k, 4]. k masks, bool [h, w], each in the frame of its box
        rounded outwards to whole pixels. Never empty: where nothing is found it is the whole box."""
        ...

    def refine_boxes(
        self,
        image: RGB,  # noqa: ARG002
        boxes: NDArray[np.floating],
        *,
        alone: bool = False,  # noqa: ARG002
    ) -> list[tuple[Box, Mask | None]]:
        """Boxes moved to what is seen of their objects, each with its mask in the frame of the moved box; see
        `segment`. Unless overridden: the boxes as they are, without masks.

        Args:
            image: uint8 [H, W, 3].
            boxes: [k, 4].
            alone: whether each is looked at by itself, as one that was drawn; else they are the detector's, which has
                looked at the whole image.
        """
        return [((x0, y0, x1, y1), None) for x0, y0, x1, y1 in np.asarray(boxes, np.float64).tolist()]

    def for_queries(self) -> Segmenter:
        """What cuts query crops: they are few, and all depends on each. Unless overridden: itself."""
        return self


@runtime_checkable
class FeatureSource(Protocol):
    """What detectors and segmenters read of whole images: an encoder, or its trunk where that is served.

    Attributes:
        patch: side of a patch in pixels.
        fingerprint: names the weights; see `Encoder`.
    """

    patch: int
    fingerprint: str

    def features(self, images: NDArray[np.uint8], layers: Sequence[int]) -> Vector:
        """The tokens of the patches after some blocks, side by side.

        Args:
            images: uint8 [B, H, W, 3], RGB, H and W multiples of `patch`; they need not be square.
            layers: of the blocks, -1 the last. One before the first counts as the first.

        Returns:
            float32 [B, H / patch, W / patch, D], D the width of a token times the number of layers.

        Raises:
            ConfigError: a served trunk that was exported for other layers, or none is served.
        """
        ...


@runtime_checkable
class Encoder(FeatureSource, Protocol):
    """A vision transformer: crops to descriptors, images to features. A subclass may leave out `last_blocks`,
    and is then used without MaO, heat maps and Q-Perturbation.

    Attributes:
        name: of the model.
        fingerprint: names the weights, an adapter, and the size of the crops.
        input_size: side of a crop in pixels.
        prefix_tokens: tokens before those of the patches: CLS, registers.
        dim: numbers of a descriptor.
        width: numbers of a token.
        reads_patches: whether `encode` has the patches of late interaction in the same pass.
        projection: digest of what has made small rows of them (`pooling.patches.projection_digest`), where a
            served encoder does that itself; 0 where they are tokens.
    """

    reads_patches: bool = False
    projection: int = 0
    name: str
    input_size: int
    prefix_tokens: int
    dim: int
    width: int

    @property
    def last_blocks(self) -> tuple[LastBlock, ...]:
        """The last block, or the last few in order, with the read-out; empty where it is not taken apart.
        Local even where the trunk is served."""
        return ()

    @property
    def last_block(self) -> LastBlock:
        """The last of `last_blocks`. Raises ConfigError where there is none."""
        if not self.last_blocks:
            raise ConfigError(
                f"pooling 'mao', heat maps and Q-Perturbation read an encoder's last block, and that of "
                f"{self.name} is not taken apart: choose another encoder, or do without them"
            )
        return self.last_blocks[-1]

    def encode(
        self,
        crops: NDArray[np.uint8],
        masks: NDArray[np.float32] | None = None,
        *,
        with_tokens: bool = False,
        with_patches: bool = False,
    ) -> Encoding:
        """Describe B crops.

        Args:
            crops: uint8 [B, S, S, 3], RGB, S = `input_size`.
            masks: float32 [B, S, S], 0..1, the share of each pixel inside the object; None is all of it.
            with_tokens: whether the tokens that enter the last blocks are read.
            with_patches: whether the patches of late interaction are read; an encoder that does not have
                them in the same pass leaves them None, and `features` is asked.
        """
        ...

    @property
    def texture_size(self) -> int:
        """Side in pixels of the squares that `texture` reads."""
        return TEXTURE_CELLS * self.patch

    @property
    def texture_dim(self) -> int:
        """Numbers of a texture."""
        return 2 * self.width

    def texture(self, surfaces: NDArray[np.uint8], weights: NDArray[np.float32]) -> Vector:
        """What a surface looks like, not what the thing is: what a trained head reads of the tokens after early blocks.
        Unless overridden, mean and standard deviation of those after one, each token normalised, of `features`.

        Args:
            surfaces: uint8 [B, T, T, 3], RGB, T = `texture_size`, B >= 1.
            weights: float32 [B, P], of the patches, row by row; they sum to 1.

        Returns:
            float32 [B, `texture_dim`].
        """
        tokens = self.features(surfaces, [TEXTURE_LAYER])
        centred = tokens - tokens.mean(-1, keepdims=True)
        even = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        even = even.reshape(len(even), -1, even.shape[-1])
        mean = np.einsum("bp,bpd->bd", weights, even)
        spread = np.einsum("bp,bpd->bd", weights, (even - mean[:, None]) ** 2)
        return np.concatenate([mean, np.sqrt(spread)], 1).astype(np.float32)


@runtime_checkable
class TextTower(Protocol):
    """Describes words in the space of an encoder's descriptors."""

    def encode(self, texts: list[str]) -> Vector:
        """Unit rows, float32 [T, D]. What is longer than the model reads is cut off.

        Raises:
            ConfigError: for a text without words.
        """
        ...


@runtime_checkable
class SceneEncoder(Protocol):
    """A whole image to a few vectors and where each one looks: no detector, no crops.

    Attributes:
        name: of the kind.
        fingerprint: names trained weights of its own; empty for one that its settings describe.
    """

    name: str
    fingerprint: str

    def regions(self, images: list[RGB]) -> list[Regions]:
        """Describe whole images.

        Args:
            images: uint8 [H, W, 3] each, sizes may differ.

        Returns:
            One Regions each, of one region at least, in the space of `Encoding.descriptor`.
        """
        ...
