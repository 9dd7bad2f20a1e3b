"""The feature "texture": what the surface of an object looks like, beside what the object is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.config import Settings
from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.crops import Crops, surface
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.features import side_by_side, sizes
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.types import Encoding, LoadedImage, SceneObject, Vector

BOX = (20.0, 10.0, 60.0, 50.0)


class Numbered(Encoder):
    """Tokens that are the mean colour of their patch, the first channel's square beside it."""

    name, fingerprint, patch, width, dim, input_size = "numbered", "numbered@1", 4, 4, 4, 16

    def features(self, images: np.ndarray, layers: list[int]) -> Vector:
        del layers
        side = images.shape[1] // self.patch
        cells = images.reshape(len(images), side, self.patch, side, self.patch, 3).mean((2, 4))
        return np.concatenate([cells, cells[..., :1] ** 2 / 255], -1).astype(np.float32)


def test_a_box_is_stretched_with_a_little_around_it() -> None:
    image, mask = np.zeros((60, 100, 3), np.uint8), np.zeros((60, 100), np.bool_)
    image[10:50, 20:60] = 200
    mask[10:50, 20:40] = True
    part, share = surface(image, mask, BOX, 44)  # 2 pixels on each side
    assert part.shape == (44, 44, 3)
    assert (part[3:-3, 3:-3] == 200).all()
    assert part[0].max() == part[:, 0].max() == 0
    assert share[3:-3, 3:21].min() == 1
    assert share[:, 23:].max() == 0
    wide, _ = surface(image, mask, (20.0, 29.0, 60.0, 31.0), 44)  # stretched, whatever its shape
    assert (wide[10:-10, 10:-10] == 200).all()


@given(st.tuples(st.floats(-5, 99), st.floats(-5, 59), st.floats(0.1, 200), st.floats(0.1, 200)))
def test_every_box_that_holds_a_pixel_has_a_surface(place: tuple[float, float, float, float]) -> None:
    x, y, width, height = place
    box = (max(x, 0.0), max(y, 0.0), max(x, 0.0) + width, max(y, 0.0) + height)
    part, share = surface(np.full((60, 100, 3), 7, np.uint8), np.ones((60, 100), np.bool_), box, 9)
    assert (part == 7).all()
    assert share.min() > 0.999


def test_mean_and_deviation_of_normalised_tokens() -> None:
    """Whatever is read: squares of the two add up to the numbers of a token, as each token is normalised."""
    surfaces = np.random.default_rng(0).integers(0, 256, (3, 36, 36, 3), np.uint8)
    weights = np.zeros((3, 81), np.float32)
    weights[0], weights[1, :40], weights[2, 7] = 1 / 81, 1 / 40, 1
    rows = Numbered().texture(surfaces, weights)
    assert rows.shape == (3, 8)
    np.testing.assert_allclose((rows**2).sum(1), 4, rtol=1e-3)
    tokens = Numbered().features(surfaces, [-9])[1].reshape(81, 4)[:40].astype(np.float64)
    even = (tokens - tokens.mean(1, keepdims=True)) / tokens.std(1, keepdims=True)
    np.testing.assert_allclose(rows[1], [*even.mean(0), *even.std(0)], atol=1e-3)
    np.testing.assert_allclose(rows[2, 4:], 0, atol=1e-3)  # one patch deviates from nothing


def test_it_is_as_long_as_two_means_and_wants_to_be_read() -> None:
    assert sizes(("cls", "patches", "texture"), Numbered()) == [4, 4, 8]
    encoding = Encoding(np.ones((2, 4), np.float32), np.ones((2, 4, 4), np.float32))
    with pytest.raises(ConfigError, match="texture"):
        side_by_side(encoding, ("cls", "texture"))


def test_a_part_that_nothing_was_read_of_is_left_out_of_the_vector() -> None:
    """Such as the texture of a faint object: the rest is what it would be, and fills the vector."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((12, 6), np.float32)
    matrix[:8, ::2], matrix[8:, 1::2] = rng.normal(size=(8, 3)), rng.normal(size=(4, 3))
    lengths = np.array([1, 0.5, 1, 0.5, 1, 0.5], np.float32)
    whitening = Whitening(rng.normal(size=12).astype(np.float32), matrix, np.ones(6, np.float32), "", lengths)
    rows = rng.normal(size=(2, 12)).astype(np.float32)
    rows[1, :8], rows[1, 8:] = rows[0, :8], 0
    clear, faint = whitening(rows)
    np.testing.assert_array_equal(faint[1::2], 0)
    np.testing.assert_allclose(faint[::2], clear[::2] * np.sqrt(1.25), rtol=1e-5)
    np.testing.assert_allclose(whitening(rows[1]), faint, rtol=1e-6)
    whole = replace(whitening, lengths=None)  # one that knows no parts
    np.testing.assert_allclose(whole(rows[1])[::2], faint[::2], rtol=1e-5)
    np.testing.assert_array_equal(whole(rows[1])[1::2], 0)


@pytest.mark.slow
def test_a_faint_object_is_described_without_its_texture(tmp_path: Path) -> None:
    from models import tiny_encoder

    from soir_qdrant.models.encoders.vit import ViTEncoder

    encoder = ViTEncoder(str(tiny_encoder(tmp_path)), input_size=48, dtype="float32")
    settings = Settings().but(
        detector={"kind": "none"},
        segmenter={"kind": "box"},
        vector={"whitening": None},
        crop={"texture_score": 0.3},
    )
    pipeline = Pipeline(settings, encoder=encoder)
    photo = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    objects = [SceneObject(BOX, score=score) for score in (0.9, 0.29, 0.3)]
    crops = pipeline.crops([photo], [objects])
    clear, faint, again = pipeline.features(pipeline.encode(crops))
    np.testing.assert_array_equal(clear, again)
    own = 5 * encoder.width  # CLS and four blocks; the texture comes last
    np.testing.assert_allclose(faint[:own], clear[:own], atol=1e-6)
    assert not faint[own:].any()
    assert clear[own:].any()


@pytest.mark.slow
def test_a_surface_is_the_objects_own(tmp_path: Path) -> None:
    """A thing that is all of its box has the same surface wherever it stands; another print is another surface, though
    shape and mean colour are the same."""
    from models import tiny_encoder

    from soir_qdrant.models.encoders.vit import ViTEncoder

    encoder = ViTEncoder(str(tiny_encoder(tmp_path)), input_size=48, dtype="float32")
    settings = Settings().but(
        detector={"kind": "none"}, segmenter={"kind": "box"}, vector={"whitening": None}
    )
    pipeline = Pipeline(settings, encoder=encoder)
    stripes = np.where(np.arange(40)[:, None, None] % 8 < 4, np.uint8(230), np.uint8(20)) * np.ones(
        (1, 40, 3), np.uint8
    )

    def texture(pixels: np.ndarray, ground: int) -> Vector:
        image = np.full((60, 100, 3), ground, np.uint8)
        image[10:50, 20:60] = pixels
        (row,) = pipeline.texture(pipeline.crops([image], [[SceneObject(BOX)]]))
        return row / np.linalg.norm(row)

    one = texture(stripes, 0)
    there, other = texture(stripes, 90), texture(stripes.transpose(1, 0, 2), 0)
    assert one @ there > one @ other
    scene = pipeline.scenes([LoadedImage(np.full((60, 100, 3), 9, np.uint8), "0", None, "0" * 64)])[0]
    assert scene.object_vectors.shape == (1, 7 * encoder.width)
    photo = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    expected = pipeline.query(photo, box=BOX)
    np.testing.assert_array_equal(
        pipeline.query(photo, box=np.array(BOX)), expected
    )  # as detectors give them
    with pytest.raises(ConfigError, match="without surfaces"):
        pipeline.texture(Crops(np.zeros((1, 48, 48, 3), np.uint8), np.ones((1, 48, 48), np.float32)))


@pytest.mark.slow
def test_nothing_has_no_texture_and_many_are_read_in_batches(tmp_path: Path) -> None:
    from models import tiny_encoder

    from soir_qdrant.models.encoders.vit import ViTEncoder

    encoder = ViTEncoder(str(tiny_encoder(tmp_path)), input_size=48, dtype="float32")
    settings = Settings().but(encoder={"batch": 2}, vector={"whitening": None})
    pipeline, side = Pipeline(settings, encoder=encoder), encoder.texture_size
    rng = np.random.default_rng(0)
    pixels, surfaces = (rng.integers(0, 256, (5, n, n, 3), np.uint8) for n in (48, side))
    crops = Crops(pixels, np.ones((5, 48, 48), np.float32), surfaces, np.ones((5, side, side), np.float32))
    expected = encoder.texture(surfaces, np.full((5, 81), 1 / 81, np.float32))
    np.testing.assert_allclose(pipeline.encode(crops).texture, expected, atol=1e-5)
    none = pipeline.encode(pipeline.crops([np.zeros((60, 100, 3), np.uint8)], [[]]))
    assert none.texture is not None
    assert none.texture.shape == (0, 2 * encoder.width)
