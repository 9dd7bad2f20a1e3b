"""Stage A: tune the encoder's last blocks for the pooling that is shipped (arXiv 2503.07038, section 4).

Scenes are drawn from views of labelled things, some of them easily taken for each other. InfoNCE: a query's
view is to be nearer to the pooled vector of its own scene than to the others' of the batch, and nearer to its
own object than to all others. Pooling and projection are those of the ingestor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.train.progress import Progress, set_rate
from soir_qdrant.lab.train.tail import Tail
from soir_qdrant.lab.train.views import Group, Views
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening

Take: TypeAlias = Callable[[NDArray[np.int64]], list[Group]]  # views -> what `Tail.of` reads
ENOUGH = 4  # views that say what a thing looks like
NEAREST = 12  # things that one is most easily taken for, among which its neighbours in a batch are drawn


@dataclass(frozen=True, slots=True)
class Plan:
    """steps; scenes, objects: of a batch, and of each of its scenes. near: things of a batch that are like
    one another. blocks, rank: what is tuned. lr: of AdamW, after a short rise falling by a cosine to a
    hundredth. temperature: of both losses. ridge: of the pooling. every: steps between two measurements.
    held: every so many-th thing is not trained on, but measured."""

    steps: int = 600
    scenes: int = 8
    objects: int = 8
    near: int = 4
    blocks: int = 2
    rank: int = 128
    lr: float = 1e-3
    temperature: float = 0.05
    ridge: float = 0.3
    every: int = 50
    holdout: int = 10
    seed: int = 0


class Things:
    """Which views show which thing, over several folders, and what each is easily taken for.

    A view is a row of the folders' views one after the other. Only things seen in two places can be learnt.
    """

    def __init__(self, folders: Sequence[Views]) -> None:
        names = np.concatenate([part.things for part in folders])
        self.scenes = np.concatenate([part.scenes for part in folders])
        self.query = np.concatenate([part.query for part in folders])
        order = np.argsort(names, kind="stable")
        views = np.split(order, np.flatnonzero(names[order][1:] != names[order][:-1]) + 1)
        self.views = [mine for mine in views if len(set(self.scenes[mine])) > 1]
        if len(self.views) < 2 * NEAREST:
            raise DatasetError(
                f"{len(self.views)} things are seen in two places: {2 * NEAREST} are needed at least to "
                "learn from"
            )
        self.middles = np.zeros((len(self.views), 1), np.float32)

    def look(self, say: Callable[[NDArray[np.int64]], NDArray[np.float32]]) -> None:
        """Learn what is alike. say: unit rows of some views, [n] -> [n, D]."""
        some = [mine[:: -(-len(mine) // ENOUGH)] for mine in self.views]
        rows = np.split(say(np.concatenate(some)), np.cumsum([len(mine) for mine in some])[:-1])
        self.middles = normalize(np.stack([part.mean(0) for part in rows]))

    def batch(self, among: NDArray[np.int64], rng: np.random.Generator, plan: Plan) -> NDArray[np.int64]:
        """Views [2, scenes * objects]: what the scenes hold, and what asks for each of it. among: things."""
        wanted = plan.scenes * plan.objects
        chosen: list[int] = []
        while len(chosen) < wanted:
            first = int(rng.choice(among))
            alike = among[np.argsort(-(self.middles[among] @ self.middles[first]))[1 : NEAREST + 1]]
            some = [first, *rng.permutation(alike)[: plan.near - 1].tolist()]
            chosen += [thing for thing in some if thing not in chosen][: wanted - len(chosen)]
        return np.array([self._pair(chosen[i], rng) for i in rng.permutation(wanted)]).T

    def _pair(self, thing: int, rng: np.random.Generator) -> tuple[int, int]:
        """A view in a scene, and one from elsewhere: a real query's, half of the time, where there is one."""
        mine = self.views[thing]
        stored = mine[~self.query[mine]]
        one = int(rng.choice(stored if len(stored) else mine))
        others = mine[self.scenes[mine] != self.scenes[one]]
        queries = others[self.query[others]]
        return one, int(rng.choice(queries if len(queries) and rng.random() < 0.5 else others))


def train(
    tail: Tail,
    folders: Sequence[Views],
    whitening: Whitening,
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> Tail:
    """Train in place; returns the tail. state, log, data: see `Progress`: it goes on where it was killed, to
    the same result. Raises DatasetError where too few things come again."""
    device = next(tail.parameters()).device
    project = _Projection(whitening, device)
    take = _taking(folders)
    things = Things(folders)
    things.look(lambda rows: said(tail, project, take, rows))
    holdout = np.arange(plan.holdout - 1, len(things.views), plan.holdout)
    training = np.setdiff1d(np.arange(len(things.views)), holdout)
    if len(training) < plan.scenes * plan.objects:
        raise DatasetError(
            f"{len(things.views)} things are seen in two places, and {len(training)} of them are trained on: a "
            f"batch needs {plan.scenes * plan.objects}"
        )
    adam = torch.optim.AdamW(tail.parameters(), lr=plan.lr, weight_decay=0.01)
    progress, recent = Progress(plan, state, log, data), torch.zeros(2)
    first = progress.resume(tail, adam)
    if not first:  # what there is to be gained on
        progress.note({"step": 0} | measure(tail, things, holdout, project, take, plan))
    for step in range(first, plan.steps):
        set_rate(adam, plan.lr, step / plan.steps, warm=0.02)
        pair = things.batch(training, np.random.default_rng((plan.seed, step)), plan)
        stored, queries = project(tail.of(take(pair.ravel()))).chunk(2)
        losses = both(stored, queries, plan)
        adam.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(tail.parameters(), 1.0)
        adam.step()
        recent += losses.detach().cpu()
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            count = (step % plan.every) + 1
            scene, thing = (recent / count).tolist()
            line = {"step": step + 1, "scene": round(scene, 4), "object": round(thing, 4)}
            line |= measure(tail, things, holdout, project, take, plan)
            progress.keep(step + 1, tail, adam, line)
            report(line)
            recent.zero_()
    return tail.eval()


def both(stored: Tensor, queries: Tensor, plan: Plan) -> Tensor:
    """The two losses, [2]. stored, asked: unit rows [scenes * objects, D], scene after scene."""
    scenes = pool(stored.view(plan.scenes, plan.objects, -1), plan.ridge)
    home = torch.arange(len(queries), device=queries.device)
    by_scene = F.cross_entropy(queries @ scenes.T / plan.temperature, home // plan.objects)
    by_object = F.cross_entropy(queries @ stored.T / plan.temperature, home)
    return torch.stack([by_scene, by_object])


def pool(rows: Tensor, ridge: float) -> Tensor:
    """Generalized max pooling as `pooling.pool`, with its gradient. Unit rows [S, k, D] -> [S, D]."""
    k = rows.shape[1]
    gram = rows @ rows.transpose(1, 2) + ridge * torch.eye(k, device=rows.device)
    dual = torch.linalg.solve(gram, torch.ones_like(rows[..., :1]))
    return F.normalize((rows * dual).sum(1), dim=-1)


@torch.no_grad()
def measure(
    tail: Tail,
    things: Things,
    holdout: NDArray[np.int64],
    project: _Projection,
    take: Take,
    plan: Plan,
) -> dict[str, float]:
    """Of queries for things that are not trained on: how many find their scene, and their object, first."""
    if len(holdout) < 2 * plan.objects:
        return {}
    fixed = Plan(scenes=min(len(holdout) // plan.objects, 16), objects=plan.objects, near=1)
    pair = things.batch(holdout, np.random.default_rng(0), fixed)
    stored, queries = (project(tail.of(take(part))) for part in pair)
    home = torch.arange(len(queries), device=queries.device)
    scenes = pool(stored.view(fixed.scenes, fixed.objects, -1), plan.ridge)
    accuracy = {
        "held scene": (queries @ scenes.T).argmax(1) == home // fixed.objects,
        "held object": (queries @ stored.T).argmax(1) == home,
    }
    return {name: round(float(right.float().mean()), 4) for name, right in accuracy.items()}


@torch.no_grad()
def said(tail: Tail, project: _Projection, take: Take, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the tail says of views, projected: float32 [n, D]."""
    parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    return np.concatenate([project(tail.of(take(part))).cpu().numpy() for part in parts])


class _Projection:
    def __init__(self, whitening: Whitening, device: torch.device) -> None:
        self.mean = torch.from_numpy(whitening.mean).to(device)
        self.matrix = torch.from_numpy(np.ascontiguousarray(whitening.matrix)).to(device)
        self.parts = [
            (torch.from_numpy(columns).to(device), float(length)) for columns, length in whitening.parts
        ]

    def __call__(self, rows: Tensor) -> Tensor:
        rows = (rows - self.mean) @ self.matrix
        if len(self.parts) > 1:
            of_each = [F.normalize(rows * columns, dim=-1) * length for columns, length in self.parts]
            rows = torch.stack(of_each).sum(0)
        return F.normalize(rows, dim=-1)


def _taking(folders: Sequence[Views]) -> Take:
    starts = np.cumsum([0, *(len(part) for part in folders)])

    def take(rows: NDArray[np.int64]) -> list[Group]:
        which = np.searchsorted(starts, rows, side="right") - 1
        groups = []
        for i in np.unique(which).tolist():
            place = np.flatnonzero(which == i)
            for group in folders[i].take((rows[place] - starts[i]).tolist()):
                groups.append(replace(group, rows=torch.from_numpy(place)[group.rows]))
        return _joined(groups)

    return take


def _joined(groups: Sequence[Group]) -> list[Group]:
    """Groups of equally many patches, from several folders, as one each."""
    by_count: dict[int, list[Group]] = {}
    for group in groups:
        by_count.setdefault(group.weights.shape[1], []).append(group)
    return [
        Group(
            torch.cat([group.rows for group in some]),
            torch.cat([group.tokens for group in some]),
            torch.cat([group.before for group in some]),
            torch.cat([group.weights for group in some]),
            torch.cat([group.texture for group in some]),
        )
        for some in by_count.values()
    ]
