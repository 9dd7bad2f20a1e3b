"""Rooms to train on: what a catalogue says of its pieces, where they stand, and what a rendered room shows."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.bench import load
from soir_qdrant.lab.needlebench import rooms
from soir_qdrant.lab.needlebench.furnish import SIZES, Furnisher, meets
from soir_qdrant.lab.needlebench.furniture import PROPERTIES, Piece, Stock, sized, stock

CUBE = """mtllib cube.mtl
usemtl paint
{corners}
f 1 2 4 3
f 5 7 8 6
f 1 5 6 2
f 3 4 8 7
f 1 3 7 5
f 2 6 8 4
""".format(corners="\n".join(f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)))
KINDS = {  # name, category, width, depth, height and elevation in centimetres
    "table": ("Kitchen", 120, 70, 75, 0),
    "cup": ("Kitchen", 12, 9, 10, 0),
    "pendant": ("Lights", 30, 30, 60, 180),
    "picture": ("Miscellaneous", 60, 4, 45, 120),
}


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory):
    """A folder of one catalogue: seventy of each kind, all cubes, and entries that no room can hold."""
    folder = tmp_path_factory.mktemp("furniture")
    place = folder / "Own"
    place.mkdir()
    lines = ["# made for a test", "id=Own"]
    for i, (name, (category, *sides, elevation)) in enumerate(KINDS.items()):
        for j in range(70):
            number = 70 * i + j + 1
            (place / f"{name}{j}.obj").write_text(CUBE)
            lines += [f"name#{number}={name}", f"category#{number}={category}"]
            lines += [f"model#{number}=/{name}{j}.obj", f"elevation#{number}={elevation}"]
            lines += [
                f"{key}#{number}={side}"
                for key, side in zip(("width", "depth", "height"), sides, strict=True)
            ]
    lines += [
        "name#999=tower",
        "category#999=Kitchen",
        "model#999=/cup0.obj",
        "width#999=9000",
        "depth#999=1",
    ]
    lines += ["height#999=1", "name#1000=a car", "category#1000=Vehicles", "model#1000=/cup0.obj"]
    (place / PROPERTIES).write_text("\n".join(lines), encoding="latin-1")
    (place / "cube.mtl").write_text("newmtl paint\nKd 0.8 0.3 0.2\n")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(place / "carpet.jpg", quality=95)
    return folder


def test_a_catalogue_says_what_its_pieces_are(catalogues):
    pieces = stock(catalogues)
    assert {piece.name for piece in pieces.floor} == {"table"}
    assert {piece.name for piece in pieces.small} == {"cup"}
    assert {piece.name for piece in pieces.hanging} == {"pendant"}
    assert {piece.name for piece in pieces.wall} == {"picture"}
    assert pieces.floor[0].size == (1.2, 0.7, 0.75)
    assert [file.name for file in pieces.textures] == ["carpet.jpg"]


def test_a_folder_without_furniture_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match="textures of Sweet Home 3D's furniture are too few"):
            rooms.generate(tmp_path / "out", folder)


class Floor:
    """A world of upright blocks, which says where they are."""

    def __init__(self):
        self.room, self.blocks = None, []

    def build(self, room):
        self.room = room

    def put(self, piece, shade, place, turn):
        self.blocks.append((piece, shade, place, turn))
        return True

    def top(self, x, y, below):
        return next((piece.size[2] for piece, _, place, _ in self.blocks if place[2] == 0), None)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_furniture_stands_in_its_room_and_not_in_each_other(seed):
    world, pieces = Floor(), Stock(*([_piece(kind)] * 70 for kind in KINDS), textures=["carpet.jpg"])
    furnisher = Furnisher(world, pieces, random.Random(seed))
    view = furnisher.room()
    width, depth, height = world.room.size
    taken = furnisher.taken
    assert taken
    for i, place in enumerate(taken):
        assert place[0] >= -0.021
        assert place[1] <= width + 0.021
        assert place[3] <= depth + 0.021
        inner = (place[0] + 0.02, place[1] - 0.02, place[2] + 0.02, place[3] - 0.02)
        assert not meets(inner, taken[:i])
    for piece, shade, place, _ in world.blocks:
        assert shade in (0, 1)
        assert 0 <= place[0] <= width
        assert 0 <= place[1] <= depth
        assert place[2] + piece.size[2] <= height + 0.5
        if piece.name == "cup":
            assert place[2] == pytest.approx(0.752)
        if piece.name == "pendant":
            assert place[2] + piece.size[2] == pytest.approx(height)
    assert view.size in SIZES


def _piece(kind):
    category, width, depth, height, elevation = KINDS[kind]
    return Piece(kind, kind, category, None, (width / 100, depth / 100, height / 100), elevation / 100)


def test_a_model_gets_the_size_that_its_catalogue_says():
    cube = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    points = sized(cube, _piece("table"))
    assert np.ptp(points, axis=0) == pytest.approx((1.2, 0.7, 0.75))
    assert points[:, 2].min() == 0
    assert points[:, :2].mean(0) == pytest.approx((0, 0), abs=1e-6)


def test_a_model_that_lies_is_put_upright():
    plank = np.array([(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)], np.float32)
    lying = Piece("plank", "plank", "Kitchen", None, (1, 3, 2), 0, (1, 0, 0, 0, 0, -1, 0, 1, 0))
    points = sized(plank, lying)
    assert np.ptp(points, axis=0) == pytest.approx((1, 3, 2))
    corner = points[np.argmax(plank.sum(1))]
    assert corner == pytest.approx((0.5, -1.5, 2))


def test_a_model_of_other_proportions_keeps_its_own():
    cube = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    points = sized(cube, Piece("post", "post", "Kitchen", None, (0.1, 0.1, 3), 0))
    assert np.ptp(points, axis=0) == pytest.approx([0.03 ** (1 / 3)] * 3)


def test_a_room_is_labelled_to_the_pixel(catalogues, tmp_path):
    pytest.importorskip("bpy", reason="Blender's module is not installed: pip install 'soir-qdrant[rooms]'")
    folder = rooms.generate(tmp_path / "rooms", catalogues, scenes=2, seed=3, progress=False)
    bench = load(folder)
    assert len(bench.gallery) == 2
    assert {item.name for entry in bench.gallery for item in entry.objects} <= set(KINDS)
    for entry in bench.gallery:
        assert Image.open(entry.file).size in SIZES
        for item, mask in zip(entry.objects, entry.masks(), strict=True):
            rows, columns = np.nonzero(mask)
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    with Image.open(bench.queries[0].file) as image:
        assert image.mode == "RGBA"
        alpha = np.asarray(image)[..., 3]
    assert alpha.max() == 255
    assert (alpha == 0).any()
    before = (folder / "annotations.json").stat().st_mtime_ns
    assert rooms.generate(folder, catalogues, scenes=2, seed=3) == folder
    assert (folder / "annotations.json").stat().st_mtime_ns == before
