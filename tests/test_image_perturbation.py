"""Reranking by Q-Perturbation on a tiny DINOv2: the reading by hand, a search, the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import BLUE, RED, SCENES, A, B, painted
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import load
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.rerank.base import SearchQuery
from soir_qdrant.rerank.cache import TokenCache
from soir_qdrant.rerank.image import ImageReranker
from soir_qdrant.rerank.q_perturbation.image_reranker import QPerturbation
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings
from soir_qdrant.rerank.q_perturbation.reading import WINNER, ImagePerturbation
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import RGB, Failure, SceneObject

pytestmark = pytest.mark.slow

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    return Pipeline(
        Settings().but(
            encoder={"weights": str(folder), "input_size": 48, "dtype": "float32"},
            detector={"kind": "none"},
            segmenter={"kind": "box"},
            vector={"whitening": None},
        )
    )


@pytest.fixture
def searcher(pipeline: Pipeline, files: list[Path], tmp_path: Path) -> SoirSearcher:
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=pipeline).add(
        files, ids=range(4), objects=[[SceneObject(box) for box, _ in scene] for scene in SCENES]
    )
    return SoirSearcher(client, pipeline=pipeline)


@pytest.fixture
def perturbation(pipeline: Pipeline, tmp_path: Path) -> QPerturbation:
    return QPerturbation(pipeline, cache=TokenCache(tmp_path / "cache"))


def asked(searcher: SoirSearcher, image: RGB) -> SearchQuery:
    """The object in A of an image, as the searcher hands it to rerankers."""
    return SearchQuery(searcher.vector(image, box=A), load(image), A)


def crops(pipeline: Pipeline, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(count)
    encoding = pipeline.encoder.encode(rng.integers(0, 256, (count, 48, 48, 3), np.uint8), with_tokens=True)
    return encoding.tokens, torch.from_numpy(rng.random((count, 36), np.float32))


# -- the reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_norm", [False, True])
def test_a_reading_by_hand(pipeline: Pipeline, keep_norm: bool) -> None:
    """One object, head by head: the main direction of its keys, the moved query, its attention, the means."""
    block = pipeline.encoder.last_block
    reader = ImagePerturbation(block, PerturbSettings(3.0, rank=1, contribution=None, keep_norm=keep_norm))
    (asked, (tokens, shares)) = crops(pipeline, 1)[0][0], crops(pipeline, 2)
    found = reader.read(reader.query(asked), reader.prepare(tokens, shares), shares)
    y, first = (block.layer_norm(x, "norm1") for x in (tokens[1], asked[:1]))
    weights = torch.zeros(36)
    for head in range(3):
        own = slice(8 * head, 8 * head + 8)
        query, keys = block.linear(first, "q")[0, own], block.linear(y, "k")[:, own]
        axis = torch.linalg.svd(keys[1:] * shares[1][:, None])[2][0]
        moved = query + 3 * axis * axis.dot(query)
        if keep_norm:
            moved *= query.norm() / moved.norm()
        weights += (keys @ moved / 8**0.5).softmax(0)[1:]
    weights /= weights.sum()
    torch.testing.assert_close(found[1], weights @ block.norm(tokens[1])[1:])


def test_alpha_zero_reads_with_the_query_as_it_is(pipeline: Pipeline) -> None:
    asked, (tokens, shares) = crops(pipeline, 1)[0][0], crops(pipeline, 3)
    zero = ImagePerturbation(pipeline.encoder.last_block, PerturbSettings(0.0))
    outside = torch.zeros_like(shares)  # an object that covers no patch has no subspace

    def read(reader: ImagePerturbation, shares: torch.Tensor) -> torch.Tensor:
        return reader.read(reader.query(asked), reader.prepare(tokens, shares), shares)

    strong = ImagePerturbation(pipeline.encoder.last_block)
    torch.testing.assert_close(read(zero, shares), read(strong, outside))
    assert not torch.allclose(read(zero, shares), read(strong, shares), atol=1e-4)


def test_objects_are_read_one_by_one_or_together(pipeline: Pipeline) -> None:
    asked, (tokens, shares) = crops(pipeline, 1)[0][0], crops(pipeline, 3)
    reader = ImagePerturbation(pipeline.encoder.last_block)
    query = reader.query(asked)
    together = reader.read(query, reader.prepare(tokens, shares), shares)
    for i in range(3):
        one = slice(i, i + 1)
        alone = reader.read(query, reader.prepare(tokens[one], shares[one]), shares[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-4)


def test_an_encoder_without_cls_is_refused(pipeline: Pipeline) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="no CLS token"):
        ImagePerturbation(replace(pipeline.encoder.last_block, prefix_tokens=0))
    with pytest.raises(ConfigError, match=r"shares \(2, 35\)"):
        ImagePerturbation(pipeline.encoder.last_block).prepare(torch.ones(2, 37, 24), torch.ones(2, 35))


# -- the search --------------------------------------------------------------------------------------------


def test_the_same_object_scores_one_and_has_its_box(
    searcher: SoirSearcher, perturbation: QPerturbation, files: list[Path]
) -> None:
    """The query is cut as the candidates are, so its object's score is 1, in both pictures that hold it."""
    hits = searcher.search(files[1], box=B, rerank=perturbation)
    assert (hits[0].id, hits[0].box) == (1, B)
    assert hits[0].score == pytest.approx(1, abs=1e-2)
    assert sorted(hit.id for hit in hits) == [0, 1, 2, 3]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    page = searcher.search(files[1], box=B, rerank=perturbation, limit=2, offset=1)
    assert [hit.id for hit in page] == [hit.id for hit in hits[1:3]]


def test_prefetch_bounds_what_is_opened(
    searcher: SoirSearcher, perturbation: QPerturbation, files: list[Path], tmp_path: Path
) -> None:
    searcher.search(files[0], box=A, rerank=perturbation, prefetch=2, limit=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pictures_that_cannot_be_read_keep_their_place(
    searcher: SoirSearcher,
    perturbation: QPerturbation,
    files: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    query = np.asarray(Image.open(files[0]))
    first = searcher.search(query, box=A, rerank=None)
    gone, changed = first[1], first[2]
    Path(str(gone.uri)).unlink()
    Image.fromarray(painted((A, (9, 9, 9)))).save(str(changed.uri))
    hits = searcher.search(query, box=A, rerank=perturbation)
    assert [(h.id, h.box) for h in hits[1:3]] == [(h.id, h.box) for h in (gone, changed)]
    scores = [gone.score, changed.score]  # the query is encoded again: equal but for the last bits
    assert [hit.score for hit in hits[1:3]] == pytest.approx(scores, abs=1e-6)
    failed: list[Failure] = []
    perturbation.rerank(asked(searcher, query), first, failed=failed)
    assert [f.name for f in failed] == [gone.uri, changed.uri]
    assert "another image than was ingested" in failed[1].reason
    assert f"hit {gone.id} keeps its place" in caplog.text


def test_pictures_without_a_file_keep_their_place(pipeline: Pipeline, tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=pipeline).add([painted((A, RED)), painted((A, BLUE))], ids=[0, 1])
    found, perturbation = (
        SoirSearcher(client, pipeline=pipeline),
        QPerturbation(pipeline, cache=TokenCache(tmp_path)),
    )
    first = found.search(painted((A, RED)), rerank=None)
    assert [h.score for h in found.search(painted((A, RED)), rerank=perturbation)] == [h.score for h in first]


def test_a_cached_candidate_needs_no_picture(
    searcher: SoirSearcher, perturbation: QPerturbation, files: list[Path]
) -> None:
    query = np.asarray(Image.open(files[0]))
    before = searcher.search(query, box=A, rerank=perturbation)
    for file in files:
        file.unlink()
    after = searcher.search(query, box=A, rerank=perturbation)
    assert [(hit.id, hit.score) for hit in after] == [(hit.id, hit.score) for hit in before]


def test_weight_and_settings_change_the_score(
    searcher: SoirSearcher, perturbation: QPerturbation, files: list[Path]
) -> None:
    hits = searcher.search(files[0], box=A, rerank=None)
    query = asked(searcher, np.asarray(Image.open(files[0])))

    def scores(**options: Any) -> dict[Any, float]:
        reranker = QPerturbation(searcher.pipeline, cache=perturbation.cache, **options)
        return {hit.id: hit.score for hit in reranker.rerank(query, hits)}

    vectors, read = scores(weight=0.0), scores(weight=1.0)
    assert vectors == pytest.approx(scores(weight=0.0, settings=PerturbSettings(0.0)))
    assert read != pytest.approx(scores(weight=1.0, settings=PerturbSettings(0.0)), abs=1e-5)
    both = scores(weight=0.5, settings=WINNER)
    assert both == pytest.approx({i: (vectors[i] + read[i]) / 2 for i in both}, abs=1e-6)
    with pytest.raises(ConfigError, match="weight 2"):
        scores(weight=2)


def test_rerank_image_is_the_plain_reading_of_the_images(
    searcher: SoirSearcher, perturbation: QPerturbation, files: list[Path], tmp_path: Path
) -> None:
    """Scores and boxes are those of the objects' vectors; it needs no query image, and "picture" is the same."""
    plain = ImageReranker(searcher.pipeline, cache=TokenCache(tmp_path / "plain"))
    hits = searcher.search(files[1], box=B, rerank=None)
    query = asked(searcher, np.asarray(Image.open(files[0])))
    unread = QPerturbation(searcher.pipeline, cache=perturbation.cache, weight=0.0)
    assert [(h.id, h.box) for h in plain.rerank(query, hits)] == [
        (h.id, h.box) for h in unread.rerank(query, hits)
    ]
    by_vector = searcher.search(searcher.vector(files[1], box=B), rerank=plain)
    assert (by_vector[0].id, by_vector[0].box) == (1, B)
    assert by_vector[0].score == pytest.approx(1, abs=1e-2)
    assert all(set(plain.objects(hit)) == {"boxes", "vectors"} for hit in hits)  # no tokens
    assert type(searcher.reranker("image")) is type(searcher.reranker("picture")) is ImageReranker


# -- the cache ---------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    held = {"x": torch.arange(100)}
    TokenCache(tmp_path).put("size", held)
    size = next(tmp_path.iterdir()).stat().st_size
    cache = TokenCache(tmp_path / "small", limit=2 * size)
    for age, key in enumerate(["a", "b"]):
        cache.put(key, held)
        os.utime(tmp_path / f"small/{key}.safetensors", (age, age))
    assert cache.get("a") is not None  # now b is the older one
    cache.put("c", held)
    assert cache.get("b") is None
    for key in "ac":
        found = cache.get(key)
        assert found is not None
        assert torch.equal(found["x"], held["x"])


def test_the_cache_is_never_fatal(tmp_path: Path) -> None:
    held = {"x": torch.ones(3)}
    cache = TokenCache(tmp_path)
    cache.put("a", held)
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert cache.get("a") is None
    TokenCache(tmp_path / "a.safetensors").put("b", held)  # its folder is a file
    none = TokenCache(tmp_path / "none", limit=0)
    none.put("a", held)
    assert none.get("a") is None
    with pytest.raises(ConfigError, match="cache limit -1"):
        TokenCache(tmp_path, limit=-1)
