"""Low-rank additions to an encoder's linear layers (LoRA), added into its weights where they are loaded.

`soir train encoder` learns them; nothing downstream, local, exported or served, sees more than a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.models import artifacts
from soir_qdrant.models.last_block import LastBlock

DOWN, UP = ".down", ".up"


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """W + up down for the linear layers of the last few blocks.

    factors: by block, counted from the end, and layer, as `LastBlock` names it ("-1.fc1"): down, float
    [r, in], and up, float [out, r]. fitted_for: `Weights.sha256` of those they were learnt beside.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    fitted_for: str

    def add_to(self, block: Callable[[int], LastBlock | None]) -> None:
        """Add them into a model's weights. block: gives its blocks, whose tensors are the model's own.

        Raises ConfigError where the model has no such layer.
        """
        with torch.no_grad():
            for name, (down, up) in self.factors.items():
                index, _, layer = name.partition(".")
                exposed = block(int(index))
                weight = exposed.weights.get(f"{layer}.weight") if exposed else None
                if weight is None or weight.shape != (len(up), down.shape[1]):
                    raise ConfigError(f"the adapter's layer {name} does not fit this model")
                weight += (up.float() @ down.float()).to(weight)

    def then(self, other: Adapter) -> Adapter:
        """Both as one: `other` was learnt on weights to which this one had been added."""
        names = list(self.factors | other.factors)
        some = {name: [a.factors[name] for a in (self, other) if name in a.factors] for name in names}
        joined = {
            name: (
                torch.cat([down.float() for down, _ in pairs]),
                torch.cat([up.float() for _, up in pairs], 1),
            )
            for name, pairs in some.items()
        }
        return Adapter(joined, self.fitted_for)

    @property
    def name(self) -> str:
        """Eight hex digits that name its content, and how many blocks it changes: "1f09ac3b.2"."""
        return f"{self._digest}.{max((-int(key.partition('.')[0]) for key in self.factors), default=0)}"

    @property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, pair in sorted(self.factors.items()):
            digest.update(name.encode())
            for factor in pair:
                digest.update(factor.half().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]

    def save(self, file: Path) -> None:
        """Write a safetensors file in float16, whole or not at all."""
        arrays = {
            name + end: factor.half().cpu().numpy()
            for name, pair in self.factors.items()
            for end, factor in zip((DOWN, UP), pair, strict=True)
        }
        artifacts.save(file, arrays, fitted_for=self.fitted_for)

    @classmethod
    def load(cls, file: Path) -> Adapter:
        """Raises ConfigError where the file is missing or no adapter."""
        arrays, about = artifacts.load(file, "adapter of an encoder", "soir train encoder")
        tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
        names = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
        if not names or any(name + UP not in tensors for name in names):
            raise ConfigError(f"{file}: not the file of an adapter; make one with `soir train encoder`")
        return cls({name: (tensors[name + DOWN], tensors[name + UP]) for name in names}, about["fitted_for"])
