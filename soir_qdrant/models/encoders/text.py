"""The text tower that belongs to a CLIP or SigLIP encoder: words to descriptors in the crops' own space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.devices import pick_device
from soir_qdrant.models.pretrained import load_config, load_model, loading
from soir_qdrant.models.weights import resolve
from soir_qdrant.types import Vector


@dataclass(frozen=True, slots=True)
class Tower:
    """How a text tower is called. loader: its class in `transformers`; output: what of its answer is the
    descriptor; padding: of its tokenizer; inputs: names of its arguments."""

    loader: str
    output: str
    padding: bool | str
    inputs: tuple[str, ...]


TOWERS = {
    "clip": Tower("CLIPTextModelWithProjection", "text_embeds", True, ("input_ids", "attention_mask")),
    # trained on texts padded to one length, the padding not masked
    "siglip": Tower("SiglipTextModel", "pooler_output", "max_length", ("input_ids",)),
    "siglip2": Tower("Siglip2TextModel", "pooler_output", "max_length", ("input_ids",)),
    "metaclip_2": Tower(
        "MetaClip2TextModelWithProjection", "text_embeds", True, ("input_ids", "attention_mask")
    ),
    "tipsv2": Tower("Tipsv2TextModel", "pooler_output", True, ("input_ids", "attention_mask")),
}


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """model, tokenizer: of `transformers`."""

    model: Any
    tokenizer: Any
    tower: Tower

    def encode(self, texts: list[str]) -> Vector:
        """Unit rows, float32 [T, D]. What is longer than the model reads is cut off. Raises ConfigError for a
        text without words."""
        if not all(text.strip() for text in texts):
            raise ConfigError("the query text is empty: say what to look for")
        longest = self.model.config.max_position_embeddings
        tokens = self.tokenizer(
            texts, padding=self.tower.padding, max_length=longest, truncation=True, return_tensors="pt"
        )
        inputs = {name: tokens[name].to(self.model.device) for name in self.tower.inputs}
        with torch.inference_mode():
            rows = getattr(self.model(**inputs), self.tower.output)
        unit: Vector = F.normalize(rows.float(), dim=-1).cpu().numpy()
        return unit


def text_encoder(weights: str, device: str = "auto") -> TextEncoder | None:
    """The text tower of the encoder's weights, a folder or a hub name; None for a model without one.

    Raises WeightsError where tower or tokenizer cannot be loaded.
    """
    resolved = resolve(weights)
    tower = TOWERS.get(load_config(resolved).model_type)
    if tower is None:
        return None
    what = "its text tower"
    model = load_model(resolved, tower.loader, what)
    with loading(resolved, what) as (transformers, options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolved.path, **options)
        if len(tokenizer) < model.config.vocab_size // 2:  # of a folder without one, an empty one is made
            raise OSError("its tokenizer is missing")
    return TextEncoder(model.to(pick_device(device)).eval(), tokenizer, tower)
