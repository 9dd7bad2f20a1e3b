"""What every training here does besides learning: a falling rate, a log, and going on where it was killed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.lab.evaluate.bench import Bench

Scene = TypeVar("Scene")
Network = TypeVar("Network", bound=nn.Module)


def starting_head(
    start: Path | None,
    fitted_for: str,
    new: Callable[[int], Network],
    load: Callable[[Path], tuple[Network, str]],
) -> tuple[Callable[[int], Network], str]:
    """What makes the head to train, by the length of a token, and eight hex digits that name where it starts.

    Args:
        start: the file of a head to go on from, None for a new one.
        fitted_for: whose tokens it is to read; see `compatibility.trunk`.
        new: makes a new one.
        load: reads one, and whose tokens that reads.

    Raises:
        ConfigError: where the file is no head, or one of another encoder.
    """
    if start is None:
        return new, ""
    head, reads = load(start)
    if reads != fitted_for:
        raise ConfigError(
            f"{start} was trained for {reads!r}, and the encoder is {fitted_for!r}: leave --start out, or name the "
            "profile that it was trained for"
        )
    head.requires_grad_(True)
    return lambda _: head, hashlib.sha256(start.read_bytes()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Progress:
    """plan: the settings, a dataclass. state: file that holds the training as it stands. log: JSON lines.
    data: names what is learnt from; see `contents`."""

    plan: Any
    state: Path
    log: Path
    data: str = ""

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """How much was done before; `module`, `optimizer` and the log are as they were then. What is
        frozen of the module is not kept. Raises ConfigError where `state` is of another plan, or other data."""
        if not self.state.is_file():
            self.log.unlink(missing_ok=True)
            return 0
        saved = torch.load(self.state, map_location="cpu", weights_only=True)
        if saved["plan"] != asdict(self.plan):
            raise ConfigError(
                f"{self.state}: of another plan ({saved['plan']}); delete it, or give the same settings"
            )
        if saved.get("data") != self.data:
            raise ConfigError(
                f"{self.state}: of other pictures or labels, or another encoder; delete it to start anew"
            )
        module.load_state_dict(saved["module"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        if self.log.is_file() and saved.get("logged", math.inf) < self.log.stat().st_size:
            os.truncate(self.log, saved["logged"])  # it was killed after a line, before the state
        return int(saved["done"])

    def note(self, line: Mapping[str, float]) -> None:
        """Write a line of the log."""
        with self.log.open("a") as out:
            out.write(json.dumps(dict(line)) + "\n")

    def keep(
        self, done: int, module: nn.Module, optimizer: torch.optim.Optimizer, line: Mapping[str, float]
    ) -> None:
        """Write the log's line, then the state, whole or not at all."""
        self.note(line)
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        weights = {name: x for name, x in module.state_dict().items() if name not in frozen}
        part = self.state.with_name(f".{self.state.name}.part")
        torch.save(
            {
                "plan": asdict(self.plan),
                "data": self.data,
                "done": done,
                "module": weights,
                "optimizer": optimizer.state_dict(),
                "logged": self.log.stat().st_size,
            },
            part,
        )
        part.replace(self.state)


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """epochs, batch, lr (AdamW, cosine to a hundredth), decay, seed; held: every so many-th scene is not
    trained on, but measured."""

    epochs: int
    batch: int
    lr: float = 2e-3
    decay: float = 0.02
    seed: int = 0
    holdout: int = 10


def split(scenes: Sequence[Scene], plan: HeadPlan) -> tuple[list[Scene], list[Scene]]:
    """The scenes to train on, and those to measure on."""
    last = plan.holdout - 1
    training = [one for i, one in enumerate(scenes) if i % plan.holdout != last]
    return training, [one for i, one in enumerate(scenes) if i % plan.holdout == last]


def train_epochs(
    head: nn.Module,
    progress: Progress,
    count: int,
    steps: int,
    loss: Callable[[NDArray[np.int64], np.random.Generator], Tensor],
    measure: Callable[[], Mapping[str, float]],
    report: Callable[[dict[str, float]], None],
    warm: float = 0.0,
) -> None:
    """Train a head in place, by the `HeadPlan` of `progress`. count: examples; steps: of an epoch. loss: of
    some of them; measure: what is held out, after every epoch. warm: see `set_rate`."""
    plan = progress.plan
    head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as inputs lie: 1.6 times as fast
    adam = torch.optim.AdamW(head.parameters(), lr=plan.lr, weight_decay=plan.decay)
    for epoch in range(progress.resume(head, adam), plan.epochs):
        rng = np.random.default_rng((plan.seed, epoch))
        order, total = rng.permutation(count), 0.0
        head.train()
        for step in range(steps):
            set_rate(adam, plan.lr, (epoch * steps + step) / (plan.epochs * steps), warm)
            value = loss(order[step * plan.batch : (step + 1) * plan.batch], rng)
            adam.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
            adam.step()
            total += float(value.detach())
        line = {"epoch": epoch + 1, "loss": round(total / steps, 4)} | dict(measure())
        progress.keep(epoch + 1, head, adam, line)
        report(line)
    head.eval()


def contents(benches: Sequence[Bench], *also: str) -> str:
    """Eight hex digits that name pictures, their labels and masks, and what else was there."""
    digest = hashlib.sha256(repr(also).encode())
    for bench in benches:
        for entry in bench.gallery:
            whole = "" if entry.exhaustive else " not exhaustive"
            digest.update(f"{_named(entry.file)} {entry.objects!r}{whole}".encode())
            if entry.masked:
                digest.update(
                    repr(entry.outlines).encode() if entry.mask is None else entry.mask.read_bytes()
                )
        for query in bench.queries:
            digest.update(f"{_named(query.file)} {query!r}".encode())
    return digest.hexdigest()[:8]


def _named(file: Path) -> str:
    return f"{file.resolve()} {file.stat().st_size}"


def place_of(cache: Path, bench: Bench, *depends_on: str, labels: bool = True) -> Path:
    """Where a cache keeps what was computed of a folder: of its images and labels (`labels`) as they are now,
    by an encoder and whatever else decided."""
    if not labels:
        bare = [
            replace(entry, objects=[], mask=None, outlines=None, exhaustive=True) for entry in bench.gallery
        ]
        bench = Bench(bench.root, bare, [])
    return cache / f"{bench.root.name}-{contents([bench], *depends_on)}"


def write_once(file: Path, write: Callable[[BinaryIO], None]) -> None:
    """A file, whole or not at all; nothing where it is there."""
    if not file.is_file():
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            write(out)
        part.replace(file)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, share: float, warm: float = 0.0) -> None:
    """Falls by a cosine from `lr` to a hundredth of it, after rising over the share `warm`. share: 0..1."""
    factor = 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
    warmup = min(1.0, (share + 1e-3) / warm) if warm else 1.0
    for group in optimizer.param_groups:
        group["lr"] = lr * factor * warmup
