"""The closed form against plain autograd through the whole block, in float64, on tiny real architectures."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import tiny_vit

from soir_qdrant.errors import ObjectsError
from soir_qdrant.mao import refine as mao
from soir_qdrant.mao.legrad import normalized, precompute, raw_maps, upsampled
from soir_qdrant.mao.objective import dice, target
from soir_qdrant.mao.refine import MaoSettings, refine
from soir_qdrant.models.encoders.clip import Clip
from soir_qdrant.models.encoders.dinov2 import Dinov2, Dinov2Registers
from soir_qdrant.models.encoders.dinov3 import Dinov3
from soir_qdrant.models.encoders.siglip import Siglip
from soir_qdrant.models.encoders.siglip2 import Siglip2

pytestmark = pytest.mark.slow


def family(kind, layers=2, **config):
    """A backbone on a tiny model in float64, and what the model itself says of pixels."""
    model = tiny_vit(kind, num_hidden_layers=layers, **config).double()
    shake(model)
    return BACKBONES[kind](model), DESCRIPTORS.get(kind, lambda m, x: m(x).pooler_output)


def naflex(model, pixels):
    """Patches and the shape of the grid, as SigLIP 2's processor makes them."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    patches = torch.stack([torch.from_numpy(convert_image_to_patches(x.numpy(), 8)) for x in pixels])
    seen = torch.ones(patches.shape[:2], dtype=torch.long)
    grid = torch.tensor([[pixels.shape[2] // 8, pixels.shape[3] // 8]] * len(pixels))
    return model(patches, seen, grid).pooler_output


BACKBONES = {
    "dinov2": Dinov2,
    "dinov2-registers": Dinov2Registers,
    "dinov3": Dinov3,
    "clip": Clip,
    "siglip": Siglip,
    "siglip2": Siglip2,
}
DESCRIPTORS = {"clip": lambda m, x: m(x).image_embeds, "siglip2": naflex}


def block_of(kind, **config):
    return family(kind, **config)[0].last_block()


def shake(model):
    """Random weights everywhere: fresh biases are zero and fresh norms one, which would hide mistakes."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)


def twin_map(block, tokens, t, create_graph=False):
    """LeGrad by its definition: d s / d A by autograd, s through the whole block, relu, means; and x2."""
    q, k, v = block.attention_inputs(tokens)
    attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).detach().requires_grad_()
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    x1 = tokens + block.scale("ls1", block.linear(mixed, "o"))
    x2 = x1 + block.scale("ls2", block.mlp(block.layer_norm(x1, "norm2")))
    read = block.head(block.norm(x2)) if block.head else block.project(block.norm(x2.mean(1)))
    z = F.normalize(read, dim=-1)
    (grad,) = torch.autograd.grad((t * z).sum(), attention, create_graph=create_graph)
    return grad.relu().mean((1, 2))[:, block.prefix_tokens :], x2.detach()


def twin_maps(blocks, tokens, t, create_graph=False):
    """The sum of the maps of several blocks in turn."""
    total = 0
    for block in blocks:
        found, tokens = twin_map(block, tokens, t, create_graph)
        total = total + found
    return total


def tokens_of(block, crops=4, side=4):
    return torch.randn(crops, side * side + block.prefix_tokens, 24, dtype=torch.float64)


def unit_rows(count, dim):
    return F.normalize(torch.randn(count, dim, dtype=torch.float64), dim=-1)


CASES = [
    ("dinov2", {}),
    ("dinov2", {"use_swiglu_ffn": True}),
    ("dinov2-registers", {}),
    ("dinov3", {}),
    ("dinov3", {"use_gated_mlp": True, "hidden_act": "silu"}),
    ("clip", {}),
    ("siglip", {}),
    ("siglip2", {}),
]


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_block_by_block_gives_the_models_own_descriptor(kind, config):
    backbone, read = family(kind, **config)
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        x, context = backbone.embed(pixels)
        x = backbone.block(0, x, context)
        assert torch.allclose(backbone.last_block().descriptor(x), read(backbone.model, pixels), atol=1e-9)
        assert torch.allclose(backbone.last_block().forward(x), backbone.block(1, x, context), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.sampled_from(CASES), st.integers(0, 999))
def test_maps_and_their_gradient_equal_those_of_autograd(crops, side, case, seed):
    block = block_of(case[0], **case[1])
    torch.manual_seed(seed)
    tokens, t = tokens_of(block, crops, side), unit_rows(crops, block.dim_out)
    weights = torch.randn(crops, side * side, dtype=torch.float64)
    found = []
    for maps in (
        lambda t: raw_maps(precompute(block, tokens), t),
        lambda t: twin_maps([block], tokens, t, True),
    ):
        given = t.clone().requires_grad_()
        raw = maps(given)
        (grad,) = torch.autograd.grad((raw * weights).sum(), given)
        found.append((raw.detach(), grad))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-15


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_gradcheck(kind, config):
    block = block_of(kind, **config)
    torch.manual_seed(4)
    held = precompute(block, tokens_of(block, 2, 2))
    t = torch.randn(2, block.dim_out, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: raw_maps(held, F.normalize(t, dim=-1)), (t,), atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 999), st.booleans(), st.booleans(), st.booleans())
def test_the_gradient_of_dice_is_that_of_autograd(seed, upsample, ties, together):
    torch.manual_seed(seed)
    raw, masks = torch.rand(3, 16, dtype=torch.float64), (torch.rand(3, 12, 12) > 0.5).double()
    raw = (raw * 3).round() if ties else raw  # a relu leaves many equal zeros
    raw.requires_grad_()
    batch = torch.tensor([0, 0, 1]) if together else None
    value, ours = dice(raw, target(masks, 16, upsample, batch))
    maps, goal = upsampled(raw, 12 if upsample else 4), masks
    if not upsample:
        maps, goal = raw.view(3, 4, 4), F.adaptive_avg_pool2d(masks[:, None], 4)[:, 0]
    assume(not tie_broken_by_rounding(maps))
    distance = 1 - soft_dice(min_max(maps, [slice(0, 2), slice(2, 3)] if together else None), goal)
    (theirs,) = torch.autograd.grad(distance.sum(), raw)
    assert torch.allclose(value, distance)
    assert torch.allclose(ours, theirs, atol=1e-9)


def tie_broken_by_rounding(maps):
    """Whether a largest or smallest value has a neighbour that differs from it in the last digits: interpolated in
    another order it may be the largest, so that there are two gradients."""
    flat = maps.detach().flatten(1)
    gaps = torch.cat([flat.amax(1, keepdim=True) - flat, flat - flat.amin(1, keepdim=True)])
    return bool(((gaps > 0) & (gaps < 1e-12)).any())


def min_max(maps, together=None):
    """Each map [K, s, s] to 0..1 by itself, or those of a slice by all of them."""
    flat, out = maps.flatten(1), torch.zeros_like(maps)
    for part in together or [slice(i, i + 1) for i in range(len(maps))]:
        low, high = flat[part].amin(), flat[part].amax()
        out[part] = (maps[part] - low) / (high - low).clamp_min(1e-12)
    return out


def soft_dice(maps, masks):
    both = (maps * masks).sum((1, 2))
    return (2 * both + 1e-6) / (maps.sum((1, 2)) + masks.sum((1, 2)) + 1e-6)


@pytest.mark.parametrize(
    ("kind", "depth", "upsample"),
    [("dinov2", 1, False), ("dinov2", 1, True), ("dinov2", 2, True), ("siglip", 1, False)],
)
def test_eighty_steps_follow_the_autograd_twin(kind, depth, upsample):
    backbone, _ = family(kind)
    blocks = [backbone.last_block(i) for i in range(-depth, 0)]
    torch.manual_seed(2)
    tokens = tokens_of(blocks[0], 5)
    masks = (torch.rand(5, 16, 16, dtype=torch.float64) > 0.6).double()
    scene = torch.tensor([0, 0, 0, 1, 1])
    descriptors = blocks[-1].descriptor(tokens).detach()
    ours = refine(blocks, tokens, descriptors, masks, scene, MaoSettings(upsample=upsample))

    start = torch.stack([descriptors[scene == s].mean(0) for s in (0, 1)])
    goal = masks if upsample else F.adaptive_avg_pool2d(masks[:, None], 4)[:, 0]
    t = start.clone().requires_grad_()
    adam = torch.optim.AdamW([t], lr=0.1)
    for _ in range(80):
        raw = twin_maps(blocks, tokens, F.normalize(t, dim=-1)[scene], create_graph=True)
        maps = min_max(upsampled(raw, goal.shape[-1]))
        per_scene = [1 - soft_dice(maps[scene == s], goal[scene == s]).mean() for s in (0, 1)]
        value = sum(per_scene) + 0.03 * (1 - F.cosine_similarity(t, start)).sum()
        adam.zero_grad()
        value.backward()
        adam.step()
    assert (ours - F.normalize(t.detach(), dim=-1)).abs().max() <= 1e-4


def test_the_loss_and_its_gradient_are_those_of_autograd():
    block = block_of("clip")
    torch.manual_seed(5)
    tokens, masks = tokens_of(block, 3), (torch.rand(3, 4, 4) > 0.5).double()
    start, t = unit_rows(1, 16), (2 * unit_rows(1, 16)).requires_grad_()
    problem = mao.make_problem(
        [block], tokens, start.expand(3, -1), masks, torch.zeros(3).long(), MaoSettings()
    )
    value, ours = mao.loss(problem, t.detach(), 0.03)
    maps = normalized(twin_maps([block], tokens, F.normalize(t, dim=-1), create_graph=True)).view(3, 4, 4)
    expected = 1 - soft_dice(maps, masks).mean() + 0.03 * (1 - F.cosine_similarity(t, start)).sum()
    (theirs,) = torch.autograd.grad(expected, t)
    assert torch.allclose(value, expected)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_refining_lowers_the_loss_and_scenes_do_not_mix():
    block = block_of("clip")
    torch.manual_seed(3)
    tokens, masks = torch.randn(6, 17, 24).double(), (torch.rand(6, 8, 8) > 0.5).double()
    scene, descriptors = torch.tensor([0, 0, 0, 0, 1, 1]), block.descriptor(tokens)
    both = refine(block, tokens, descriptors, masks, scene, MaoSettings(iterations=30))
    alone = refine(block, tokens[4:], descriptors[4:], masks[4:], scene[:2], MaoSettings(iterations=30))
    in_turn = refine(block, tokens, descriptors, masks, scene, MaoSettings(iterations=30, budget=1))
    assert torch.allclose(both[1:], alone, atol=1e-9)
    assert torch.allclose(both, in_turn, atol=1e-9)

    unit = F.normalize(descriptors[:4], dim=-1)
    problem = mao.make_problem([block], tokens[:4], unit, masks[:4], scene[:4], MaoSettings())
    values = [mao.loss(problem, t, 0.03)[0].item() for t in (problem.start, both[:1])]
    assert values[1] < values[0]


def test_products_in_bfloat16_turn_the_token_little():
    block = block_of("dinov2")
    torch.manual_seed(6)
    tokens, masks = tokens_of(block, 4).float(), (torch.rand(4, 16, 16) > 0.6).float()
    block, scene = block.to("cpu", torch.float32), torch.zeros(4, dtype=torch.int64)
    full, half = (
        refine(block, tokens, block.descriptor(tokens), masks, scene, MaoSettings(10, 0.01, products=kind))
        for kind in ("float32", "bfloat16")
    )
    assert F.cosine_similarity(full, half).item() >= 0.9999


def test_a_constant_map_becomes_zeros_without_nan():
    maps = torch.full((2, 9), 0.3)
    assert normalized(maps).abs().max() == 0
    _, grad = dice(maps, target(torch.ones(2, 6, 6), 9, True))
    assert grad.abs().max() == 0


def test_tokens_that_are_no_numbers_are_refused_by_name():
    block = block_of("dinov2")
    tokens = torch.randn(3, 17, 24).double()
    tokens[1, 2, 3] = float("nan")
    with pytest.raises(ObjectsError, match="crop 1"):
        refine(block, tokens, tokens[:, 0], torch.ones(3, 4, 4), torch.tensor([0, 0, 0]), MaoSettings())
