"""The texture's network: what the surface of an object looks like, from the encoder's first tokens of it.

One class is trained (`soir train texture`), run (`encoders/vit.py`), exported and saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.contracts import TEXTURE_CELLS, TEXTURE_LAYER
from soir_qdrant.errors import ConfigError
from soir_qdrant.models import artifacts

LAYERS = (TEXTURE_LAYER - 2, TEXTURE_LAYER)  # blocks whose tokens are read: the first and third that ship
WIDTH, LENGTH = 256, 384  # of its tokens, of a texture
PART = 64  # numbers of a token that one head of the attention reads
COMMAND = "soir train texture"


class TextureHead(nn.Module):
    """Tokens of a stretched box after some early blocks and each patch's weight -> a texture.

    One layer of a transformer over the patches, then their mean and deviation by weight. It is trained by what a
    camera changes and what it does not: two looks at a thing are to be alike, those of all others not (as copy
    detectors are: Pizzi et al., 2202.10261).

    Args:
        dim: D, of a token.
        fitted_for: whose tokens it reads; `Weights.sha256`.
        width: of its own tokens. length: of a texture.
    """

    layers = LAYERS

    def __init__(self, dim: int, *, fitted_for: str = "", width: int = WIDTH, length: int = LENGTH) -> None:
        super().__init__()
        self.fitted_for, self.length = fitted_for, length
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in LAYERS])
        self.enter = nn.Linear(dim * len(LAYERS), width)
        self.places = nn.Parameter(torch.zeros(TEXTURE_CELLS**2, width))
        self.inside = nn.Parameter(torch.randn(width) * 0.02)
        self.attention = _Attention(width)
        self.before = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, length)

    def forward(self, tokens: Sequence[Tensor], weights: Tensor) -> Tensor:
        """tokens: [B, P, D] after each block of LAYERS; weights: [B, P], they sum to 1. -> float32 [B, length], unit
        rows."""
        read = torch.cat([norm(x) for norm, x in zip(self.norms, tokens, strict=True)], -1)
        share = weights / weights.amax(1, keepdim=True).clamp_min(1e-6)
        x = self.enter(read) + self.places + share[..., None] * self.inside
        x = x + self.attention(self.before[0](x))
        x = self.norm(x + self.mlp(self.before[1](x)))
        mean = weights[:, None] @ x
        spread = weights[:, None] @ (x - mean) ** 2
        rows = self.out(torch.cat([mean, spread.clamp_min(1e-6).sqrt()], -1)[:, 0])
        return F.normalize(rows.float(), dim=-1)

    @property
    def name(self) -> str:
        """Eight hex digits that name its content."""
        digest = hashlib.sha256()
        for key, x in sorted(self.state_dict().items()):
            digest.update(key.encode() + x.half().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]

    def save(self, file: Path, fitted_for: str) -> None:
        """Write a safetensors file in half precision, whole or not at all. fitted_for: as above."""
        arrays = {key: x.half().cpu().numpy() for key, x in self.state_dict().items()}
        artifacts.save(file, arrays, fitted_for=fitted_for)

    @classmethod
    def load(cls, file: Path) -> TextureHead:
        """In eval mode, without gradients. Raises ConfigError where the file is missing or no such head."""
        arrays, about = artifacts.load(file, "head of textures", COMMAND, "enter.weight", "out.weight")
        width, read = arrays["enter.weight"].shape
        head = cls(
            read // len(LAYERS),
            fitted_for=about["fitted_for"],
            width=width,
            length=len(arrays["out.weight"]),
        )
        try:
            head.load_state_dict({key: torch.from_numpy(x).float() for key, x in arrays.items()})
        except RuntimeError as error:
            raise ConfigError(
                f"{file}: a head of another version; make one with `{COMMAND}` ({error})"
            ) from error
        return head.eval().requires_grad_(False)


class _Attention(nn.Module):
    """Of all patches to all others, [B, P, W] -> [B, P, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, PART)).transpose(1, 2) for part in self.enter(x).chunk(3, -1))
        read = F.scaled_dot_product_attention(q, k, v)
        after: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return after
