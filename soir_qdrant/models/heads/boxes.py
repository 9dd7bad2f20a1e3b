"""The detector's network: a light head on an encoder's tokens says of every cell what object it lies in.

One class is trained (`soir train detector`), run (`detectors/token_head.py`) and saved.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.models import artifacts

PIXELS = 8  # side of a cell in the small image that the head sees beside the tokens
WIDTHS = (128, 160, 192)  # channels of the three levels
STRIDES = (1, 2, 4)  # of their cells, in tokens
VERSION = "2"  # of the network; heads of another one cannot be read
GROUPS = 8  # of a normalisation
FEW = 1024  # places of a map, below which torch 2 normalises few channels in half precision five times slower


class GroupNorm(nn.GroupNorm):
    """In float32 where torch is slow in half precision, with an answer of the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 or x.shape[-2] * x.shape[-1] >= FEW:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def _block(into: int, out: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution of 3 x 3, normalisation, SiLU: [B, into, h, w] -> [B, out, h / stride, w / stride]."""
    convolution = nn.Conv2d(into, out, 3, stride=stride, padding=dilation, dilation=dilation)
    return nn.Sequential(convolution, GroupNorm(GROUPS, out), nn.SiLU())


class Head(nn.Module):
    """A feature pyramid over the token grid: small objects are boxed on its own cells, larger ones on cells
    two and four times as wide, whose surroundings reach across the whole object.

    Tokens [B, D, h, w] and pixels [B, 3, 8 h, 8 w], 0..1 -> per level logits [B, h', w'] of the IoU that a
    cell expects of its box, and boxes [B, h', w', 4]: x0, y0, x1, y1 in tokens of the grid. Convolutions
    alone: any grid will do. (Feature pyramids: arXiv 1612.03144; one box a cell: FCOS, 1904.01355.)
    """

    def __init__(self, dim: int, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.dim, self.widths = dim, widths
        self.tokens = nn.Conv2d(dim, a, 1)
        self.pixels = nn.Conv2d(3 * PIXELS**2, a, 1)
        self.fine = _residual(a, 2)
        self.down = nn.ModuleList([_block(a, b, stride=2), _block(b, c, stride=2)])
        self.deep = nn.ModuleList([_residual(b, 2), _residual(c, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, b, 1), nn.Conv2d(b, a, 1)])
        self.merged = nn.ModuleList([_residual(b, 1), _residual(a, 1)])
        self.out = nn.ModuleList(nn.Conv2d(width, 5, 1) for width in widths)
        for out in self.out:
            assert isinstance(out, nn.Conv2d)
            assert out.bias is not None
            nn.init.zeros_(out.weight)
            with torch.no_grad():  # objects are rare, and about four cells wide
                out.bias.copy_(torch.tensor([-3.0, 0.7, 0.7, 0.7, 0.7]))

    def forward(self, tokens: Tensor, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        tokens = F.layer_norm(tokens.movedim(1, -1), (self.dim,)).movedim(-1, 1)
        small = F.pixel_unshuffle(pixels - 0.5, PIXELS) * 4
        x0 = _run(self.fine, F.silu(self.tokens(tokens) + self.pixels(small)))
        x1 = _run(self.deep[0], self.down[0](x0))
        x2 = _run(self.deep[1], self.down[1](x1))
        x1 = _run(self.merged[0], x1 + _enlarged(self.lateral[0](x2), x1))
        x0 = _run(self.merged[1], x0 + _enlarged(self.lateral[1](x1), x0))
        return [
            _named(out(x), stride) for out, x, stride in zip(self.out, (x0, x1, x2), STRIDES, strict=True)
        ]

    def save(self, file: Path, fitted_for: str) -> None:
        """A safetensors file in half precision, whole or not at all. fitted_for: whose tokens it reads, a
        fingerprint of the encoder without the size of its crops."""
        arrays = {name: x.half().cpu().numpy() for name, x in self.state_dict().items()}
        artifacts.save(file, arrays, fitted_for=fitted_for, version=VERSION)


class TrainedHead:
    """A head that was loaded to be run. network: in eval mode, without gradients. fitted_for: see
    `Head.save`."""

    def __init__(self, network: Head, fitted_for: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.fitted_for = fitted_for

    @classmethod
    def load(cls, file: Path) -> TrainedHead:
        """Raises ConfigError where the file is missing, no head, or of another version."""
        arrays, about = artifacts.load(file, "detector", "soir train detector", "pixels.weight")
        if about.get("version") != VERSION:
            raise ConfigError(f"{file}: a head of another version; make one anew with `soir train detector`")
        a, b, c = (len(arrays[name]) for name in ("tokens.bias", "down.0.0.bias", "down.1.0.bias"))
        network = Head(arrays["tokens.weight"].shape[1], (a, b, c))
        network.load_state_dict({name: torch.from_numpy(x).float() for name, x in arrays.items()})
        return cls(network, about["fitted_for"])


def flat(levels: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What the levels of `Head` say, side by side: logits [B, n] and boxes [B, n, 4]."""
    logits = torch.cat([logit.flatten(1) for logit, _ in levels], 1)
    return logits, torch.cat([boxes.flatten(1, 2) for _, boxes in levels], 1)


def _residual(width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(_block(width, width, dilation=1 + i % 2) for i in range(count))


def _run(blocks: nn.Module, x: Tensor) -> Tensor:
    for one in blocks.children():
        x = x + one(x)
    return x


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _named(said: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Logits and boxes, in tokens, of the outputs [B, 5, h, w] of a level."""
    score, sides = said.float().split([1, 4], 1)
    return score[:, 0], _around(sides.clamp(max=4).exp().movedim(1, -1)) * stride


def _around(sides: Tensor) -> Tensor:
    """Distances to the left, top, right, bottom of each cell's middle, [..., h, w, 4] -> boxes in cells."""
    h, w = sides.shape[-3:-1]
    y = torch.arange(h, device=sides.device) + 0.5
    x = torch.arange(w, device=sides.device) + 0.5
    middle = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)
    return torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], -1)
