"""What every training here does besides learning: a falling rate, a log, and going on where it was killed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soir_qdrant.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Progress:
    """plan: the settings, a dataclass. state: file that holds the training as it stands. log: JSON lines."""

    plan: Any
    state: Path
    log: Path

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """How much was done before; `module` and `optimizer` are as they were then. Only what is trained of
        the module is kept. Raises ConfigError where `state` is of another plan."""
        if not self.state.is_file():
            return 0
        held = torch.load(self.state, weights_only=True)
        if held["plan"] != asdict(self.plan):
            raise ConfigError(
                f"{self.state}: of another plan ({held['plan']}); delete it, or give the same settings"
            )
        module.load_state_dict(held["module"], strict=False)
        optimizer.load_state_dict(held["optimizer"])
        return int(held["done"])

    def note(self, line: Mapping[str, float]) -> None:
        """Write a line of the log."""
        with self.log.open("a") as out:
            out.write(json.dumps(dict(line)) + "\n")

    def keep(
        self, done: int, module: nn.Module, optimizer: torch.optim.Optimizer, line: Mapping[str, float]
    ) -> None:
        """Write the log's line, then the state, whole or not at all."""
        self.note(line)
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        held = {name: x for name, x in module.state_dict().items() if name in trained}
        part = self.state.with_name(f".{self.state.name}.part")
        torch.save(
            {
                "plan": asdict(self.plan),
                "done": done,
                "module": held,
                "optimizer": optimizer.state_dict(),
            },
            part,
        )
        part.replace(self.state)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, share: float, warm: float = 0.0) -> None:
    """Falls by a cosine from `lr` to a hundredth of it, after rising over the share `warm`. share: 0..1."""
    factor = 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
    rising = min(1.0, (share + 1e-3) / warm) if warm else 1.0
    for group in optimizer.param_groups:
        group["lr"] = lr * factor * rising
