"""Words that order hits by perturbed queries of CLIP's and SigLIP's own towers: small ones with random weights."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import painted
from models import BOTH, tiny_words
from PIL import Image
from qdrant_client import QdrantClient
from test_text import settings

from soir_qdrant import SoirIngestor, SoirSearcher
from soir_qdrant.errors import ConfigError
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, perturb, regions
from soir_qdrant.rerank.q_perturbation.tower_reranker import TowerPerturbation, described
from soir_qdrant.types import SceneObject

pytestmark = pytest.mark.slow

STRONG = PerturbSettings(scale=8.0, contribution=0.99)
BOXES = [(5.0, 5.0, 35.0, 30.0), (40.0, 20.0, 75.0, 50.0)]


@pytest.fixture(scope="module", params=BOTH)
def tower(request, tmp_path_factory):
    """The model itself, and the pipeline on its folder. As initialised, all its attentions are flat."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_words(folder, request.param)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vision" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model, Pipeline(settings(folder).but(segmenter={"kind": "box"}))


def tokens(pipeline):
    crop = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    return torch.as_tensor(pipeline.encoder.encode(crop, with_tokens=True).tokens)


def test_the_pooling_is_the_models_own_and_moves_with_the_scale(tower):
    _, pipeline = tower
    block, x, boxes = pipeline.encoder.last_block, tokens(pipeline), torch.tensor(BOXES)
    own = block.descriptor(x)[0]
    with torch.inference_mode():
        still, moved = (
            described(block, x, boxes, (80, 60), one) for one in (PerturbSettings(scale=0.0), STRONG)
        )
        of_nothing = described(block, x, torch.zeros(0, 4), (80, 60), STRONG)
    torch.testing.assert_close(still, own, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(of_nothing, own)
    assert torch.cosine_similarity(moved, own, dim=0) < 0.9999


def test_the_cls_token_of_clip_asks_with_a_moved_query(tmp_path):
    """The model of `transformers` itself, its last layer's query projection moved at the CLS token."""
    model = tiny_words(tmp_path, "clip")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vision" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    pipeline = Pipeline(settings(tmp_path).but(segmenter={"kind": "box"}))
    block, boxes = pipeline.encoder.last_block, torch.tensor(BOXES)
    crop = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    x = torch.as_tensor(pipeline.encoder.encode(crop, with_tokens=True).tokens)
    attention = model.vision_model.encoder.layers[-1].self_attn

    def move(_module, args, output):
        heads = attention.k_proj(args[0]).unflatten(-1, (3, 8)).transpose(1, 2)
        phi, alpha = regions(heads[0], boxes, (80, 60), (4, 4), STRONG)
        first = output[:, :1].unflatten(-1, (3, 8)).transpose(1, 2)
        moved = perturb(first, phi[:, None], alpha[:, None])
        return torch.cat([moved.transpose(1, 2).flatten(2), output[:, 1:]], 1)

    attention.q_proj.register_forward_hook(move)
    with torch.inference_mode():
        values = (
            torch.from_numpy(crop).permute(0, 3, 1, 2) * pipeline.encoder._scale + pipeline.encoder._shift
        )
        expected = model.get_image_features(pixel_values=values)
        row = described(block, x, boxes, (80, 60), STRONG)
    expected = expected if torch.is_tensor(expected) else expected.pooler_output
    expected = expected[0]
    cosine = torch.cosine_similarity(row, expected, dim=0)
    assert cosine == pytest.approx(1, abs=1e-4)
    assert torch.cosine_similarity(block.descriptor(x)[0], expected, dim=0) < 0.999


def test_words_order_the_hits_by_their_images(tower, tmp_path):
    _, pipeline = tower
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(painted((BOXES[0], (250, 80 * i, 0)), (BOXES[1], (0, 0, 250)))).save(file)
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=pipeline).add(files, objects=[[SceneObject(box) for box in BOXES]] * 3)
    searcher = SoirSearcher(client, pipeline=pipeline)
    words = searcher.search(text="a red mug", rerank="text-q-perturbation")
    assert [hit.score for hit in words] == sorted((hit.score for hit in words), reverse=True)
    assert {hit.box for hit in words} <= set(BOXES)
    plain = searcher.search(text="a red mug", rerank=TowerPerturbation(pipeline, None))
    whole = {hit.id: pipeline.text("a red mug") @ whole_image(pipeline, hit) for hit in plain}
    assert {hit.id: hit.score for hit in plain} == pytest.approx(whole, abs=1e-4)
    assert {hit.id: hit.score for hit in words} != pytest.approx(whole, abs=1e-4)
    with pytest.raises(ConfigError, match="needs words, and this query is an image"):
        searcher.search(files[0], rerank="text-q-perturbation")


def test_boxes_lie_where_they_are_in_an_image_that_is_opened_reduced(tower, tmp_path):
    _, pipeline = tower
    large = np.kron(painted((BOXES[0], (250, 80, 0)), (BOXES[1], (0, 0, 250))), np.ones((4, 4, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.jpg", quality=95)
    client = QdrantClient(":memory:")
    boxes = [SceneObject(tuple(4 * side for side in box)) for box in BOXES]
    SoirIngestor(client, pipeline=pipeline).add([tmp_path / "large.jpg"], objects=[boxes])
    searcher, pixels = SoirSearcher(client, pipeline=pipeline), large.shape[0] * large.shape[1]
    scores = [
        searcher.search(text="a red mug", rerank=TowerPerturbation(pipeline, STRONG, max_pixels=limit))[
            0
        ].score
        for limit in (pixels, pixels // 4, pixels // 16)
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=0.02)


def whole_image(pipeline, hit):
    """Its descriptor, as the model has it."""
    image = cv2.resize(np.asarray(Image.open(hit.uri)), (32, 32), interpolation=cv2.INTER_AREA)
    row = pipeline.encoder.encode(image[None]).descriptor[0]
    return row / np.linalg.norm(row)
