"""Who plays in a NeedleBench: targets, their look-alikes and the others, and which scene each is in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.needlebench import render
from soir_qdrant.lab.needlebench.compose import FLAT, RGBA, Pose
from soir_qdrant.lab.needlebench.sources import Cutout, Sources, SplitName

Track: TypeAlias = Literal["2d", "3d"]
View: TypeAlias = Callable[[np.random.Generator, bool], RGBA]  # (generator, for a query) -> [h, w, 4]

OBJECTS = (6, 10)  # objects of a scene, both ends included
APPEARANCES = (3, 5)  # scenes that hold one target
TARGETS_A_SCENE = 4
MIX = {"photo": 0.5, "render": 0.33, "drawing": 0.17}  # what the 2D track is made of, as far as it lasts
TWINS = 2  # look-alikes laid out for each target
SOLIDS_PER_TARGET = 2  # other solids of the 3D track, beside the twins


@dataclass(frozen=True)
class Thing:
    """One object of the benchmark. twins: instances that are easily taken for it."""

    instance: str
    kind: str
    view: View
    pose: Pose
    twins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cast:
    """Who plays: targets, and everything else, by instance."""

    targets: tuple[str, ...]
    things: dict[str, Thing]

    @property
    def others(self) -> list[str]:
        chosen = set(self.targets)
        return [name for name in self.things if name not in chosen]


@contextmanager
def open_cast(
    sources: Sources, split: SplitName, track: Track, targets: int, key: list[int]
) -> Iterator[Cast]:
    """The cast of one benchmark; renders come from a renderer that closes with it."""
    rng = np.random.default_rng([*key, 0])
    if track == "2d":
        yield _flat_cast(sources.split(split).cutouts, targets, rng)
        return
    with render.open_renderer(sources.split(split).grounds) as renderer:
        yield _solid_cast(renderer, render.meshes(split), targets, rng)


def _flat_cast(cutouts: tuple[Cutout, ...], targets: int, rng: np.random.Generator) -> Cast:
    if len(cutouts) < targets + OBJECTS[1]:
        min_cutouts = targets + OBJECTS[1]
        raise DatasetError(f"{targets} targets need {min_cutouts} cut-outs, the sources have {len(cutouts)}")
    by_kind: dict[str, list[Cutout]] = {}
    for cutout in cutouts:
        by_kind.setdefault(cutout.kind, []).append(cutout)
    shuffled = {kind: [some[i] for i in rng.permutation(len(some))] for kind, some in sorted(by_kind.items())}
    weight = sum(MIX[kind] for kind in shuffled)
    chosen: list[Cutout] = []
    for kind, some in shuffled.items():  # never all of a kind: half of it stays for look-alikes
        chosen += some[: min(round(targets * MIX[kind] / weight), -(-len(some) // 2))]
    spare = [c for kind in ("render", "drawing", "photo") for c in shuffled.get(kind, []) if c not in chosen]
    chosen = (chosen + spare)[:targets]
    names = {cutout.key: instance_name(cutout.key) for cutout in cutouts}
    groups: dict[str, list[str]] = {}
    for cutout in cutouts:
        groups.setdefault(cutout.group, []).append(names[cutout.key])
    things = {}
    for cutout in cutouts:
        alike = [name for name in groups[cutout.group] if name != names[cutout.key]]
        twins = tuple(alike[i] for i in rng.permutation(len(alike))[:TWINS])
        things[names[cutout.key]] = Thing(names[cutout.key], cutout.kind, _flat_view(cutout), Pose(), twins)
    order = rng.permutation(len(chosen))
    return Cast(tuple(names[chosen[i].key] for i in order), things)


def _flat_view(cutout: Cutout) -> View:
    loaded: list[RGBA] = []

    def view(_: np.random.Generator, __: bool) -> RGBA:
        if not loaded:
            loaded.append(cutout.read())
        return loaded[0]

    return view


def _solid_cast(
    renderer: render.Renderer, meshes: list[Path], targets: int, rng: np.random.Generator
) -> Cast:
    """Each target has one twin of the same mesh and one of the same texture; others share neither."""
    needed = targets * (2 + SOLIDS_PER_TARGET)
    if needed > len(meshes):
        raise DatasetError(f"{targets} targets need {needed} meshes, there are {len(meshes)}")
    named = [i for i, mesh in enumerate(meshes) if not mesh.stem.isdigit()]
    blobs = [int(i) for i in rng.permutation(len(meshes)) if i not in named]
    pool, spare = iter([*named, *blobs]), reversed(blobs)
    texture = iter(int(i) for i in rng.permutation(100_000)[: 4 * needed])
    things: dict[str, Thing] = {}
    chosen: list[str] = []

    def next_mesh() -> Path:
        mesh = meshes[next(pool)]
        return mesh if render.is_whole(mesh) else meshes[next(spare)]

    def add(mesh: Path, painted: int, kind: str, twins: tuple[str, ...] = ()) -> str:
        name = f"{mesh.stem}-t{painted}"
        solid = render.Solid(name, mesh, painted, render.random_quaternion(rng))
        things[name] = Thing(name, kind, _solid_view(renderer, solid), FLAT, twins)
        return name

    for _ in range(targets):
        mesh, painted = next_mesh(), next(texture)
        same_mesh = add(mesh, next(texture), "twin")
        same_texture = add(next_mesh(), painted, "twin")
        chosen.append(add(mesh, painted, "target", (same_mesh, same_texture)))
    for _ in range(targets * SOLIDS_PER_TARGET):
        add(next_mesh(), next(texture), "other")
    return Cast(tuple(chosen[i] for i in rng.permutation(len(chosen))), things)


def _solid_view(renderer: render.Renderer, solid: render.Solid) -> View:
    def view(rng: np.random.Generator, query: bool) -> RGBA:
        turn = np.eye(3) if query else render.random_turn(rng)
        return renderer.render(solid, turn, rng)

    return view


def instance_name(key: str) -> str:
    """A short name that is different for different keys: hammer3-1f09ac."""
    return f"{Path(key).stem}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"


def make_plan(cast: Cast, scenes: int, rng: np.random.Generator) -> list[list[str]]:
    """Which instances each scene holds: targets 3 to 5 times, their twins nearby, others to fill up."""
    plan: list[list[str]] = [[] for _ in range(scenes)]
    for name in cast.targets:
        count = int(rng.integers(APPEARANCES[0], APPEARANCES[1] + 1))
        free = rng.permutation([i for i in range(scenes) if len(plan[i]) < TARGETS_A_SCENE])
        emptiest = sorted(free.tolist(), key=lambda i: len(plan[i]))[: count * 3]
        homes = [int(i) for i in rng.permutation(emptiest)[:count]]
        for i in homes:
            plan[i].append(name)
    chosen = set(cast.targets)
    for name in cast.targets:
        for twin in cast.things[name].twins:
            if twin in chosen:
                continue
            homes = [i for i in range(scenes) if name in plan[i]][:1]
            for i in [*homes, int(rng.integers(scenes))]:
                if twin not in plan[i] and len(plan[i]) < OBJECTS[0]:
                    plan[i].append(twin)
    _fill(plan, cast, rng)
    return [[str(name) for name in rng.permutation(names)] for names in plan]


def crowded_plan(cast: Cast, scenes: int, rng: np.random.Generator) -> list[list[str]]:
    """The same where scenes hold targets alone, so that each target is in many: as in VoxDet."""
    names = np.array(cast.targets)
    counts = rng.integers(OBJECTS[0], OBJECTS[1] + 1, scenes)
    return [[str(name) for name in rng.permutation(names)[:count]] for count in counts]


def _fill(plan: list[list[str]], cast: Cast, rng: np.random.Generator) -> None:
    by_kind: dict[str, list[str]] = {}
    for name in cast.others:
        by_kind.setdefault(cast.things[name].kind, []).append(name)
    kinds = sorted(by_kind)
    weights = np.array([MIX.get(kind, 1.0) for kind in kinds])
    for names in plan:
        count = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
        while len(names) < count:
            kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            name = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
            if name not in names:
                names.append(name)
