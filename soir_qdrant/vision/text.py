"""The text tower that belongs to a CLIP or SigLIP encoder: words to descriptors in the crops' own space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.types import Vector
from soir_qdrant.vision.encoder import pick_device
from soir_qdrant.vision.weights import resolve

# How the tower is loaded, what of its output is the descriptor, and how its tokenizer pads: SigLIP was
# trained on texts of one length and reads the last token, CLIP reads the token at the text's end.
TOWERS: dict[str, tuple[str, str, bool | str]] = {
    "clip": ("CLIPTextModelWithProjection", "text_embeds", True),
    "siglip": ("SiglipTextModel", "pooler_output", "max_length"),
}


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """model: a text tower of `transformers`; tokenizer: its own; output, padding: see TOWERS."""

    model: Any
    tokenizer: Any
    output: str
    padding: bool | str

    def encode(self, texts: list[str]) -> Vector:
        """Unit rows, float32 [T, D]. What is longer than the model reads is cut off. Raises ConfigError for a
        text without words."""
        if not all(text.strip() for text in texts):
            raise ConfigError("the query text is empty: say what to look for")
        longest = self.model.config.max_position_embeddings
        made = self.tokenizer(
            texts, padding=self.padding, max_length=longest, truncation=True, return_tensors="pt"
        )
        inputs = {
            name: made[name].to(self.model.device) for name in ("input_ids", "attention_mask") if name in made
        }
        with torch.inference_mode():
            rows = getattr(self.model(**inputs), self.output)
        found: Vector = F.normalize(rows.float(), dim=-1).cpu().numpy()
        return found


def text_encoder(weights: str, device: str = "auto") -> TextEncoder | None:
    """The text tower of the encoder's weights, a folder or a hub name; None for a model without one.

    Raises WeightsError where tower or tokenizer cannot be loaded.
    """
    import transformers

    found = resolve(weights)
    try:
        config = transformers.AutoConfig.from_pretrained(found.path, local_files_only=found.local)
        if config.model_type not in TOWERS:
            return None
        kind, output, padding = TOWERS[config.model_type]
        model = getattr(transformers, kind).from_pretrained(found.path, local_files_only=found.local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(found.path, local_files_only=found.local)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{found.path}: its text tower could not be loaded ({str(error).splitlines()[0]}). Give a folder "
            "with the whole model and its tokenizer, or a hub name"
        ) from error
    return TextEncoder(model.to(pick_device(device)).eval(), tokenizer, output, padding)
