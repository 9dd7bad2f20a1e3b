"""Learned queries for a whole image: what takes the place of a CLS token or a probe (SUM, arXiv 2412.18806)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soir_qdrant.models import artifacts

WIDTH = "width"
COMMAND = "soir train words"


class QueryHead(nn.Module):
    """k queries that look at an image's tokens through a few decoder layers.

    They begin where the model's own pooling begins, so that untrained each is about what the model itself reads.

    Args:
        width: D, of the tokens.
        count: k.
        layers: of the decoder.
        heads: of its attention.
    """

    def __init__(self, width: int, *, count: int = 16, layers: int = 2, heads: int = 6) -> None:
        super().__init__()
        heads = next(n for n in range(min(heads, width), 0, -1) if width % n == 0)
        self.width, self.heads = width, heads
        self.queries = nn.Parameter(torch.randn(count, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerDecoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Queries of each image, [B, k, D].

        Args:
            tokens: [B, N, D], that enter the encoder's last block.
            start: [B, 1, D], what the model itself pools with: its CLS token, or its probe.
        """
        queries = self.queries.expand(len(tokens), -1, -1)
        decoded = self.decoder(queries, self.norm(tokens))
        moved: Tensor = start + queries + self.out(decoded)
        return moved

    def save(self, file: Path, fitted_for: str) -> None:
        """Write a safetensors file. fitted_for: fingerprint of the encoder, tiles included."""
        arrays = {name: x.detach().cpu().numpy() for name, x in self.state_dict().items()}
        about = {"fitted_for": fitted_for, "heads": str(self.heads)}
        artifacts.save(file, arrays, **about)

    @classmethod
    def load(cls, file: Path) -> tuple[QueryHead, str]:
        """A head in eval mode, and what it was trained for. Raises ConfigError where the file is none."""
        arrays, about = artifacts.load(file, "head of learned queries", COMMAND, "queries", "out.weight")
        state: dict[str, Any] = {name: torch.from_numpy(x) for name, x in arrays.items()}
        count, width = state["queries"].shape
        layers = len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})
        head = cls(width, count=count, layers=layers, heads=int(about.get("heads", 6)))
        head.load_state_dict(state)
        return head.eval().requires_grad_(False), about["fitted_for"]
