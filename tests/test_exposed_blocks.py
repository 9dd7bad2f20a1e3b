"""`vector.blocks` above 1: the tokens of an encoding then enter an earlier block than the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RED, A, B, painted, unit
from test_image_perturbation import pipeline, searcher  # noqa: F401
from test_refine import twin_maps

from soir_qdrant.images import load
from soir_qdrant.mao.legrad import normalized, upsampled
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.report.explain import explain
from soir_qdrant.rerank import SearchQuery, TokenCache
from soir_qdrant.rerank.q_perturbation.image_reranker import QPerturbation
from soir_qdrant.rerank.q_perturbation.tower_reranker import TowerPerturbation
from soir_qdrant.search import localization
from soir_qdrant.search.localization import Look
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import SceneObject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deeper(pipeline: Pipeline) -> Pipeline:  # noqa: F811
    return Pipeline(pipeline.settings.but(vector={"blocks": 2}))


def test_q_perturbation_reads_in_the_last_block(
    pipeline: Pipeline,  # noqa: F811
    deeper: Pipeline,
    searcher: SoirSearcher,  # noqa: F811
    files: list[Path],
    tmp_path: Path,
) -> None:
    one, two = (
        searcher.search(
            files[1], box=B, rerank=QPerturbation(part, cache=TokenCache(tmp_path / name), weight=1.0)
        )
        for name, part in (("one", pipeline), ("two", deeper))
    )
    assert {hit.id: hit.score for hit in two} == pytest.approx({hit.id: hit.score for hit in one}, abs=1e-3)


def test_the_tower_reads_in_the_last_block(
    pipeline: Pipeline,  # noqa: F811
    deeper: Pipeline,
    searcher: SoirSearcher,  # noqa: F811
    files: list[Path],
) -> None:
    hits = searcher.search(files[1], box=B)
    words = SearchQuery(unit(pipeline.encoder.dim), text="a red mug")
    one, two = (
        {hit.id: hit.score for hit in TowerPerturbation(part).rerank(words, hits)}
        for part in (pipeline, deeper)
    )
    assert two == pytest.approx(one, abs=1e-3)


def test_maps_are_those_of_all_blocks(deeper: Pipeline, tmp_path: Path) -> None:
    """In `soir explain` and in heat maps: of one object, whose mean descriptor is its own."""
    image, item = load(painted((A, RED))), SceneObject(A)
    (one,) = explain(deeper, image, [item])
    crops = deeper.crops([image.rgb], [deeper.segment(image.rgb, [item])])
    encoding, size = deeper.encode_whole(crops), deeper.encoder.input_size
    t = torch.nn.functional.normalize(torch.as_tensor(encoding.descriptor), dim=-1)
    raw = twin_maps(deeper.encoder.last_blocks, torch.as_tensor(encoding.tokens), t)
    expected = upsampled(normalized(raw), size)[0].numpy()
    np.testing.assert_allclose(one.before, expected, atol=1e-4)
    vector = deeper.describe(encoding, crops.masks)[0]
    canvas = np.zeros((image.height, image.width), np.float32)
    localization._lay(canvas, expected, localization._window(deeper, A, canvas.shape))
    heat = localization.heat(deeper, Look(encoding.descriptor[0], vector), image, [A])
    np.testing.assert_allclose(heat, canvas, atol=1e-4)


def test_explain_refines_as_the_pipeline_does(deeper: Pipeline) -> None:
    """With MaO what is stored is the joint token itself."""
    settings = deeper.settings.but(
        vector={"features": ["cls"], "pooling": "mao", "iterations": 5, "blocks": 2}
    )
    refining = Pipeline(settings, encoder=deeper.encoder)
    items = [SceneObject(A), SceneObject(B)]
    for one in explain(refining, load(painted((A, RED), (B, (0, 0, 250)))), items):
        assert one.to_refined == pytest.approx(one.similarity, abs=1e-5)
