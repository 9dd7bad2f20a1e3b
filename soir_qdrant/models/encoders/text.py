"""The text tower that belongs to a CLIP or SigLIP encoder: words to descriptors in the crops' own space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from soir_qdrant.contracts import TextTower
from soir_qdrant.models.devices import pick_device
from soir_qdrant.models.encoders.words import WHAT, Tower, load_tokenizer, tokens_of, tower_of
from soir_qdrant.models.pretrained import load_model
from soir_qdrant.models.weights import resolve
from soir_qdrant.types import Vector


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder(TextTower):
    """model, tokenizer: of `transformers`."""

    model: Any
    tokenizer: Any
    tower: Tower

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return int(self.model.config.max_position_embeddings)

    def encode(self, texts: list[str]) -> Vector:
        """See `TextTower`."""
        tower = self.tower
        tokens = tokens_of(self.tokenizer, texts, tower.inputs, length=self.length, padding=tower.padding)
        inputs = {name: torch.from_numpy(array).to(self.model.device) for name, array in tokens.items()}
        with torch.inference_mode():
            rows = getattr(self.model(**inputs), tower.output)
        unit: Vector = F.normalize(rows.float(), dim=-1).cpu().numpy()
        return unit


def text_encoder(weights: str, device: str = "auto") -> TextEncoder | None:
    """The text tower of the encoder's weights, a folder or a hub name; None for a model without one.

    Raises WeightsError where tower or tokenizer cannot be loaded.
    """
    resolved = resolve(weights)
    tower = tower_of(resolved)
    if tower is None:
        return None
    model, tokenizer = load_model(resolved, tower.loader, WHAT), load_tokenizer(resolved)
    return TextEncoder(model.to(pick_device(device)).eval(), tokenizer, tower)
