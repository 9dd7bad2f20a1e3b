"""The refinement against a lean autograd twin, as ratios in one run, on crops of the pictures that ship.

python benchmarks/refine.py --out build/bench.json

step_ratio, step_ratio_bf16: time of one step (loss and gradient) of the twin over that of the closed form.
total_ratio: time of the twin's 80 steps over the whole shipped refinement, its constants included.
min_cosine: least cosine between the tokens that the twin and the closed form (float32) reach in 80 steps.
gemm_share: time the closed form's products take at the machine's best float32 rate, over the time of a step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clock import clock
from torch import Tensor
from twin import Twin

from soir_qdrant.config import VectorSettings
from soir_qdrant.geometry.crops import crop, full_mask
from soir_qdrant.lab.needlebench.sources import Sources
from soir_qdrant.mao.joint import mao_settings
from soir_qdrant.mao.legrad import Workspace
from soir_qdrant.mao.refine import MaoSettings, loss, make_problem, optimize
from soir_qdrant.models.devices import pick_dtype
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.types import SceneObject

CROPS, ROUNDS, SIDE = 8, 12, 224
PAPER = MaoSettings()
BASELINE = Path(__file__).with_name("baseline.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="JSON to write")
    out: Path = parser.parse_args().out
    result = measure()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"refine": result}, indent=2) + "\n")
    known = json.loads(BASELINE.read_text())["refine"]
    print(f"{'':18} {'now':>10} {'baseline':>10} {'now / baseline':>15}")
    for name, value in result.items():
        before = known.get(name)
        change = f"{before:10.4g} {value / before:15.2f}" if before else ""
        print(f"{name:18} {value:10.4g} {change}")


def measure() -> dict[str, float]:
    crops, masks = pictures()
    encoder = ViTEncoder(dtype="float32")
    encoding = encoder.encode(crops, masks, with_tokens=True)
    tokens = torch.as_tensor(encoding.tokens).clone()
    block, scene = encoder.last_block, torch.zeros(CROPS, dtype=torch.int64)
    some = (tokens, torch.from_numpy(encoding.descriptor), torch.from_numpy(masks), scene)
    problem = make_problem([block], *some, PAPER)
    half = make_problem([block], *some, replace(PAPER, products="bfloat16"))
    start = problem.start
    twin = Twin(block, tokens, problem.goal.mask)

    work, half_work = ([Workspace(part) for part in one.constants] for one in (problem, half))
    steps = {
        "twin": lambda: twin.gradient(start, start, PAPER.alpha),
        "float32": lambda: loss(problem, start, PAPER.alpha, work),
        "bfloat16": lambda: loss(half, start, PAPER.alpha, half_work),
        "gemm": gemm(),
    }
    spent = clock(steps, ROUNDS)
    rate = 2 * GEMM**3 / spent["gemm"]
    constants = problem.constants[0]
    b, n, hidden = constants.slopes.shape
    dim, patches = block.dim, constants.values.shape[2]
    flops = 2 * b * (2 * n * hidden * dim + 2 * n * patches * dim)  # there and back

    dtype = pick_dtype("auto", torch.device("cpu"))
    shipped = mao_settings(VectorSettings(features=("cls",), pooling="mao"), dtype)

    def whole() -> Tensor:
        return optimize(make_problem([block], *some, shipped), shipped)

    begun = time.perf_counter()
    theirs = twin.refine(start, PAPER.iterations, PAPER.lr, PAPER.alpha)
    twin_total = time.perf_counter() - begun
    total = clock({"whole": whole}, ROUNDS)["whole"]
    ours = optimize(problem, PAPER)
    return {
        "step_ratio": round(spent["twin"] / spent["float32"], 2),
        "step_ratio_bf16": round(spent["twin"] / spent["bfloat16"], 2),
        "total_ratio": round(twin_total / total, 1),
        "min_cosine": float(F.cosine_similarity(ours, theirs).min()),
        "gemm_share": round(flops / rate / spent["float32"], 3),
    }


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Objects that ship, on a ground: crops, uint8 [8, 224, 224, 3], and masks, float32 [8, 224, 224]."""
    cutouts, grounds = Sources.shipped().test.cutouts, Sources.shipped().test.grounds
    found = []
    for i in range(CROPS):
        rgba, ground = cutouts[i * len(cutouts) // CROPS].read(), grounds[i % len(grounds)].read()
        h, w = rgba.shape[:2]
        scene = ground[: h + 40, : w + 40].copy()
        alpha = rgba[..., 3:] / 255
        scene[20 : 20 + h, 20 : 20 + w] = (
            alpha * rgba[..., :3] + (1 - alpha) * scene[20 : 20 + h, 20 : 20 + w]
        )
        item = SceneObject((20.0, 20.0, 20.0 + w, 20.0 + h), rgba[..., 3] > 127)
        mask = full_mask(item, scene.shape[1], scene.shape[0])
        found.append(crop(scene, mask, item.box, SIDE, margin=0.1, min_side=0, background="keep"))
    return np.stack([c for c, _ in found]), np.stack([m for _, m in found])


GEMM = 1536


def gemm() -> Callable[[], Tensor]:
    a, b, c = (torch.rand(GEMM, GEMM) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


if __name__ == "__main__":
    main()
