"""Q-Perturbation inside vision-and-language models: hooks on their cross-attentions, weights untouched.

    with perturbed(blip2(model), boxes, sizes, PerturbSettings(scale=8, mean=True)):
        output = model(**inputs)

Every query of every head and layer is moved by `perturb`, by the keys that fall into the boxes of its own
image. When the block ends, by an exception too, the model is as it was.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, perturb, regions


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One cross-attention. On a `torch.nn.MultiheadAttention`, which has no projection modules, it needs the
    heads alone.

    Attributes:
        module: the attention.
        heads: of its queries and keys.
        query: name of its projection of queries.
        key: name of its projection of keys.
        source: the argument of its `forward` with the image's tokens [B, N, D]; where that is None, nothing
            happens.
        norm: the submodule that the source passes through before the key projection, if any.
    """

    module: nn.Module
    heads: int
    query: str = "q_proj"
    key: str = "k_proj"
    source: str = "encoder_hidden_states"
    norm: str | None = None


def blip2(model: nn.Module) -> list[Site]:
    """All cross-attentions of the Q-Former of a `transformers` BLIP-2 (ITC and ITM alike)."""
    layers = _need(model, "qformer").encoder.layer
    modules = [layer.crossattention.attention for layer in layers if hasattr(layer, "crossattention")]
    return [Site(m, m.num_attention_heads, "query", "key", "encoder_hidden_states") for m in modules]


def coca(model: nn.Module) -> list[Site]:
    """The attentional pooler (or poolers) of an open_clip CoCa, or of its vision tower."""
    visual = getattr(model, "visual", model)
    # In a cascade, the second pooler reads the first one's output, where there are no patches.
    names = ("attn_pool", "attn_pool_contrastive")[
        : 1 + (getattr(visual, "attn_pool_type", "") == "parallel")
    ]
    modules = [getattr(getattr(visual, name, None), "attn", None) for name in names]
    sites = [Site(m, m.num_heads) for m in modules if isinstance(m, nn.MultiheadAttention)]
    if not sites:
        raise ConfigError(f"{type(model).__name__} has no visual.attn_pool.attn: is it an open_clip CoCa?")
    return sites


def qllama(model: nn.Module) -> list[Site]:
    """All cross-attentions of InternVL-G's QLLaMA: `cross_attn` of its decoder layers. What pools the vision tower's
    tokens has that name too, and is left out."""
    layers = getattr(model, "qllama", model)
    modules = [m for name, m in layers.named_modules() if name.rpartition(".")[2] == "cross_attn"]
    if not modules:
        raise ConfigError(f"{type(model).__name__} has no module named cross_attn: is it an InternVL-G?")
    return [Site(m, m.num_heads, source="vision_hidden_states", norm="norm2") for m in modules]


@contextmanager
def perturbed(
    sites: Sequence[Site],
    boxes: Sequence[Tensor],
    sizes: Sequence[tuple[float, float]],
    settings: PerturbSettings,
    grid: tuple[int, int] | None = None,
) -> Iterator[None]:
    """While this is open, the cross-attentions `sites` perturb their queries; weights, keys and values stay.

    A call's batch must hold these images in order, once, or in several rounds of queries over one of keys;
    one image expanded to a batch (stride 0) counts once, and its subspaces are computed once.

    Args:
        sites: of `blip2`, `coca`, `qllama`, or your own.
        boxes: per image of the batch, [k_i, 4], x0 y0 x1 y1 in pixels; k_i may be 0 and may differ.
        sizes: per image its width and height. The patch grid must lie over the whole image (plain resizing);
            for a centre crop give boxes and sizes of the crop.
        settings: of the perturbation.
        grid: rows, columns; None takes a square of the last N - 1 or N tokens.

    Raises:
        ConfigError: here or out of the model's forward, where they do not match.
    """
    if len(boxes) != len(sizes):
        raise ConfigError(f"{len(boxes)} lists of boxes, {len(sizes)} sizes: give one of each per image")
    if not sites:
        raise ConfigError("no cross-attention: use blip2(), coca(), qllama() or make a Site")
    batch = _Batch(list(boxes), list(sizes), settings, grid)
    with ExitStack() as stack:
        for site in sites:
            if isinstance(site.module, nn.MultiheadAttention):
                handles = [site.module.register_forward_hook(_Joint(batch), with_kwargs=True)]
            else:
                hook = _OwnProjections(batch, site)
                handles = [
                    site.module.register_forward_pre_hook(hook.before, with_kwargs=True),
                    _need(site.module, site.query).register_forward_hook(hook.on_query),
                ]
            for handle in handles:
                stack.callback(handle.remove)
        yield


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    boxes: list[Tensor]
    sizes: list[tuple[float, float]]
    settings: PerturbSettings
    grid: tuple[int, int] | None

    def regions(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """keys [B, heads, N, d] -> bases [k, B, heads, d, r], alphas [k, B]; zeros fill up."""
        if len(keys) != len(self.boxes):
            raise ConfigError(
                f"a batch of {len(keys)} images, but boxes of {len(self.boxes)}: give both alike"
            )
        grid = self.grid or _square(keys.shape[2])
        per_image = [
            regions(keys[i], boxes, size, grid, self.settings)
            for i, (boxes, size) in enumerate(zip(self.boxes, self.sizes, strict=True))
        ]
        count = max(len(phi) for phi, _ in per_image)
        rank = max(phi.shape[-1] for phi, _ in per_image)
        phis = [F.pad(p, (0, rank - p.shape[-1], 0, 0, 0, 0, 0, count - len(p))) for p, _ in per_image]
        return torch.stack(phis, 1), torch.stack([F.pad(a, (0, count - len(a))) for _, a in per_image], 1)

    def move(self, queries: Tensor, subspaces: tuple[Tensor, Tensor]) -> Tensor:
        """queries [m * B, heads, n, d], B images m times over -> the same, perturbed."""
        phi, alpha = subspaces
        rounds, rest = divmod(len(queries), phi.shape[1])
        if rest:
            raise ConfigError(f"{len(queries)} rows of queries over {phi.shape[1]} images: give a multiple")
        if rounds != 1:
            phi, alpha = phi.repeat(1, rounds, 1, 1, 1), alpha.repeat(1, rounds)
        return perturb(queries, phi, alpha, keep_norm=self.settings.keep_norm)


class _OwnProjections:
    """Hooks of a module with projections of its own. The keys are computed ahead of the queries."""

    def __init__(self, batch: _Batch, site: Site) -> None:
        self.batch, self.site = batch, site
        self.signature = inspect.signature(site.module.forward)
        self.subspaces: tuple[Tensor, Tensor] | None = None

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        site, self.subspaces = self.site, None
        source = self.signature.bind(*args, **kwargs).arguments.get(site.source)
        if source is None:  # the layer attends to no image in this call
            return
        if source.stride(0) == 0:
            source = source[:1]
        if site.norm is not None:
            source = _need(module, site.norm)(source)
        self.subspaces = self.batch.regions(_split(_need(module, site.key)(source), site.heads))

    def on_query(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if self.subspaces is None:
            return None
        subspaces, self.subspaces = self.subspaces, None
        moved = self.batch.move(_split(output, self.site.heads), subspaces)
        return moved.transpose(1, 2).flatten(2)


class _Joint:
    """Hook of a torch.nn.MultiheadAttention: its output is computed again, from perturbed queries."""

    def __init__(self, batch: _Batch) -> None:
        self.batch = batch

    def __call__(self, module: nn.MultiheadAttention, args: Any, kwargs: Any, output: Any) -> Any:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        turn = module.batch_first and arguments["query"].ndim == 3
        query, key, value = (
            arguments[n].transpose(0, 1) if turn else arguments[n] for n in ("query", "key", "value")
        )
        width, heads = module.embed_dim, module.num_heads
        weights = _projections(module)
        bias = module.in_proj_bias
        q_bias, k_bias = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
        queries, keys = F.linear(query, weights[0], q_bias), F.linear(key, weights[1], k_bias)
        split = [_split(x.transpose(0, 1), heads) for x in (queries, keys)]
        moved = self.batch.move(split[0], self.batch.regions(split[1]))
        # The queries are projected already: the identity takes the place of that projection.
        mixed, shares = F.multi_head_attention_forward(
            moved.transpose(1, 2).flatten(2).transpose(0, 1),
            key,
            value,
            width,
            heads,
            None,
            None if bias is None else torch.cat([torch.zeros_like(bias[:width]), bias[width:]]),
            module.bias_k,
            module.bias_v,
            module.add_zero_attn,
            module.dropout,
            module.out_proj.weight,
            module.out_proj.bias,
            training=module.training,
            key_padding_mask=arguments.get("key_padding_mask"),
            need_weights=output[1] is not None,
            attn_mask=arguments.get("attn_mask"),
            use_separate_proj_weight=True,
            q_proj_weight=torch.eye(width, dtype=query.dtype, device=query.device),
            k_proj_weight=weights[1],
            v_proj_weight=weights[2],
            average_attn_weights=arguments.get("average_attn_weights", True),
        )
        return mixed.transpose(0, 1) if turn else mixed, shares


def _projections(module: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    """Weights of the queries, keys and values."""
    if module.in_proj_weight is not None:
        return tuple(module.in_proj_weight.chunk(3))
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, n, heads * d] -> [B, heads, n, d]."""
    if x.ndim != 3 or x.shape[-1] % heads:
        raise ConfigError(
            f"a projection of shape {tuple(x.shape)} for {heads} heads: expected [B, n, heads * d]"
        )
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def _square(tokens: int) -> tuple[int, int]:
    """The square grid of N - 1 patches behind a CLS token, or of N."""
    for patches in (tokens - 1, tokens):
        side = math.isqrt(patches)
        if side > 0 and side * side == patches:
            return side, side
    raise ConfigError(
        f"{tokens} image tokens are no square grid, with or without CLS: give grid=(rows, columns)"
    )


def _need(module: nn.Module, name: str) -> Any:
    if not hasattr(module, name):
        raise ConfigError(f"{type(module).__name__} has no {name!r}: is it the model this is for?")
    return getattr(module, name)
