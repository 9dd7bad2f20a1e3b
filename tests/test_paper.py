"""The paper's refinement: against a twin of the published objective, and as a profile.

The twin shares no code with the package: the modules of `transformers`, autograd through them, `torch.optim.AdamW`.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tiny_encoder, tiny_vit

from soir_qdrant.config import Settings
from soir_qdrant.mao.refine import MaoSettings, refine
from soir_qdrant.models.encoders.dinov2 import Dinov2
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.search import localization
from soir_qdrant.types import LoadedImage, SceneObject

pytestmark = pytest.mark.slow

SIDE, ALPHA = 32, 0.03
PAPER = {"weight_decay": 0.0, "upsample": True}


@pytest.fixture
def model():
    model = tiny_vit("dinov2", num_hidden_layers=2).double()
    with torch.no_grad():  # fresh biases are zero and fresh norms one, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def legrad(model, x0, t):
    """LeGrad's map of unit tokens t [K, D] in K crops, on the patch grid [K, 1, h, w], differentiable in t.

    x0: [K, N, D], entering the last block. relu(d s / d A) of the last layer, mean over heads and queries, without
    CLS; s = t . normalize(LN(mean of all tokens)).
    """
    layer, own = model.encoder.layer[-1], model.encoder.layer[-1].attention
    heads, normed = model.config.num_attention_heads, layer.norm1(x0)
    q, k, v = (
        f(normed).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (own.q_proj, own.k_proj, own.v_proj)
    )
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).detach().requires_grad_()
    mixed = own.o_proj((attention @ v).transpose(1, 2).flatten(2))
    x1 = x0 + layer.layer_scale1(mixed)
    x2 = x1 + layer.layer_scale2(layer.mlp(layer.norm2(x1)))
    z = F.normalize(model.layernorm(x2.mean(1)), dim=-1)
    (slope,) = torch.autograd.grad((t * z).sum(), attention, create_graph=True)
    side = round((x0.shape[1] - 1) ** 0.5)
    return slope.clamp(min=0).mean((1, 2))[:, 1:].view(len(x0), 1, side, side)


def published(model, x0, descriptors, masks, images, normalise, token, steps=80, lr=0.1):
    """The tokens of images (lists of crops), or of crops, after AdamW without decay on
    mean_i dice(E_i(t / |t|), m_i) + alpha (1 - cos(t, t0)); E upsampled to the masks, then min-max."""
    owners = images if token == "joint" else [[i] for image in images for i in image]
    start = torch.stack([descriptors[crops].mean(0) for crops in owners])
    of = torch.tensor([next(j for j, crops in enumerate(owners) if i in crops) for i in range(len(x0))])
    t = start.clone().requires_grad_()
    adam = torch.optim.AdamW([t], lr=lr, weight_decay=0)
    for _ in range(steps):
        maps = F.interpolate(legrad(model, x0, F.normalize(t, dim=-1)[of]), masks.shape[-2:], mode="bilinear")
        dice = torch.zeros(len(x0), dtype=torch.float64)
        for together in images if normalise == "batch" else [[i] for i in range(len(x0))]:
            some, own = maps[together, 0], masks[together]
            some = (some - some.min()) / (some.max() - some.min())
            both, sizes = (some * own).sum((1, 2)), some.sum((1, 2)) + own.sum((1, 2))
            dice[together] = 1 - (2 * both + 1e-6) / (sizes + 1e-6)
        value = sum(dice[crops].mean() for crops in owners)
        value = value + ALPHA * (1 - F.cosine_similarity(t, start)).sum()
        adam.zero_grad()
        value.backward()
        adam.step()
    return F.normalize(t.detach(), dim=-1)


@pytest.mark.parametrize("normalise", ["crop", "batch"])
@pytest.mark.parametrize("token", ["joint", "per-crop"])
def test_eighty_steps_follow_the_published_objective(model, normalise, token):
    block, images = Dinov2(model).last_block(), [[0, 1, 2], [3, 4]]
    torch.manual_seed(7)
    x0 = torch.randn(5, 17, 24, dtype=torch.float64)
    masks = F.interpolate((torch.rand(5, 1, 8, 8) > 0.6).double(), (SIDE, SIDE))[:, 0]
    with torch.no_grad():
        descriptors = block.descriptor(x0)
    settings = MaoSettings(normalise=normalise, token=token, **PAPER)
    ours = refine(block, x0, descriptors, masks, torch.tensor([0, 0, 0, 1, 1]), settings)
    theirs = published(model, x0, descriptors, masks, images, normalise, token)
    assert (ours - theirs).abs().max() <= 1e-4
    assert len(ours) == (2 if token == "joint" else 5)


def test_images_do_not_share_a_normalisation(model):
    """ "batch" is one image's crops: what else is refined with it changes nothing."""
    block = Dinov2(model).last_block()
    torch.manual_seed(8)
    x0 = torch.randn(5, 17, 24, dtype=torch.float64)
    masks, scene = (torch.rand(5, 8, 8) > 0.5).double(), torch.tensor([0, 0, 0, 1, 1])
    with torch.no_grad():
        descriptors = block.descriptor(x0)
    settings = MaoSettings(10, normalise="batch", token="per-crop")
    together = refine(block, x0, descriptors, masks, scene, settings)
    alone = refine(block, x0[3:], descriptors[3:], masks[3:], scene[:2], settings)
    separate = refine(block, x0[4:], descriptors[4:], masks[4:], scene[:1], settings)
    torch.testing.assert_close(together[3:], alone)
    assert (together[4:] - separate).abs().max() > 1e-3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The profile `paper` on a tiny encoder, boxes as masks."""
    folder = tiny_encoder(tmp_path_factory.mktemp("paper") / "vit")
    return Settings.for_profile("paper").but(
        encoder={"weights": str(folder), "input_size": SIDE, "dtype": "float32"},
        detector={"kind": "none"},
        segmenter={"kind": "box"},
    )


@pytest.fixture(scope="module")
def image():
    rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    return LoadedImage(rgb, "noise", None, "0" * 64)


THINGS = [SceneObject((8, 8, 28, 24)), SceneObject((50, 30, 66, 58)), SceneObject((90, 60, 116, 86))]


def test_the_profile_is_the_papers_setting(settings):
    vector, crop = settings.vector, settings.crop
    assert (vector.iterations, vector.lr, vector.alpha, vector.weight_decay) == (80, 0.1, 0.03, 0)
    assert (vector.upsample, vector.normalise, vector.token, vector.blocks) == (True, "crop", "joint", 1)
    assert (crop.native, crop.background, crop.margin) == (True, "keep", 0)
    assert vector.refine_query


def test_with_a_token_per_crop_the_image_is_their_mean(settings, image):
    pipeline = Pipeline(settings.but(vector={"token": "per-crop", "iterations": 5}))
    (scene,) = pipeline.scenes([image], [THINGS])
    mean = scene.object_vectors.mean(0)
    np.testing.assert_allclose(scene.vector, mean / np.linalg.norm(mean), atol=1e-6)
    plain = Pipeline(settings.but(vector={"pooling": "mean"}), encoder=pipeline.encoder)
    assert (plain.scenes([image], [THINGS])[0].object_vectors * scene.object_vectors).sum(1).max() < 0.999
    query = pipeline.query(image.rgb, box=THINGS[1].box)  # refined alike
    assert (scene.object_vectors @ query).argmax() == 1
    np.testing.assert_allclose(scene.object_vectors[1], query, atol=1e-4)


def test_a_heat_map_is_made_of_the_refined_query(settings, image):
    pipeline = Pipeline(settings.but(vector={"iterations": 5}))
    refined = localization.look(pipeline, image, THINGS[0].box)
    np.testing.assert_allclose(refined.vector, pipeline.query(image.rgb, box=THINGS[0].box), atol=1e-6)
    np.testing.assert_allclose(refined.descriptor, refined.vector)
    plain = Pipeline(settings.but(vector={"refine_query": False}), encoder=pipeline.encoder)
    assert localization.look(plain, image, THINGS[0].box).vector @ refined.vector < 0.999
    assert localization.heat(pipeline, refined, image, [THINGS[0].box]).max() > 0


def test_collections_of_before_are_read(settings):
    """What came later is not in the fingerprint of a setting that 0.1 had."""
    before = {"features": ["cls"], "dim": None, "pooling": "mao", "ridge": 0.3, "iterations": 5, "lr": 0.1}
    same = {"iterations": 5, "weight_decay": 0.01, "upsample": False}
    pipeline = Pipeline(settings.but(vector=same))
    assert pipeline.fingerprint["vector"] == {**before, "alpha": 0.03, "blocks": 1}
