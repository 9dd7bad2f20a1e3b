"""Whole images to a few vectors: dense, cluster and sum on small random models of the real classes."""

import json

import numpy as np
import pytest
import torch
from conftest import painted
from models import BOTH, tiny_encoder, tiny_words
from qdrant_client import QdrantClient, models

from soir_qdrant import Settings, SoirIngestor, SoirSearcher
from soir_qdrant.errors import ConfigError
from soir_qdrant.images import load
from soir_qdrant.models.heads.queries import QueryHead
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.scenes.cluster import cluster_map, clustered
from soir_qdrant.pooling.scenes.grids import look, peak, placed
from soir_qdrant.pooling.scenes.queries import read, trained_for
from soir_qdrant.types import SceneObject

pytestmark = pytest.mark.slow

SIZE = 32


def settings(folder, **scene):
    return Settings.for_profile("cluster-clip").but(
        encoder={"weights": str(folder), "input_size": SIZE, "dtype": "float32", "device": "cpu"}, scene=scene
    )


@pytest.fixture(scope="module", params=BOTH)
def words(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, tiny_words(folder, request.param)


def inputs_of(model, pipeline, image):
    """What the model's tower takes of an image: pixels; SigLIP 2's, what its own processor makes of them."""
    if model.config.model_type == "siglip2":
        processors = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
        return processors.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)(
            image, return_tensors="pt"
        )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in pipeline.encoder.backbone.normalisation)
    return {"pixel_values": (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std}


def own_attention_alone(model, inputs):
    """What the model itself makes of each patch where a mask lets each token of the last block see only itself."""
    vision = model.vision_model
    layers = vision.encoder.layers if hasattr(vision.encoder, "layers") else vision.encoder.layer
    entered = []
    hook = layers[-1].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.inference_mode():
        vision(**inputs)
    hook.remove()
    x = entered[0]
    alone = torch.full((x.shape[1], x.shape[1]), float("-inf")).fill_diagonal_(0)[None, None]
    with torch.inference_mode():
        after = layers[-1](x, attention_mask=alone)
    return after[0] if isinstance(after, tuple) else after


def test_dense_is_the_model_where_each_token_sees_itself(words):
    folder, model = words
    pipeline = Pipeline(settings(folder, kind="dense"))
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    x2 = own_attention_alone(model, inputs_of(model, pipeline, image))[:, pipeline.encoder.prefix_tokens :]
    vision = model.vision_model
    norm = vision.layernorm if hasattr(vision, "layernorm") else vision.post_layernorm
    with torch.inference_mode():
        rows = norm(x2)[0]
        if hasattr(vision, "head"):
            rows = vision.head(rows[:, None])
        elif hasattr(model, "visual_projection"):
            rows = model.visual_projection(rows)
    expected = torch.nn.functional.normalize(rows, dim=-1).numpy()
    (regions,) = pipeline.scene_encoder.regions([image])
    assert np.allclose(regions.vectors, expected, atol=1e-4)
    assert [item.box for item in regions.objects][:5] == [
        (0, 0, 8, 8), (8, 0, 16, 8), (16, 0, 24, 8), (24, 0, 32, 8), (0, 8, 8, 16),
    ]  # fmt: skip


def test_untrained_queries_read_what_the_model_reads(words):
    folder, _ = words
    encoder = Pipeline(settings(folder)).encoder
    head = QueryHead(encoder.width, count=3)
    torch.nn.init.zeros_(head.queries)
    images = [painted(((5, 5, 15, 15), (250, 10, 0)))]
    tiles = look(encoder, images, 1)
    with torch.inference_mode():
        rows, shares = read(head, tiles.tokens, tiles.block)
    unit = torch.nn.functional.normalize(rows[0], dim=-1).numpy()
    assert np.allclose(unit, tiles.whole.repeat(3, 0), atol=1e-4)
    assert shares.shape == (1, 3, 16)


def test_clusters_are_neighbours_that_are_alike():
    grid = np.zeros((4, 6, 3), np.float32)
    grid[..., 0] = 1
    grid[:2, :2] = (0, 1, 0)
    grid[3, 3:5] = (0, 0, 1)
    grid[0, 5] = (0, 1, 0)  # like the first, but not its neighbour
    labels = cluster_map(grid, 4)
    assert len(set(labels[:2, :2].ravel())) == 1
    assert labels[0, 5] != labels[0, 0]
    rows, objects = clustered(grid, 4, (40, 60, 3))
    boxes = {item.box for item in objects}
    assert {(0, 0, 20, 20), (30, 30, 50, 40), (50, 0, 60, 10)} < boxes
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    assert [round(item.score, 4) for item in objects] == [1.0] * 4  # all of a cluster alike


def test_cells_become_boxes_and_masks_of_the_image():
    cells = np.array([[0, 1], [1, 1]], bool)
    item = placed(cells, (5, 9, 3), 0.5)
    assert item.box == (0, 0, 9, 5)
    assert item.mask.shape == (5, 9)
    assert not item.mask[0, 0]
    assert item.mask[4, 0]
    heat = np.array([[1.0, 0.2, 0.8], [0.6, 0.1, 0.9]])
    assert peak(heat).tolist() == [
        [True, False, False],
        [True, False, False],
    ]  # what is not connected is left


@pytest.mark.parametrize("tiles", [1, 2])
def test_images_are_found_by_words_with_a_box_and_no_detector(words, tiles):
    folder, _ = words
    pipeline = Pipeline(settings(folder, kind="cluster", count=4, tiles=tiles))
    client = QdrantClient(":memory:")
    images = [
        painted(((5, 5, 25, 25), (250, 10 * i, 0)), ((40, 30, 60, 45), (0, 10 * i, 250))) for i in range(5)
    ]
    report = SoirIngestor(client, pipeline=pipeline).add(images, progress=False)
    assert report.added == 5
    searcher = SoirSearcher(client, pipeline=pipeline)
    hits = searcher.search(text="a red mug", limit=5, rerank="objects", with_vectors=True)
    point = client.retrieve("images", [hits[0].id], with_vectors=True)[0]
    rows = np.array(point.vector["objects"])  # kept without being asked for
    assert rows.shape == (4, pipeline.dim)
    words_vector = searcher.vector(query=None or pipeline.text("a red mug"))
    assert hits[0].score == pytest.approx(float((rows @ words_vector).max()), abs=1e-5)
    best = point.payload["soir"]["objects"][int((rows @ words_vector).argmax())]
    assert list(hits[0].box) == best["box"]
    assert 0 < best["area"] < 1


@pytest.mark.parametrize("name", ["clip", "siglip2", "tipsv2"])
@pytest.mark.parametrize("kind", ["cluster", "sum"])
def test_each_profile_searches_and_orders_by_the_regions_that_it_stores(kind, name, tmp_path):
    tiny_words(tmp_path / "weights", name)
    profile = Settings.for_profile(f"{kind}-{name}").but(
        encoder={
            "weights": str(tmp_path / "weights"),
            "input_size": SIZE,
            "dtype": "float32",
            "device": "cpu",
        }
    )
    assert (profile.scene.kind, profile.detector.kind) == (kind, "none")
    if kind == "sum":
        encoder, head = Pipeline(profile).encoder, tmp_path / "words.safetensors"
        QueryHead(encoder.width, count=4).save(head, trained_for(encoder, 1))
        profile = profile.but(scene={"head": str(head)})
    pipeline, client = Pipeline(profile), QdrantClient(":memory:")
    images = [
        painted(((5, 5, 25 + i, 25), (250, 40 * i, 0)), ((40, 30, 60, 45), (0, 0, 250))) for i in range(5)
    ]
    payloads = [{"shop": "north" if i % 2 else "south"} for i in range(5)]
    SoirIngestor(client, pipeline=pipeline).add(images, payloads=payloads, progress=False)
    searcher = SoirSearcher(client, pipeline=pipeline)
    words = pipeline.text("a red mug")
    for rerank in ("stored", "objects", None):  # the first is what a search does by default
        hits = searcher.search(text="a red mug", rerank=rerank, limit=5)
        assert len(hits) == 5
        for hit in hits:
            (point,) = client.retrieve("images", [hit.id], with_vectors=True)
            similar = np.array(point.vector["objects"]) @ words
            boxes = [tuple(item["box"]) for item in point.payload["soir"]["objects"]]
            near = [box for box, value in zip(boxes, similar, strict=True) if value > similar.max() - 0.05]
            assert hit.box in near  # codes are near the vectors
    north = models.Filter(must=[models.FieldCondition(key="shop", match=models.MatchValue(value="north"))])
    assert len(searcher.search(text="a red mug", filter=north)) == 2


def test_objects_of_the_user_are_cropped_all_the_same(words):
    folder, _ = words
    pipeline = Pipeline(settings(folder, kind="cluster", count=4))
    images = [load(painted()), load(painted(((5, 5, 25, 25), (250, 0, 0)))), load(painted())]
    box = (5.0, 5.0, 25.0, 25.0)
    scenes = pipeline.scenes(images, [None, [SceneObject(box)], None])
    assert [len(scene.objects) for scene in scenes] == [4, 1, 4]
    assert np.allclose(scenes[1].object_vectors[0], pipeline.query(images[1].rgb, box=box), atol=1e-4)
    with pytest.raises(ConfigError, match="makes no crops"):
        pipeline.scenes(images, patches=True)


def test_the_one_vector_may_be_the_model_s_own(words):
    folder, _ = words
    image = load(painted(((5, 5, 25, 25), (250, 0, 0))))
    pipeline = Pipeline(settings(folder, kind="cluster", count=4, vector="whole"))
    (scene,) = pipeline.scenes([image])
    (pooled,) = Pipeline(settings(folder, kind="cluster", count=4)).scenes([image])
    assert not np.allclose(scene.vector, pooled.vector, atol=1e-3)
    assert np.allclose(scene.object_vectors, pooled.object_vectors)


def test_a_head_is_loaded_for_its_own_encoder_alone(tmp_path):
    tiny_words(tmp_path / "clip")
    encoder = Pipeline(settings(tmp_path / "clip")).encoder
    file = tmp_path / "words.safetensors"
    QueryHead(encoder.width, count=5).save(file, trained_for(encoder, 2))
    good = Pipeline(settings(tmp_path / "clip", kind="sum", head=str(file), tiles=2))
    (scene,) = good.scenes([load(painted())])
    assert scene.object_vectors.shape == (20, 16)  # five queries in each of four tiles
    assert all(0 < item.score <= 1 for item in scene.objects)
    assert good.fingerprint["scene"]["head"]
    for wrong, message in (
        ({"kind": "sum"}, "soir train words"),
        ({"kind": "sum", "head": str(file)}, "trained for"),
        ({"kind": "sum", "head": str(tmp_path / "none.safetensors")}, "no head of learned queries"),
        ({"kind": "heap"}, "choose one of cluster, dense, sum"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pipeline(settings(tmp_path / "clip", **wrong)).scene_encoder  # noqa: B018


def test_settings_that_a_scene_encoder_cannot_serve_are_named(tmp_path):
    base = settings(tiny_encoder(tmp_path / "vit"), kind="cluster")
    with pytest.raises(ConfigError, match=r"vector.features"):
        Pipeline(base.but(vector={"features": ("cls", "patches")})).scene_encoder  # noqa: B018
    with pytest.raises(ConfigError, match="refines crops"):
        Pipeline(base.but(vector={"pooling": "mao"})).scene_encoder  # noqa: B018


def test_collections_without_one_keep_their_recipe(tmp_path):
    plain = Pipeline(settings(tiny_encoder(tmp_path / "vit")).but(scene=None))
    assert "scene" not in plain.fingerprint
    assert "scene" not in plain.recipe
    assert json.loads(plain.settings.model_dump_json())["scene"] is None
    with_one = Pipeline(plain.settings.but(scene={"kind": "cluster"}))
    assert with_one.fingerprint["scene"]["count"] == 16
    assert with_one.recipe["scene"]["count"] == 16
    for change in ({"tiles": 2}, {"vector": "whole"}, {"attention": "all"}, {"count": 4}, {"kind": "dense"}):
        other = Pipeline(with_one.settings.but(scene=change))
        assert other.fingerprint != with_one.fingerprint
        assert other.recipe != with_one.recipe
