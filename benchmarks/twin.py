"""LeGrad refinement by plain autograd, as lean as it gets: what the closed form is measured against.

The last block alone, its graph built once; each step takes the gradient to the attention with create_graph
and the second-order gradient to the token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from soir_qdrant.models.last_block import LastBlock

EPS = 1e-6


class Twin:
    """tokens: [K, N, D]; masks: [K, M], 0..1, on the patch grid. One scene."""

    def __init__(self, block: LastBlock, tokens: Tensor, masks: Tensor) -> None:
        self.masks = masks
        normed = block.layer_norm(tokens, "norm1")
        q, k, v = (block.split(block.linear(normed, name)) for name in "qkv")
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        self.attention = scores.softmax(-1).detach().requires_grad_()
        mixed = (self.attention @ v).transpose(1, 2).flatten(2)
        x1 = tokens + block.scale("ls1", block.linear(mixed, "o"))
        x2 = x1 + block.scale("ls2", block.mlp(block.layer_norm(x1, "norm2")))
        self.z = F.normalize(block.project(block.norm(x2.mean(1))), dim=-1)

    def loss(self, t: Tensor, start: Tensor, alpha: float) -> Tensor:
        """mean_i dice_i + alpha (1 - cos(t, t0)). t, start: [1, D]."""
        unit = F.normalize(t, dim=-1)
        (grad,) = torch.autograd.grad((unit * self.z).sum(), self.attention, create_graph=True)
        raw = grad.relu().mean((1, 2))[:, 1:]
        low, high = raw.amin(1, keepdim=True), raw.amax(1, keepdim=True)
        maps = (raw - low) / (high - low)
        both, size = (maps * self.masks).sum(1), maps.sum(1) + self.masks.sum(1)
        dice = 1 - (2 * both + EPS) / (size + EPS)
        return dice.mean() + alpha * (1 - F.cosine_similarity(t, start)).sum()

    def gradient(self, t: Tensor, start: Tensor, alpha: float) -> Tensor:
        """Of the loss, to t, [1, D]."""
        t = t.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.loss(t, start, alpha), t)
        return grad

    def refine(self, start: Tensor, iterations: int, lr: float, alpha: float) -> Tensor:
        """The joint token after AdamW from `start` [1, D]; unit rows."""
        t = start.clone().requires_grad_()
        adam = torch.optim.AdamW([t], lr=lr)
        for _ in range(iterations):
            t.grad = self.gradient(t, start, alpha)
            adam.step()
        return F.normalize(t.detach(), dim=-1)
