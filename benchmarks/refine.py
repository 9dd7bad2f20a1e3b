"""One refinement step in closed form against a lean autograd twin, as a ratio in one run.

The twin: last block only, first-order graph built each step, second-order gradient to the token.
python benchmarks/refine.py --out build/bench.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.refine.block import LastBlock
from soir_qdrant.refine.legrad import normalized, precompute, raw_maps
from soir_qdrant.refine.mao import dice
from soir_qdrant.vision.encoder import ViTEncoder

CROPS, ROUNDS = 8, 5


def twin_maps(block: LastBlock, tokens: Tensor, t: Tensor) -> Tensor:
    """LeGrad by its definition, differentiable in t. tokens: [B, N, D]; t: [B, D]."""
    normed = block.layer_norm(tokens, "norm1")
    q, k, v = (block.split(block.linear(normed, name)) for name in "qkv")
    attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).detach().requires_grad_()
    x1 = tokens + block.scale("ls1", block.linear((attention @ v).transpose(1, 2).flatten(2), "o"))
    x2 = x1 + block.scale("ls2", block.mlp(block.layer_norm(x1, "norm2")))
    z = F.normalize(block.project(block.norm(x2.mean(1))), dim=-1)
    (grad,) = torch.autograd.grad((t * z).sum(), attention, create_graph=True)
    return grad.relu().mean((1, 2))[:, 1:]


def gradient(maps: Callable[[Tensor], Tensor], masks: Tensor, start: Tensor) -> Tensor:
    t = start.clone().requires_grad_()
    found = normalized(maps(F.normalize(t, dim=-1))).view_as(masks)
    (grad,) = torch.autograd.grad(dice(found, masks).mean(), t)
    return grad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    encoder = ViTEncoder(dtype="float32")
    encoding = encoder.encode(torch.randint(0, 256, (CROPS, 224, 224, 3), dtype=torch.uint8).numpy())
    block, tokens = encoder.last_block, torch.as_tensor(encoding.tokens).clone()
    start, masks = torch.from_numpy(encoding.descriptor), (torch.rand(CROPS, 16, 16) > 0.6).float()
    held = precompute(block, tokens)
    steps = {"closed": lambda t: raw_maps(held, t), "twin": lambda t: twin_maps(block, tokens, t)}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    grads: dict[str, Tensor] = {}
    for _ in range(ROUNDS + 1):  # in turn, so that a drifting machine slows both
        for name, step in steps.items():
            begun = time.perf_counter()
            grads[name] = gradient(step, masks, start)
            spent[name].append(time.perf_counter() - begun)
    medians = {name: sorted(times[1:])[ROUNDS // 2] for name, times in spent.items()}
    result = {
        "step_ratio": round(medians["twin"] / medians["closed"], 2),
        "min_cosine": float(F.cosine_similarity(grads["closed"], grads["twin"], dim=-1).min()),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"refine": result}, indent=2))
    print(f"closed form against autograd twin, {CROPS} crops: {result}")


if __name__ == "__main__":
    main()
