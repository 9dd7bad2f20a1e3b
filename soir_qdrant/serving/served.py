"""An encoder whose trunk runs elsewhere: the same code for ONNX files and for Triton. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Encoder, FeatureSource
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.masks import checked_masks
from soir_qdrant.geometry.patches import batches, patch_weights
from soir_qdrant.models.tokens import AFTER, LAYER
from soir_qdrant.serving.session import Session, of_kind
from soir_qdrant.serving.texture_spec import TEXTURE
from soir_qdrant.types import Encoding, Vector

if TYPE_CHECKING:
    from soir_qdrant.models.last_block import LastBlock


class ServedEncoder(Encoder):
    """`contracts.Encoder` on a served trunk.

    Tokens, over a megabyte for four crops, are fetched only where they are asked for.

    Args:
        session: of the encoder.
        last_block: called when the last block's weights are first needed.
        trunk: of the same encoder, on images of any shape; None where none is served.
        texture: its first blocks, on the boxes of objects; None where none is served.
        object_only: whether patches that show nothing of the object are left out, but where tokens are read.

    Raises:
        ConfigError: a session of another kind of model.
    """

    def __init__(
        self,
        session: Session,
        *,
        last_block: Callable[[], LastBlock] | None = None,
        trunk: ServedTrunk | None = None,
        texture: Session | None = None,
        object_only: bool = False,
    ) -> None:
        spec = of_kind(session, "encoder")
        self._session, self._load_last_block, self._trunk = session, last_block, trunk
        self._texture = texture
        self.input_size, self.patch = spec.fact("size"), spec.fact("patch")
        self.prefix_tokens = spec.fact("cls")
        self.dim, self.width = spec.fact("dim_out"), spec.fact("dim")
        self.row_dim, self.projection = spec.fact("row_dim", 0), spec.fact("projection", 0)
        self.reads_patches = self.row_dim > 0
        self.fingerprint, self.object_only = session.fingerprint, object_only
        self.name = session.fingerprint.partition("@")[0]

    @cached_property
    def last_blocks(self) -> tuple[LastBlock, ...]:
        """In float32. Raises ConfigError or WeightsError where its weights are not available here."""
        if self._load_last_block is None:
            raise ConfigError(f"{self.name}: no last block was given, and the refinement needs it")
        return (self._load_last_block(),)

    def encode(
        self,
        crops: NDArray[np.uint8],
        masks: NDArray[np.float32] | None = None,
        *,
        with_tokens: bool = False,
        with_patches: bool = False,
    ) -> Encoding:
        """See `Encoder`. Patches are left to `features` where the model was exported without their rows."""
        masks = checked_masks(crops, masks, self.input_size)
        wanted = ["descriptor", "layers", *(["tokens"] if with_tokens else [])]
        wanted += ["rows"] if with_patches and self.reads_patches else []
        if not len(crops):  # Triton refuses a batch of none
            sizes = {tensor.name: (0, *tensor.at("max")) for tensor in self._session.spec.outputs}
            answer: dict[str, NDArray[Any]] = {name: np.zeros(sizes[name], np.float32) for name in wanted}
        else:
            answer = self._answer(crops, masks, wanted)
        side = self.input_size // self.patch
        patches = answer["rows"].reshape(-1, side, side, self.row_dim) if "rows" in wanted else None
        return Encoding(answer["descriptor"], answer["layers"], answer.get("tokens"), patches)

    def _answer(
        self, crops: NDArray[np.uint8], masks: NDArray[np.float32], wanted: list[str]
    ) -> dict[str, NDArray[Any]]:
        """The outputs, in the order of the crops; those of equally many patches travel together. The rows of
        patches are those of the whole grid, zeros where none was looked at."""
        weights = patch_weights(masks, self.input_size // self.patch)
        parts = [*batches(weights, len(crops), object_only=self.object_only and "tokens" not in wanted)]
        answers = self._session.each(
            lambda part: self._session.run(
                {"crops": crops[part.rows], "patches": part.patches, "weights": part.weights}, wanted
            ),
            parts,
        )
        if "rows" in wanted:
            for part, answer in zip(parts, answers, strict=True):
                grid = np.zeros((len(part.rows), weights.shape[1], self.row_dim), np.float16)
                np.put_along_axis(grid, part.patches[..., None], answer["rows"], 1)
                answer["rows"] = grid
        order = np.argsort(np.concatenate([part.rows for part in parts]))
        return {name: np.concatenate([answer[name] for answer in answers])[order] for name in wanted}

    @property
    def texture_dim(self) -> int:
        """See `Encoder`."""
        return self._texture.spec.fact("dim") if self._texture else super().texture_dim

    def texture(self, surfaces: NDArray[np.uint8], weights: NDArray[np.float32]) -> Vector:
        """See `Encoder`. Raises ConfigError where that is not served."""
        if self._texture is None:
            raise ConfigError(
                f'the feature "texture" is read by {TEXTURE}, a model of its own: take OnnxRuntime or TritonRuntime, '
                "which serve it beside the encoder, or leave it out of vector.features"
            )
        rows: Vector = self._texture.run({"surfaces": surfaces, "weights": weights}, ["texture"])["texture"]
        return rows

    def features(self, images: NDArray[np.uint8], layers: Sequence[int]) -> Vector:
        """See `Encoder`. Raises ConfigError where no trunk is served."""
        if self._trunk is None:
            raise ConfigError(
                'rerank="patches", and detectors and segmenters on features, read what this encoder does not '
                "give, as no trunk is served: take an encoder that runs here, or export a profile whose "
                "detector reads features (kind 'embedded')"
            )
        return self._trunk.features(images, layers)


class ServedTrunk(FeatureSource):
    """`contracts.FeatureSource` on a served trunk."""

    def __init__(self, session: Session) -> None:
        spec = of_kind(session, "tokens")
        if spec.fact("skip") != AFTER - 1:
            raise ConfigError(
                f"{spec.name} gives the tokens {spec.fact('skip')} blocks before the last, and detectors "
                f"read those {AFTER - 1} before: export it again with this version"
            )
        self._session = session
        self.patch, self.fingerprint = spec.fact("patch"), session.fingerprint
        self.max_cells = spec.fact("max_side") // self.patch

    def __eq__(self, other: object) -> bool:
        """Of the same session: what was computed for one (see `token_grid.tiled_grid`) serves the other."""
        return isinstance(other, ServedTrunk) and other._session is self._session

    def __hash__(self) -> int:
        return id(self._session)

    def features(self, images: NDArray[np.uint8], layers: Sequence[int]) -> Vector:
        """See `FeatureSource`; layers: those that were exported.

        An image whose side is beyond the spec (a panorama) is looked at smaller, and its features spread: a
        TensorRT engine would be rebuilt for it, or refuse it.
        """
        if list(layers) != [LAYER]:
            raise ConfigError(f"features after the blocks {list(layers)}: the served trunk gives {[LAYER]}")
        height, width = images.shape[1] // self.patch, images.shape[2] // self.patch
        h, w = min(height, self.max_cells), min(width, self.max_cells)
        if (h, w) != (height, width):
            size = (w * self.patch, h * self.patch)
            images = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])
        tokens = self._session.run({"images": images}, ["tokens"])["tokens"][:, -h * w :]
        grid = tokens.reshape(len(tokens), h, w, -1)
        if (h, w) == (height, width):
            return grid
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        return np.ascontiguousarray(grid[:, rows][:, :, columns])
