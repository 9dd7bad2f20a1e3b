"""The order of steps, with the real encoder."""

import numpy as np
import pytest

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError, ObjectsError
from soir_qdrant.geometry.crops import crop, full_mask, square
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.report.explain import explain, save
from soir_qdrant.types import Detections, LoadedImage, SceneObject


@pytest.fixture(scope="module")
def pipeline(shipped_encoder):
    return Pipeline(Settings().but(detector={"kind": "none"}), encoder=shipped_encoder)


@pytest.fixture(scope="module")
def picture():
    """A red and a blue thing on a noisy ground."""
    rgb = np.random.default_rng(0).integers(90, 150, (240, 320, 3), np.uint8)
    rgb[40:90, 50:110], rgb[130:200, 200:260] = (220, 30, 30), (30, 60, 220)
    return LoadedImage(rgb, "picture", None, "0" * 64)


THINGS = [SceneObject((50, 40, 110, 90)), SceneObject((200, 130, 260, 200), label="blue")]


def test_a_picture_without_objects_is_one_object(pipeline, picture):
    (scene,) = pipeline.scenes([picture])
    assert [item.box for item in scene.objects] == [(0, 0, 320, 240)]
    assert scene.vector.shape == (pipeline.dim,) == (1024,)
    assert np.isclose(np.linalg.norm(scene.vector), 1, atol=1e-5)


def test_each_object_is_similar_to_the_one_vector_and_most_to_itself(pipeline, picture):
    (scene,) = pipeline.scenes([picture], [THINGS])
    assert scene.objects[1].label == "blue"
    assert (scene.object_vectors @ scene.vector > 0.5).all()
    query = pipeline.query(picture.rgb[125:205, 195:265])
    assert np.argmax(scene.object_vectors @ query) == 1


@pytest.mark.parametrize("kind", ["embedded", "grabcut", "box"])
def test_a_box_may_end_a_hair_beyond_a_pixel(pipeline, picture, kind):
    """In single precision it would end at the pixel, and its mask would be one pixel short."""
    segmenter = Pipeline(Settings().but(segmenter={"kind": kind}), encoder=pipeline.encoder).segmenter
    items = pipeline.segment(picture.rgb, [SceneObject((50, 40, 110.0000001, 90.0000001))], segmenter)
    assert items[0].mask.shape == (51, 61)
    pipeline.crops([picture.rgb], [items])


def test_two_boxes_that_fit_one_mask_are_one_object(pipeline, picture):
    """Their IoU is 0.5; both are fitted to the red thing. The better one stays, and the blue thing."""

    class Detector:
        name = "two on red"

        def detect(self, images):
            boxes = [(42, 40, 100, 90), (200, 130, 260, 200), (58, 36, 115, 95)]
            return [Detections(np.array(boxes, np.float32), np.array([0.9, 0.8, 0.7], np.float32))] * len(
                images
            )

    found = Pipeline(pipeline.settings, detector=Detector(), encoder=pipeline.encoder).find([picture], [None])
    assert [round(item.score, 1) for item in found[0]] == [0.9, 0.8]
    assert found[0][0].box == pytest.approx((50, 40, 110, 90), abs=4)
    kept = Pipeline(
        pipeline.settings.but(segmenter={"kind": "box"}), detector=Detector(), encoder=pipeline.encoder
    ).find([picture], [None])
    assert len(kept[0]) == 3  # nothing fits boxes there, and these are not the same


def test_a_box_drawn_too_large_is_moved_to_the_thing_in_it(pipeline, picture):
    exact = pipeline.query_crop(picture.rgb, box=(50, 40, 110, 90))
    drawn = pipeline.query_crop(picture.rgb, box=(40, 32, 120, 98))
    covered = [crops.masks[0] > 0.5 for crops in (exact, drawn)]
    assert (covered[0] & covered[1]).sum() / (covered[0] | covered[1]).sum() > 0.9


def test_no_more_objects_than_the_settings_allow(pipeline, picture):
    """Whatever the detector returns: the best of those that are left after the second suppression."""

    class Detector:
        name = "nine"

        def detect(self, images):
            boxes = np.array([(30 * i, 10, 30 * i + 25, 40) for i in range(9)], np.float32)
            return [Detections(boxes, np.linspace(0.9, 0.1, 9, dtype=np.float32))] * len(images)

    settings = pipeline.settings.but(segmenter={"kind": "box"}, detector={"max_objects": 4})
    (items,) = Pipeline(settings, detector=Detector(), encoder=pipeline.encoder).find([picture], [None])
    assert [round(item.score, 1) for item in items] == [0.9, 0.8, 0.7, 0.6]


def test_a_batch_gives_what_single_pictures_give(pipeline, picture):
    together = pipeline.scenes([picture, picture], [THINGS, None])
    alone = pipeline.scenes([picture], [THINGS])[0]
    assert together[0].vector @ alone.vector > 0.999
    assert len(together[1].objects) == 1


def test_the_papers_refinement_is_one_setting_away(picture, shipped_encoder):
    settings = Settings().but(
        detector={"kind": "none"},
        vector={"features": ("cls",), "whitening": None, "pooling": "mao", "iterations": 5},
    )
    pipeline = Pipeline(settings, encoder=shipped_encoder)
    (scene,) = pipeline.scenes([picture], [THINGS])
    assert scene.vector.shape == (384,) == (pipeline.dim,)
    assert "iterations" in pipeline.fingerprint["vector"]
    two = Pipeline(settings.but(vector={"blocks": 2, "whitening": None}))  # maps of the last two blocks
    (other,) = two.scenes([picture], [THINGS])
    assert other.vector @ scene.vector < 0.9999
    with pytest.raises(ConfigError, match="exposes 1"):
        Pipeline(settings.but(vector={"blocks": 2}), encoder=pipeline.encoder).scenes([picture], [THINGS])


def test_a_query_is_refined_as_the_images_are(picture, shipped_encoder):
    """An image of one object, and the same object as a query, have the same vector: same token, mask and steps."""
    settings = Settings().but(
        detector={"kind": "none"},
        vector={"features": ("cls",), "whitening": None, "pooling": "mao", "iterations": 10},
    )
    pipeline = Pipeline(settings, encoder=shipped_encoder)
    box, mask = THINGS[0].box, np.zeros((picture.height, picture.width), bool)
    x0, y0, x1, y1 = (round(v) for v in box)
    mask[y0:y1, x0:x1] = True
    (scene,) = pipeline.scenes([picture], [[SceneObject(box, mask)]])
    refined = pipeline.query(picture.rgb, box=box, mask=mask)
    plain = Pipeline(settings.but(vector={"refine_query": False}), encoder=pipeline.encoder)
    assert refined @ scene.vector > 0.9999
    assert plain.query(picture.rgb, box=box, mask=mask) @ scene.vector < 0.99
    assert plain.fingerprint != pipeline.fingerprint


def test_settings_that_contradict_are_refused_with_the_fix(picture, shipped_encoder):
    refined = Settings().but(vector={"pooling": "mao"}, detector={"kind": "none"})
    with pytest.raises(ConfigError, match="features"):
        Pipeline(refined, encoder=shipped_encoder).scenes([picture])
    with pytest.raises(ConfigError, match="soir calibrate"):
        _ = Pipeline(Settings().but(crop={"margin": 0.5}), encoder=shipped_encoder).dim
    with pytest.raises(ConfigError, match=r"vector\.poolin"):
        Settings().but(vector={"poolin": "mean"})
    with pytest.raises(ConfigError, match="choose one of"):
        Settings.for_profile("unknown")


def test_a_json_file_is_a_profile_of_ones_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(
        '{"profile": "clip", "encoder": {"batch": 3}, "vector": {"whitening": "mine.safetensors"}}'
    )
    mine = Settings.for_profile(str(file))
    assert (mine.profile, mine.encoder.batch, mine.vector.whitening) == ("clip", 3, "mine.safetensors")
    for wrong, told in [
        ('{"encoder": {"weigths": "x"}}', "encoder.weigths"),
        ('{"profile": "none"}', "changes a profile 'none'; choose one of embedded"),
        ("[1]", "no JSON object of settings"),
        ("{", "no JSON object of settings"),
    ]:
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=told):
            Settings.for_profile(str(file))
    with pytest.raises(ConfigError, match="no JSON object"):
        Settings.for_profile(str(tmp_path / "none.json"))
    file.write_text('{"encoder": "mine.safetensors"}')
    with pytest.raises(ConfigError, match=r"setting encoder: 'mine\.safetensors' is no object"):
        Settings.for_profile(str(file))


@pytest.mark.parametrize("box", [(10, 10, 30, 20), (0, 0, 5, 5), (300, 230, 320, 240), (-5, -5, 50, 40)])
def test_a_crop_is_square_and_holds_its_object(picture, box):
    mask = full_mask(SceneObject(box), 320, 240)
    pixels, share = crop(picture.rgb, mask, box, 56, margin=0.1)
    assert pixels.shape == (56, 56, 3)
    x, y, side = square(box, 320, 240, margin=0.1)
    inside = mask[max(y, 0) : y + side, max(x, 0) : x + side].sum()
    assert inside == mask.sum()
    assert np.isclose(share.mean() * side**2, mask.sum(), rtol=0.15)


def test_masks_and_boxes_that_do_not_fit_are_refused():
    with pytest.raises(ObjectsError, match="mask of shape"):
        full_mask(SceneObject((0, 0, 10, 10), np.ones((3, 3), bool)), 100, 100)
    with pytest.raises(ObjectsError, match="holds no pixel"):
        full_mask(SceneObject((200, 0, 210, 10)), 100, 100)


def test_refining_moves_attention_onto_the_masks(pipeline, picture, tmp_path):
    """What `soir explain` shows: per object a mask, and maps that match it better afterwards."""
    found = explain(pipeline, picture, THINGS)
    assert [one.item.box for one in found] == [item.box for item in THINGS]
    for one in found:
        assert one.crop.shape[:2] == one.mask.shape == one.before.shape == one.after.shape == (224, 224)
        assert 0 <= one.after.min() <= one.after.max() <= 1
        assert overlap(one.after, one.mask) > overlap(one.before, one.mask)
        assert one.similarity > 0.5
    save(tmp_path / "page.html", "room.jpg", picture.rgb, found)
    page = (tmp_path / "page.html").read_text()
    assert "room.jpg" in page
    assert "object 2" in page
    assert page.count("data:image") == 1 + 4 * len(THINGS)  # the picture; crop, mask, both maps of each


def overlap(heat, mask):
    return 2 * (heat * mask).sum() / (heat.sum() + mask.sum())
