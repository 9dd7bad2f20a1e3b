"""Patches in a search: stored, computed, and where they are missing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import BLUE, GREEN, RED, SCENES, A, B, painted
from models import SHAPE
from PIL import Image
from qdrant_client import AsyncQdrantClient, QdrantClient

from soir_qdrant.aio import AsyncSoirSearcher
from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.crops import Crops
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.models.tokens import LAYER
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.patches import PatchProjection
from soir_qdrant.qdrant.payload import code_cosines, shown
from soir_qdrant.rerank.base import Reranker, SearchQuery
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.patches import PatchReranker
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import Failure, Hit, LoadedImage, SceneObject

DIM = 16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.manual_seed(0)
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(**SHAPE | {"num_hidden_layers": 5}, mlp_ratio=2)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    settings = Settings().but(
        encoder={"weights": str(folder), "input_size": 8 * SHAPE["patch_size"], "dtype": "float32"},
        detector={"kind": "none"},
        segmenter={"kind": "box"},
        vector={"whitening": None},
    )
    bare = Pipeline(settings)
    return Pipeline(settings, encoder=bare.encoder, patch_projection=centred(bare))


def centred(pipeline: Pipeline) -> PatchProjection:
    """Random directions about the mean token of three colours: whitening is for models that have learnt."""
    crops = [pipeline.query_crop(painted((A, colour)), box=A).pixels for colour in (RED, GREEN, BLUE)]
    tokens = torch.from_numpy(pipeline.encoder.features(np.concatenate(crops), [LAYER])).flatten(0, 2)
    width = tokens.shape[1]
    unit = torch.nn.functional.normalize(torch.nn.functional.layer_norm(tokens, (width,)), dim=1)
    matrix = np.random.default_rng(0).normal(size=(width, DIM)).astype(np.float32)
    return PatchProjection(
        unit.mean(0).numpy(), matrix, np.ones(width, np.float32), np.zeros(width, np.float32)
    )


def filled(pipeline: Pipeline, files: list[Path], *, stored: bool | None = None) -> QdrantClient:
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=pipeline, object_patches=stored).add(
        files, ids=range(4), objects=[[SceneObject(box) for box, _ in scene] for scene in SCENES]
    )
    return client


def reranker(pipeline: Pipeline, folder: Path) -> PatchReranker:
    return PatchReranker(pipeline, cache=TokenCache(folder / "cache"))


# -- the search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
def test_the_same_object_scores_high_and_has_its_box(
    pipeline: Pipeline, files: list[Path], tmp_path: Path, stored: bool
) -> None:
    searcher = SoirSearcher(filled(pipeline, files, stored=stored), pipeline=pipeline)
    patches = reranker(pipeline, tmp_path)
    hits = searcher.search(files[1], box=B, rerank=patches)
    own = next(hit for hit in hits if hit.id == 1)
    assert (own.box, own.object) == (B, 1)
    assert own.score > 0.75  # 0.3 by codes, and signs tell some 0.8 of a cosine
    assert sorted(hit.id for hit in hits) == [0, 1, 2, 3]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert "patches" not in hits[0].payload["soir"]
    assert "code" not in hits[0].payload["soir"]["objects"][0]
    page = searcher.search(files[1], box=B, rerank=patches, limit=2, offset=1)
    assert [hit.id for hit in page] == [hit.id for hit in hits[1:3]]
    assert len(list((tmp_path / "cache").glob("*"))) == (0 if stored else 4)


def test_stored_and_computed_patches_are_the_same(
    pipeline: Pipeline, files: list[Path], tmp_path: Path
) -> None:
    listed = [
        SoirSearcher(filled(pipeline, files, stored=stored), pipeline=pipeline).search(
            files[3], box=A, rerank=reranker(pipeline, tmp_path)
        )
        for stored in (True, False)
    ]
    stored, computed = ({hit.id: hit.score for hit in hits} for hits in listed)
    assert stored == pytest.approx(computed, abs=0.01)  # half precision turns a sign here and there


def test_the_score_is_a_weighted_mean(pipeline: Pipeline, files: list[Path]) -> None:
    client = filled(pipeline, files, stored=True)
    searcher = SoirSearcher(client, pipeline=pipeline)
    by_codes = {hit.id: hit.score for hit in searcher.search(files[0], box=A, rerank="codes")}

    def scores(weight: float) -> dict:
        patches = PatchReranker(pipeline, weight=weight)
        return {hit.id: hit.score for hit in searcher.search(files[0], box=A, rerank=patches)}

    late = scores(1.0)
    assert scores(0.0) == pytest.approx(by_codes)
    assert scores(0.25) == pytest.approx({i: 0.75 * by_codes[i] + 0.25 * late[i] for i in late}, abs=1e-6)
    assert late[0] > 0.65
    with pytest.raises(ConfigError, match="weight 2"):
        PatchReranker(pipeline, weight=2)


def order(hits: list[Hit]) -> list[tuple]:
    return [(hit.id, round(hit.score, 5), hit.box) for hit in hits]


def test_patches_are_kept_and_order_the_hits_by_themselves(
    pipeline: Pipeline, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = filled(pipeline, files)
    searcher = SoirSearcher(client, pipeline=pipeline)
    expected = searcher.search(files[1], box=B, rerank="patches")
    monkeypatch.setattr(pipeline, "patches", None)  # the query is looked at once
    found = searcher.search(files[1], box=B)
    assert order(found) == order(expected)
    assert order(found) != order(searcher.search(files[1], box=B, rerank="codes"))
    groups = searcher.search_groups(files[1], "soir.width", box=B)
    assert order(groups[0].hits) == order(expected[:3])
    assert order(searcher.search_many([files[1]], boxes=[B], limit=2, offset=1)[0]) == order(expected[1:3])


def test_without_patches_or_image_codes_order_them(pipeline: Pipeline, files: list[Path]) -> None:
    with_patches, without = (
        SoirSearcher(filled(pipeline, files, stored=stored), pipeline=pipeline) for stored in (True, False)
    )
    vector = with_patches.vector(files[1], box=B)
    expected = order(without.search(files[1], box=B, rerank="codes"))
    assert order(without.search(files[1], box=B)) == expected
    assert order(with_patches.search(vector)) == expected
    SoirIngestor(without.store.client, pipeline=pipeline).add([painted((A, GREEN))], ids=[9])
    mixed = [hit for hit in order(without.search(files[1], box=B)) if hit[0] != 9]
    assert mixed == expected  # scores of both kinds cannot be compared


def test_they_are_not_made_where_they_would_take_a_pass_of_their_own(
    pipeline: Pipeline, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pipeline.encoder), "reads_patches", False)
    (record,) = filled(pipeline, files).retrieve("images", [1])
    assert "patches" not in record.payload["soir"]


def test_pictures_that_cannot_be_read_keep_their_place(
    pipeline: Pipeline, files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = SoirSearcher(filled(pipeline, files, stored=False), pipeline=pipeline)
    query = np.asarray(Image.open(files[0]))
    first = searcher.search(query, box=A)
    gone, changed = first[1], first[2]
    Path(str(gone.uri)).unlink()
    Image.fromarray(painted((A, (9, 9, 9)))).save(str(changed.uri))
    hits = searcher.search(query, box=A, rerank=reranker(pipeline, tmp_path))
    assert [(h.id, h.box) for h in hits[1:3]] == [(h.id, h.box) for h in (gone, changed)]
    # local mode rounds one and the same score in two ways, by where its arrays lie
    assert [h.score for h in hits[1:3]] == pytest.approx([gone.score, changed.score], abs=1e-7)
    assert f"hit {gone.id} keeps its place" in caplog.text
    assert "another image than was ingested" in caplog.text


def test_failures_are_handed_out(pipeline: Pipeline, files: list[Path], tmp_path: Path) -> None:
    searcher = SoirSearcher(filled(pipeline, files, stored=False), pipeline=pipeline)
    hits = searcher.search(files[0], box=A)
    files[2].unlink()
    image = LoadedImage(np.asarray(Image.open(files[0])), "query", None, "0" * 64)
    patches: Reranker = reranker(pipeline, tmp_path)
    failed: list[Failure] = []
    patches.rerank(SearchQuery(searcher.vector(files[0], box=A), image, A), hits, failed=failed)
    assert [failure.name for failure in failed] == [str(files[2].resolve())]


def test_a_query_that_is_no_picture_is_refused(pipeline: Pipeline, files: list[Path]) -> None:
    searcher = SoirSearcher(filled(pipeline, files, stored=True), pipeline=pipeline)
    with pytest.raises(ConfigError, match="needs a query image, and this query is a vector"):
        searcher.search(searcher.vector(files[0]), rerank="patches")


def test_an_encoder_without_projection_is_refused(pipeline: Pipeline) -> None:
    without_projection = Pipeline(pipeline.settings, encoder=pipeline.encoder)
    query = SearchQuery(np.ones(4, np.float32), LoadedImage(painted((A, RED)), "query", None, "0" * 64), A)
    with pytest.raises(ConfigError, match="needs a whitening of the feature"):
        PatchReranker(without_projection).rerank(query, [])


def test_patches_of_a_pass_of_their_own_are_the_same(pipeline: Pipeline) -> None:
    """As a served encoder's are: it gives none with its encoding, and is asked for features."""
    shape = (3, *pipeline.query_crop(painted((A, RED))).pixels.shape[1:])
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    crops = Crops(pixels, np.ones(shape[:3], np.float32))
    _, own = pipeline._encode(crops, True)
    theirs = pipeline.patches(crops)
    for one, two in zip(own, theirs, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-2)


def test_patches_stay_in_qdrant_where_they_are_not_read(pipeline: Pipeline, files: list[Path]) -> None:
    client = filled(pipeline, files, stored=True)
    (record,) = client.retrieve("images", [1])
    assert len(record.payload["soir"]["patches"]) == 2
    searcher = SoirSearcher(client, pipeline=pipeline)
    (points,) = searcher.store.query([searcher.store.request(searcher.vector(files[1]), limit=1)])
    assert "patches" not in points[0].payload["soir"]
    assert code_cosines(points[0].payload, searcher.vector(files[1])) is not None
    assert shown(record.payload) == shown(points[0].payload)


def test_awaited(pipeline: Pipeline, files: list[Path]) -> None:
    async def asked() -> list:
        client = AsyncQdrantClient(":memory:")
        from soir_qdrant.aio import AsyncSoirIngestor

        ingestor = AsyncSoirIngestor(client, pipeline=pipeline, object_patches=True)
        await ingestor.add(files, ids=range(4), objects=[[SceneObject(b) for b, _ in s] for s in SCENES])
        searcher = AsyncSoirSearcher(client, pipeline=pipeline)
        return await searcher.search(files[1], box=B, rerank="patches")

    assert next(hit for hit in asyncio.run(asked()) if hit.id == 1).box == B
