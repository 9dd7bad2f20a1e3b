"""CoCa of open_clip as it matches images and sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.devices import pick_device
from soir_qdrant.rerank.q_perturbation.hooks import Site, coca
from soir_qdrant.rerank.q_perturbation.matcher import unit

MODEL, WEIGHTS = "coca_ViT-L-14", "mscoco_finetuned_laion2b_s13b_b90k"


@dataclass(frozen=True, slots=True, eq=False)
class CoCaMatcher:
    """`rerank="coca"`: a `CoCa` of the package open_clip_torch and what feeds it.

    Attributes:
        model: in evaluation mode.
        pixels: an image -> float [3, S, S], squeezed, not cropped.
        words: sentences -> int [T, L].
    """

    name: ClassVar[str] = "coca"

    model: Any
    pixels: Callable[[Image.Image], Tensor]
    words: Callable[[list[str]], Tensor]

    @classmethod
    def load(cls, model: str, weights: str | None = None, device: str = "auto") -> CoCaMatcher:
        """The model with its own tokenizer.

        Args:
            model: as open_clip names it: coca_ViT-B-32, coca_ViT-L-14, hf-hub:laion/..., local-dir:/a/folder.
            weights: of a model that is named without a prefix: open_clip's tag, or a file.
            device: "auto" takes a GPU where there is one.

        Raises:
            ConfigError: where the package is missing, or the model is no CoCa.
            WeightsError: for weights that cannot be loaded.
        """
        open_clip = _open_clip()
        try:
            network, pixels = open_clip.create_model_from_pretrained(
                model, weights, device=pick_device(device), image_resize_mode="squash"
            )
            words = open_clip.get_tokenizer(model)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{model}, {weights}: no CoCa could be loaded ({str(error).splitlines()[0]}). Give names of "
                f"open_clip, such as {MODEL!r} and {WEIGHTS!r}, or local-dir: and a folder"
            ) from error
        coca(network)
        return cls(network.eval(), pixels, words)

    @property
    def sites(self) -> list[Site]:
        """The attentional pooler."""
        return coca(self.model)

    def query(self, text: str) -> Tensor:
        """One sentence -> its unit descriptor [E]."""
        return unit(self.model.encode_text(self.words([text]).to(self._weight.device)))

    def score(self, image: Image.Image, query: Tensor) -> float:
        """The cosine of both descriptors."""
        pixels = self.pixels(image)[None].to(self._weight)
        return float(unit(self.model.encode_image(pixels)) @ query)

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = next(self.model.parameters())
        return weight


def _open_clip() -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # torchvision of another build dies with a RuntimeError
        raise ConfigError(
            f"CoCa needs the packages open_clip_torch and torchvision ({error}): pip install "
            '"soir-qdrant[coca]", and the torchvision that belongs to your torch'
        ) from error
    return open_clip
