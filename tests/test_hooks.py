"""Q-Perturbation in BLIP-2, CoCa and QLLaMA: tiny models with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError
from soir_qdrant.rerank.q_perturbation.hooks import Site, blip2, coca, perturbed, qllama
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, perturb, regions

pytestmark = pytest.mark.slow

STRONG = PerturbSettings(scale=8.0, contribution=0.99)
BOXES = [
    torch.tensor([[0.0, 0.0, 20.0, 15.0], [30.0, 30.0, 56.0, 56.0]]),
    torch.tensor([[0.0, 0.0, 28.0, 28.0]]),
]
SIZES = [(56.0, 56.0), (56.0, 56.0)]
NONE = torch.zeros(0, 4)


@pytest.fixture(scope="module")
def model() -> Any:
    """The real class; 56 pixels in patches of 14 are 16 patches and CLS."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 32}
    vision = small | {"hidden_size": 24, "image_size": 56, "num_hidden_layers": 2, "intermediate_size": 24}
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config=small | {"encoder_hidden_size": 24, "vocab_size": 50, "use_qformer_text_input": True},
        text_config={"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 50},
        num_query_tokens=3,
        image_text_hidden_size=16,
    )
    made = transformers.Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():  # as initialised, all attentions are flat, and all query tokens alike
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 or name == "query_tokens":
                parameter.normal_(std=0.3)
    return made


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    words = torch.randint(0, 50, (2, 5))
    return {
        "pixel_values": torch.randn(2, 3, 56, 56),
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
    }


@torch.no_grad()
def scores(model: Any, inputs: dict[str, Tensor], itm: bool) -> Any:
    return model(**inputs, use_image_text_matching_head=itm)


@pytest.mark.parametrize("itm", [False, True])
def test_blip2_perturbed_then_as_before(model: Any, inputs: dict[str, Tensor], itm: bool) -> None:
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    before = scores(model, inputs, itm)
    with perturbed(blip2(model), BOXES, SIZES, STRONG):
        during = scores(model, inputs, itm)
    after = scores(model, inputs, itm)
    assert not torch.allclose(during.logits_per_image, before.logits_per_image, atol=1e-3)
    assert torch.equal(during.vision_model_output[0], before.vision_model_output[0])
    if not itm:  # the text passes no cross-attention
        assert torch.equal(during.text_embeds, before.text_embeds)
    assert torch.equal(after.logits_per_image, before.logits_per_image)
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("itm", [False, True])
@pytest.mark.parametrize("keep_norm", [False, True])
def test_alpha_zero_changes_no_bit(model: Any, inputs: dict[str, Tensor], itm: bool, keep_norm: bool) -> None:
    before = scores(model, inputs, itm)
    with perturbed(blip2(model), BOXES, SIZES, PerturbSettings(scale=0.0, keep_norm=keep_norm)):
        during = scores(model, inputs, itm)
    assert torch.equal(during.logits_per_image, before.logits_per_image)


def test_every_cross_attention_is_found(model: Any) -> None:
    assert len(blip2(model)) == 2  # of four layers, every second one has it


def test_each_picture_has_boxes_of_its_own(model: Any, inputs: dict[str, Tensor]) -> None:
    before = scores(model, inputs, False).image_embeds
    with perturbed(blip2(model), [NONE, BOXES[1]], SIZES, STRONG):
        together = scores(model, inputs, False).image_embeds
    with perturbed(blip2(model), [BOXES[1]], SIZES[:1], STRONG):
        alone = scores(model, {name: x[1:] for name, x in inputs.items()}, False).image_embeds
    assert torch.equal(together[0], before[0])  # it has no boxes
    torch.testing.assert_close(together[1:], alone)
    assert not torch.allclose(together[1], before[1], atol=1e-3)


def test_keys_and_values_are_untouched(model: Any, inputs: dict[str, Tensor]) -> None:
    layer = blip2(model)[0].module
    seen: list[Tensor] = []
    handles = [
        p.register_forward_hook(lambda _m, _a, out: seen.append(out)) for p in (layer.key, layer.value)
    ]
    scores(model, inputs, False)
    plain, seen[:] = list(seen), []
    with perturbed(blip2(model), BOXES, SIZES, STRONG):
        scores(model, inputs, False)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[-2], plain[0])
    assert torch.equal(seen[-1], plain[1])


def test_an_exception_leaves_the_model_clean(model: Any, inputs: dict[str, Tensor]) -> None:
    before = scores(model, inputs, False).logits_per_image
    one = perturbed(blip2(model), BOXES[:1], SIZES[:1], STRONG)
    with pytest.raises(ConfigError, match="batch of 2 images, but boxes of 1"), one:
        scores(model, inputs, False)
    assert torch.equal(scores(model, inputs, False).logits_per_image, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.qformer.modules())


@torch.no_grad()
def test_one_blip2_layer_equals_a_computation_by_hand(model: Any) -> None:
    site = blip2(model)[0]
    layer, words, patches = site.module, torch.randn(1, 3, 32), torch.randn(1, 17, 24)
    with perturbed([site], BOXES[:1], SIZES[:1], STRONG):
        found = layer(words, encoder_hidden_states=patches)[0]
    q, k, v = (
        p(x)[0].view(-1, 4, 8).transpose(0, 1)
        for p, x in ((layer.query, words), (layer.key, patches), (layer.value, patches))
    )
    moved = q.clone()
    for o in range(2):
        phi, _ = regions(k, BOXES[0][o : o + 1], SIZES[0], (4, 4), STRONG)
        moved += 8 * q @ phi[0] @ phi[0].transpose(-1, -2)
    shares = (moved @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(found[0], (shares @ v).transpose(0, 1).flatten(1))


class Pooler(nn.Module):
    def __init__(self, joint: bool, batch_first: bool) -> None:
        super().__init__()
        width = 16 if joint else 12
        self.query = nn.Parameter(torch.randn(3, 16))
        self.attn = nn.MultiheadAttention(16, 4, kdim=width, vdim=width, batch_first=batch_first)
        nn.init.normal_(self.attn.in_proj_bias)

    def forward(self, patches: Tensor) -> Tensor:
        queries = self.query.expand(len(patches), -1, -1)
        if self.attn.batch_first:
            return self.attn(queries, patches, patches, need_weights=False)[0]
        turned = patches.transpose(0, 1)
        return self.attn(queries.transpose(0, 1), turned, turned, need_weights=False)[0].transpose(0, 1)


class CoCa(nn.Module):
    """The names and the layout of open_clip's CoCa, which is no dependency: visual.attn_pool.attn."""

    def __init__(self, joint: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.visual = nn.Module()
        self.visual.attn_pool = Pooler(joint, batch_first)

    def forward(self, patches: Tensor) -> Tensor:
        return self.visual.attn_pool(patches)


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_coca_pools_with_perturbed_queries(joint: bool, batch_first: bool) -> None:
    model = CoCa(joint, batch_first).eval()
    patches = torch.randn(2, 17, 16 if joint else 12)
    before = model(patches)
    with perturbed(coca(model), BOXES, SIZES, PerturbSettings(scale=0.0)):
        assert torch.equal(model(patches), before)
    with perturbed(coca(model), BOXES, SIZES, STRONG):
        during = model(patches)
    assert torch.equal(model(patches), before)

    pool = model.visual.attn_pool
    weights = pool.attn.in_proj_weight.chunk(3) if joint else None
    wq, wk, wv = weights or (pool.attn.q_proj_weight, pool.attn.k_proj_weight, pool.attn.v_proj_weight)
    bq, bk, bv = pool.attn.in_proj_bias.chunk(3)
    for i in range(2):
        q, k, v = (
            F.linear(x, w, b).view(-1, 4, 4).transpose(0, 1)
            for x, w, b in ((pool.query, wq, bq), (patches[i], wk, bk), (patches[i], wv, bv))
        )
        moved = perturb(q, *regions(k, BOXES[i], SIZES[i], (4, 4), STRONG))
        mixed = (moved @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        torch.testing.assert_close(during[i], pool.attn.out_proj(mixed.transpose(0, 1).flatten(1)))


class CrossAttention(nn.Module):
    """The names and the layout of QLLaMA's cross-attention, whose code is in no package."""

    num_heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(6)

    def forward(
        self, hidden_states: Tensor, vision_hidden_states: Tensor | None, repeat_time: int = 1
    ) -> Tensor:
        query = self.q_proj(self.norm1(hidden_states)).unflatten(-1, (2, 4)).transpose(1, 2)
        if vision_hidden_states is None:
            return query
        patches = self.norm2(vision_hidden_states)
        key, value = (
            p(patches).unflatten(-1, (2, 4)).transpose(1, 2).repeat(repeat_time, 1, 1, 1)
            for p in (self.k_proj, self.v_proj)
        )
        return F.scaled_dot_product_attention(query, key, value)


class QLlama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.cross_attn = CrossAttention()
        self.self_attn = nn.Linear(8, 8)


@torch.no_grad()
def test_qllama_reads_normed_keys_and_several_texts_per_picture() -> None:
    model = QLlama()
    words, patches, layer = torch.randn(4, 3, 8), torch.randn(2, 17, 6), model.cross_attn
    with perturbed(qllama(model), BOXES, SIZES, STRONG):
        together = layer(words, patches, repeat_time=2)
        one_by_one = [layer(words[i : i + 2], patches) for i in (0, 2)]
        nothing = layer(words, None)
    torch.testing.assert_close(together, torch.cat(one_by_one))
    assert torch.equal(nothing, layer(words, None))
    key = layer.k_proj(layer.norm2(patches[1])).view(-1, 2, 4).transpose(0, 1)
    query = layer.q_proj(layer.norm1(words[1])).view(-1, 2, 4).transpose(0, 1)
    value = layer.v_proj(layer.norm2(patches[1])).view(-1, 2, 4).transpose(0, 1)
    moved = perturb(query, *regions(key, BOXES[1], SIZES[1], (4, 4), STRONG))
    torch.testing.assert_close(together[1], (moved @ key.transpose(-1, -2) / 2).softmax(-1) @ value)


def test_what_does_not_fit_is_refused() -> None:
    layer = CrossAttention()
    site = Site(layer, 2, source="vision_hidden_states", norm="norm2")
    for find in (blip2, coca, qllama):
        with pytest.raises(ConfigError, match="Linear has no"):
            find(nn.Linear(2, 2))
    with (
        pytest.raises(ConfigError, match="1 lists of boxes, 2 sizes"),
        perturbed([site], BOXES[:1], SIZES, STRONG),
    ):
        pass
    with pytest.raises(ConfigError, match="no cross-attention"), perturbed([], BOXES, SIZES, STRONG):
        pass
    with perturbed([site], BOXES, SIZES, STRONG):
        with pytest.raises(ConfigError, match="11 image tokens are no square grid"):
            layer(torch.randn(2, 3, 8), torch.randn(2, 11, 6))
        with pytest.raises(ConfigError, match="3 rows of queries over 2 images"):
            layer(torch.randn(3, 3, 8), torch.randn(2, 17, 6))
