"""The segmenter's network: a small U-Net says which pixels of a window are the object's.

One class is trained (`soir train segmenter`), run (`segmenters/token_unet.py`) and saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.models import artifacts
from soir_qdrant.models.heads.blocks import block

SIDE = 96  # of what the network reads and predicts of a window, in pixels; at 64 masks are worse
CELL = 8  # pixels along a token: the network halves three times
WIDTHS = (16, 32, 64, 128)  # channels at a side of 96, 48, 24 and 12

Tokens = Literal["window", "grid"]  # of the window alone, or sampled from the tokens of the whole image


class MaskHead(nn.Module):
    """A U-Net on the pixels of a window, joined at its bottom by the encoder's tokens of the same window.

    Small [B, side, side, 3], 0..255, planes [B, side, side, 2] (see `windows.box_planes`) and tokens
    [B, cells^2, D] -> logits [B, side, side] of each pixel to be the object's.

    Args:
        dim: D, of a token.
        widths: channels, from the finest resolution to the coarsest.
        side: of a window, in pixels, a multiple of CELL.
        tokens: which ones it was trained on; see `Tokens`.
        fitted_for: whose tokens it reads, a fingerprint of the encoder without the size of its crops.
    """

    def __init__(
        self,
        dim: int,
        widths: tuple[int, int, int, int] = WIDTHS,
        *,
        side: int = SIDE,
        tokens: Tokens = "grid",
        fitted_for: str = "",
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        self.side, self.reads, self.fitted_for = side, tokens, fitted_for
        self.e0 = block(5, a)
        self.e1 = nn.Sequential(block(a, b, stride=2), block(b, b))
        self.e2 = nn.Sequential(block(b, c, stride=2), block(c, c))
        self.e3 = block(c, d, stride=2)
        self.tokens = nn.Conv2d(dim, d, 1)
        self.middle = nn.Sequential(block(d, d), block(d, d))
        self.d2 = nn.Sequential(block(d + c, c), block(c, c))
        self.d1 = nn.Sequential(block(c + b, b), block(b, b))
        self.d0 = block(b + a, a)
        self.out = nn.Conv2d(a, 1, 1)

    @property
    def cells(self) -> int:
        """Tokens along a window."""
        return self.side // CELL

    def forward(self, small: Tensor, planes: Tensor, tokens: Tensor) -> Tensor:
        x0 = self.e0(torch.cat([(small / 255 - 0.5) * 4, planes], -1).movedim(-1, 1))
        x1 = self.e1(x0)
        x2 = self.e2(x1)
        cells = F.layer_norm(tokens, tokens.shape[-1:]).movedim(-1, 1).unflatten(2, (self.cells, self.cells))
        y = F.silu(self.e3(x2) + self.tokens(cells))
        y = y + self.middle(y)
        y = self.d2(torch.cat([_doubled(y), x2], 1))
        y = self.d1(torch.cat([_doubled(y), x1], 1))
        y = self.d0(torch.cat([_doubled(y), x0], 1))
        logits: Tensor = self.out(y)[:, 0]
        return logits

    def save(self, file: Path, fitted_for: str) -> None:
        """Write a safetensors file in half precision, whole or not at all. fitted_for: as above."""
        arrays = {name: x.half().cpu().numpy() for name, x in self.state_dict().items()}
        artifacts.save(file, arrays, fitted_for=fitted_for, side=str(self.side), tokens=self.reads)

    @classmethod
    def load(cls, file: Path) -> MaskHead:
        """A file of `save`, in float32, to be run: in eval mode, without gradients.

        Raises:
            ConfigError: the file is missing, or not a head's.
        """
        arrays, about = artifacts.load(file, "segmenter", "soir train segmenter", "e0.0.weight", "out.weight")
        tokens = about.get("tokens", "window")
        if tokens not in ("window", "grid"):
            raise ConfigError(f"{file}: reads tokens {tokens!r}, which this version does not know; update it")
        try:
            names = ("e0.0.bias", "e1.0.0.bias", "e2.0.0.bias", "e3.0.bias")
            a, b, c, d = (len(arrays[name]) for name in names)
            head = cls(
                arrays["tokens.weight"].shape[1],
                (a, b, c, d),
                side=int(about.get("side", 64)),
                tokens=cast(Tokens, tokens),
                fitted_for=about["fitted_for"],
            )
            head.load_state_dict({name: torch.from_numpy(x).float() for name, x in arrays.items()})
        except (KeyError, RuntimeError, ValueError) as error:
            hint = "make one with `soir train segmenter`"
            raise ConfigError(f"{file}: not the file of a segmenter ({error}); {hint}") from error
        head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return head.eval().requires_grad_(False)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
