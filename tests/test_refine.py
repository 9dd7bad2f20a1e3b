"""The closed form against plain autograd through the whole block, in float64, on tiny real architectures."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from soir_qdrant.errors import ConfigError, ObjectsError
from soir_qdrant.refine import mao
from soir_qdrant.refine.block import LastBlock
from soir_qdrant.refine.legrad import normalized, precompute, raw_maps
from soir_qdrant.refine.mao import MaoSettings, refine

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def dinov2(gated=False):
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=2, use_swiglu_ffn=gated)).double().eval()
    shake(model)
    return model, LastBlock.from_dinov2(model), lambda m, x: m(x).pooler_output, "encoder.layer"


def clip():
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SHAPE, intermediate_size=48, projection_dim=16)
    model = CLIPVisionModelWithProjection(config).double().eval()
    shake(model)
    return model, LastBlock.from_clip(model), lambda m, x: m(x).image_embeds, "encoder.layers"


def siglip():
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**SHAPE, intermediate_size=48)).double().eval()
    shake(model)
    return model, LastBlock.from_siglip(model), lambda m, x: m(x).pooler_output, "encoder.layers"


def shake(model):
    """Random weights everywhere: fresh biases are zero and fresh norms one, which would hide mistakes."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)


def entering(model, path, pixels):
    """Tokens that enter the last block, caught by a hook."""
    layers = model.get_submodule(path if hasattr(model, "encoder") else f"vision_model.{path}")
    caught = []
    hook = layers[-1].register_forward_pre_hook(
        lambda _, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(pixels)
    hook.remove()
    return caught[0]


def twin_maps(block, tokens, t, create_graph=False):
    """LeGrad by its definition: d s / d A by autograd, s through the whole block, relu, means."""
    normed = block.layer_norm(tokens, "norm1")
    q, k, v = (block.split(block.linear(normed, name)) for name in "qkv")
    attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).detach().requires_grad_()
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    x1 = tokens + block.scale("ls1", block.linear(mixed, "o"))
    x2 = x1 + block.scale("ls2", block.mlp(block.layer_norm(x1, "norm2")))
    z = F.normalize(block.project(block.norm(x2.mean(1))), dim=-1)
    (grad,) = torch.autograd.grad((t * z).sum(), attention, create_graph=create_graph)
    return grad.relu().mean((1, 2))[:, int(block.has_cls) :]


FAMILIES = [dinov2, lambda: dinov2(gated=True), clip]


@pytest.mark.parametrize("make", [*FAMILIES, siglip])
def test_the_block_gives_the_models_own_descriptor(make):
    model, block, read, path = make()
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(block.descriptor(entering(model, path, pixels)), read(model, pixels), atol=1e-9)


@pytest.mark.parametrize("make", FAMILIES)
def test_maps_equal_those_of_autograd(make):
    _, block, _, _ = make()
    torch.manual_seed(1)
    tokens = torch.randn(4, 17, 24, dtype=torch.float64)
    t = F.normalize(torch.randn(4, block.dim_out, dtype=torch.float64), dim=-1)
    ours, theirs = raw_maps(precompute(block, tokens), t), twin_maps(block, tokens, t)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.sampled_from(FAMILIES), st.integers(0, 999))
def test_maps_equal_those_of_autograd_at_any_shape(crops, side, make, seed):
    _, block, _, _ = make()
    torch.manual_seed(seed)
    tokens = torch.randn(crops, side * side + 1, 24, dtype=torch.float64)
    t = F.normalize(torch.randn(crops, block.dim_out, dtype=torch.float64), dim=-1)
    ours, theirs = raw_maps(precompute(block, tokens), t), twin_maps(block, tokens, t)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-15


def test_the_gradient_of_the_maps_is_right():
    _, block, _, _ = dinov2()
    held = precompute(block, torch.randn(2, 5, 24, dtype=torch.float64))
    t = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: raw_maps(held, F.normalize(t, dim=-1)), (t,), atol=1e-6)


@pytest.mark.parametrize("upsample", [False, True])
def test_eighty_steps_follow_the_autograd_twin(upsample):
    _, block, _, _ = dinov2()
    torch.manual_seed(2)
    tokens = torch.randn(5, 17, 24, dtype=torch.float64)
    masks = (torch.rand(5, 16, 16, dtype=torch.float64) > 0.6).double()
    scene = torch.tensor([0, 0, 0, 1, 1])
    descriptors = block.descriptor(tokens)
    ours = refine(block, tokens, descriptors, masks, scene, MaoSettings(upsample=upsample))

    start = torch.stack([F.normalize(descriptors, dim=-1)[scene == s].mean(0) for s in (0, 1)])
    target = masks if upsample else F.adaptive_avg_pool2d(masks[:, None], 4)[:, 0]
    t = start.clone().requires_grad_()
    adam = torch.optim.AdamW([t], lr=0.1)
    for _ in range(80):
        maps = normalized(twin_maps(block, tokens, F.normalize(t, dim=-1)[scene], create_graph=True))
        size = target.shape[-1]
        maps = F.interpolate(maps.view(5, 1, 4, 4), (size, size), mode="bilinear")[:, 0]
        per_scene = [mao.dice(maps[scene == s], target[scene == s]).mean() for s in (0, 1)]
        value = sum(per_scene) + 0.03 * (1 - F.cosine_similarity(t, start)).sum()
        adam.zero_grad()
        value.backward()
        adam.step()
    assert (ours - F.normalize(t.detach(), dim=-1)).abs().max() <= 1e-4


def test_refining_lowers_the_loss_and_scenes_do_not_mix():
    _, block, _, _ = clip()
    torch.manual_seed(3)
    tokens, masks = torch.randn(6, 17, 24).double(), (torch.rand(6, 8, 8) > 0.5).double()
    scene, descriptors = torch.tensor([0, 0, 0, 0, 1, 1]), block.descriptor(tokens)
    both = refine(block, tokens, descriptors, masks, scene, MaoSettings(iterations=30))
    alone = refine(block, tokens[4:], descriptors[4:], masks[4:], scene[:2], MaoSettings(iterations=30))
    chunked = refine(block, tokens, descriptors, masks, scene, MaoSettings(iterations=30, crops=1))
    assert torch.allclose(both[1:], alone, atol=1e-9)
    assert torch.allclose(both, chunked, atol=1e-9)

    held, start = precompute(block, tokens), torch.stack([F.normalize(descriptors, dim=-1)[:4].mean(0)])
    first = slice(0, 4)
    values = [
        mao.loss(held.take(first), masks[first], scene[first], t, start, MaoSettings()).item()
        for t in (F.normalize(start, dim=-1), both[:1])
    ]
    assert values[1] < values[0]


def test_a_constant_map_becomes_zeros_without_nan():
    maps = torch.full((2, 9), 0.3, requires_grad=True)
    out = normalized(maps)
    out.sum().backward()
    assert out.abs().max() == 0
    assert torch.isfinite(maps.grad).all()


def test_tokens_that_are_no_numbers_are_refused_by_name():
    _, block, _, _ = dinov2()
    tokens = torch.randn(3, 17, 24).double()
    tokens[1, 2, 3] = float("nan")
    with pytest.raises(ObjectsError, match="crop 1"):
        refine(block, tokens, tokens[:, 0], torch.ones(3, 4, 4), torch.tensor([0, 0, 0]), MaoSettings())


def test_attention_pooling_is_refused_with_a_reason():
    _, block, _, _ = siglip()
    with pytest.raises(ConfigError, match="SigLIP"):
        precompute(block, torch.randn(1, 16, 24).double())
