"""What is sent of an image to a server that describes it whole: what shows there the pixels that are here."""

import io

import numpy as np
import pytest
from PIL import Image

from soir_qdrant.images import decode, load, read
from soir_qdrant.serving.scene import encoded

PIXELS = np.kron(
    np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8), np.ones((20, 20, 1), np.uint8)
)


def file_of(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind)
    return file.getvalue()


def same_there(image) -> bool:
    return bool((load(encoded(image).tobytes()).rgb == image.rgb).all())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_every_server_reads_travels_as_it_is(kind):
    data = file_of(kind)
    assert encoded(load(data)).tobytes() == data


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "JPEG2000"])
def test_a_file_that_a_server_may_not_read_travels_as_png(kind):
    image = load(file_of(kind))
    assert encoded(image).tobytes().startswith(b"\x89PNG")
    assert same_there(image)


def test_an_image_that_was_decoded_at_a_reduced_size_is_described_at_that_size():
    image = decode(read(file_of("JPEG")), enough=200 * 150)
    assert (image.width, image.height) == (200, 150)
    assert same_there(image)


def test_pixels_without_a_file_travel_as_png():
    assert same_there(load(PIXELS))
