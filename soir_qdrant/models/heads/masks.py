"""The segmenter's network: a small U-Net says which pixels of a window are the object's.

One class is trained (`soir train segmenter`), run (`segmenters/token_unet.py`) and saved.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from soir_qdrant.errors import ConfigError
from soir_qdrant.models import artifacts

SIDE = 96  # of what the network reads and predicts of a window, in pixels; at 64 masks are worse
CELL = 8  # pixels along a token
CELLS = SIDE // CELL  # tokens along a window
FINEST = 2  # pixels along a place of its finest map: it reads and names them by fours
WIDTHS = (32, 64, 128)  # channels at a side of 48, 24 and 12
VERSION = "2"  # of the network; heads of another one cannot be read
COMMAND = "soir train segmenter"


class MaskHead(nn.Module):
    """A U-Net on the pixels of a window, joined at its bottom by the encoder's tokens of the same window.

    Small [B, SIDE, SIDE, 3], 0..255, planes [B, SIDE, SIDE, 2] (see `windows.box_planes`) and tokens
    [B, CELLS^2, D] -> logits [B, SIDE, SIDE] of each pixel to be the object's. (U-Net: arXiv 1505.04597; maps are
    added, as in feature pyramids, 1612.03144.)

    Args:
        dim: D, of a token.
        widths: channels, from the finest map to the coarsest.
        fitted_for: whose tokens it reads, a fingerprint of the encoder without the size of its crops.
    """

    def __init__(self, dim: int, widths: tuple[int, int, int] = WIDTHS, *, fitted_for: str = "") -> None:
        super().__init__()
        a, b, c = widths
        self.fitted_for = fitted_for
        self.fine = nn.Sequential(_Block(5 * FINEST**2, a), _Block(a, a))
        self.wide = nn.Sequential(_Block(a, b, stride=2), _Block(b, b))
        self.deep = _Block(b, c, stride=2)
        self.tokens = nn.Conv2d(dim, c, 1)
        self.bottom = nn.Sequential(_Block(c, c), _Block(c, c))
        self.lateral = nn.ModuleList([nn.Conv2d(c, b, 1), nn.Conv2d(b, a, 1)])
        self.back_wide = nn.Sequential(_Block(b, b), _Block(b, b))
        self.back_fine = nn.Sequential(_Block(a, a), _Block(a, a))
        self.out = nn.Conv2d(a, FINEST**2, 1)

    def forward(self, small: Tensor, planes: Tensor, tokens: Tensor) -> Tensor:
        pixels = torch.cat([(small / 255 - 0.5) * 4, planes], -1).movedim(-1, 1)
        fine = self.fine(F.pixel_unshuffle(pixels, FINEST))
        wide = self.wide(fine)
        cells = F.layer_norm(tokens, tokens.shape[-1:]).movedim(-1, 1).unflatten(2, (CELLS, CELLS))
        x = F.relu(self.deep(wide) + self.tokens(cells))
        x = x + self.bottom(x)
        x = self.back_wide(_doubled(self.lateral[0](x)) + wide)
        x = self.back_fine(_doubled(self.lateral[1](x)) + fine)
        return F.pixel_shuffle(self.out(x), FINEST)[:, 0]

    def fused(self) -> MaskHead:
        """A copy to be run: the same logits, without normalisations, which are part of the convolutions."""
        head = deepcopy(self).eval().requires_grad_(False)
        for module in head.modules():
            if isinstance(module, _Block):
                module.fuse()
        return head

    def save(self, file: Path, fitted_for: str) -> None:
        """Write a safetensors file, weights in half precision, whole or not at all. fitted_for: as above."""
        arrays = {
            name: (x.half() if x.ndim > 1 else x).cpu().numpy()
            for name, x in self.state_dict().items()
            if x.ndim  # not the number of batches that were averaged, which nothing reads
        }
        artifacts.save(file, arrays, fitted_for=fitted_for, version=VERSION)

    @classmethod
    def load(cls, file: Path) -> MaskHead:
        """A file of `save`, in float32: in eval mode, without gradients.

        Raises:
            ConfigError: the file is missing, not a head's, or one of another version.
        """
        arrays, about = artifacts.load(file, "segmenter", COMMAND, "out.weight")
        if about.get("version") != VERSION:
            raise ConfigError(f"{file}: a segmenter of another version; make one anew with `{COMMAND}`")
        try:
            a, b, c = (len(arrays[f"{name}.weight"]) for name in ("fine.0.0", "wide.0.0", "deep.0"))
            head = cls(arrays["tokens.weight"].shape[1], (a, b, c), fitted_for=about["fitted_for"])
            head.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
        except (KeyError, RuntimeError, ValueError) as error:
            hint = f"make one with `{COMMAND}`"
            raise ConfigError(f"{file}: not the file of a segmenter ({error}); {hint}") from error
        head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return head.eval().requires_grad_(False)


class _Block(nn.Sequential):
    """Convolution of 3 x 3, normalisation, ReLU: [B, into, h, w] -> [B, out, h / stride, w / stride]."""

    def __init__(self, into: int, out: int, *, stride: int = 1) -> None:
        convolution = nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True))

    def fuse(self) -> None:
        """Make the normalisation part of the convolution, in place."""
        convolution, normalisation = self[0], self[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(normalisation, nn.BatchNorm2d)
        self[0], self[1] = fuse_conv_bn_eval(convolution, normalisation), nn.Identity()


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
