"""NeedleBench: what is on disk, that it repeats, that the splits share nothing, what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.bench import Bench, load, read_mask
from soir_qdrant.lab.needlebench import cast, decode, needle, render, sources
from soir_qdrant.lab.needlebench.compose import FLAT, LARGEST, MIN_VISIBLE, SMALLEST, Scene, resize_area
from soir_qdrant.lab.needlebench.invent import Inventor
from soir_qdrant.lab.needlebench.needle import generate
from soir_qdrant.lab.needlebench.sources import DATA, Sources

SCENES, TARGETS = 8, 6


@pytest.fixture(scope="module")
def pack() -> Sources:
    return Sources.shipped()


@pytest.fixture(scope="module")
def flat(tmp_path_factory, pack) -> Bench:
    out = tmp_path_factory.mktemp("bench") / "dev-2d"
    made = generate(
        out, split="dev", track="2d", scenes=SCENES, targets=TARGETS, sources=pack, progress=False
    )
    return load(made)


@pytest.fixture(scope="module")
def solid(tmp_path_factory, pack) -> Bench:
    pytest.importorskip("pybullet")
    out = tmp_path_factory.mktemp("bench") / "test-3d"
    return load(generate(out, split="test", track="3d", scenes=5, targets=3, sources=pack, progress=False))


@pytest.fixture(params=["flat", "solid"])
def bench(request) -> Bench:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_scenes_are_jpegs_of_the_stated_size(bench):
    for image in bench.gallery:
        with Image.open(image.file) as opened:
            assert (opened.format, opened.size, opened.mode) == ("JPEG", (1024, 768), "RGB")
        assert 6 <= len(image.objects) <= 10


@pytest.mark.slow
def test_boxes_are_tight_around_the_mask_and_of_the_stated_area(bench):
    for image in bench.gallery:
        masks = image.masks()
        assert image.boxes.dtype == np.float32
        assert image.boxes.shape == (len(image.objects), 4)
        for mask, box in zip(masks, image.boxes, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert SMALLEST <= mask.mean() <= LARGEST


@pytest.mark.slow
def test_each_target_is_in_three_to_five_scenes_and_once_in_each(bench):
    instances = [query.instance for query in bench.queries]
    assert len(set(instances)) == len(instances)
    for query in bench.queries:
        assert 3 <= len(bench.relevant(query)) <= 5
    for image in bench.gallery:
        assert len(set(image.instances)) == len(image.instances)


@pytest.mark.slow
def test_look_alikes_are_in_the_gallery(solid):
    asked = {query.instance for query in solid.queries}
    shown = {name for image in solid.gallery for name in image.instances} - asked
    mesh, texture = ({name.split("-t")[part] for name in shown} for part in (0, 1))
    assert all(name.split("-t")[0] in mesh and name.split("-t")[1] in texture for name in asked)


@pytest.mark.slow
def test_half_of_the_queries_are_cut_outs(bench):
    modes = [Image.open(query.file).mode for query in bench.queries]
    assert modes.count("RGBA") == len(modes) // 2
    assert set(modes) <= {"RGB", "RGBA"}
    for query in bench.queries:
        pixels = np.asarray(Image.open(query.file))
        assert 100 < max(pixels.shape[:2]) < 320
        if pixels.shape[2] == 4:
            assert 0.1 < (pixels[..., 3] > 127).mean() < 0.95


@pytest.mark.parametrize(("share", "cutouts"), [(0.0, 0), (1.0, 10), (0.5, 5), (0.3, 3)])
def test_share_of_cut_outs_is_exact(share, cutouts):
    assert sum(needle._is_cutout(i, share) for i in range(10)) == cutouts


@pytest.mark.slow
def test_same_arguments_give_the_same_pixels(flat, tmp_path, pack):
    again = load(
        generate(
            tmp_path / "again",
            split="dev",
            track="2d",
            scenes=SCENES,
            targets=TARGETS,
            sources=pack,
            progress=False,
        )
    )
    assert_same(flat, again)


@pytest.mark.slow
def test_same_arguments_give_the_same_renders(solid, tmp_path, pack):
    again = generate(
        tmp_path / "again", split="test", track="3d", scenes=5, targets=3, sources=pack, progress=False
    )
    assert_same(solid, load(again))


def assert_same(one: Bench, two: Bench) -> None:
    name = "annotations.json"
    assert (one.root / name).read_text() == (two.root / name).read_text()
    files = sorted(p.relative_to(one.root) for p in one.root.rglob("*.*") if p.suffix in {".jpg", ".png"})
    assert len(files) == 2 * len(one.gallery) + len(one.queries)
    for file in files:
        a, b = (np.asarray(Image.open(bench.root / file)) for bench in (one, two))
        assert np.array_equal(a, b), file


@pytest.mark.slow
def test_another_seed_gives_other_scenes(flat, tmp_path, pack):
    other = generate(
        tmp_path / "s",
        split="dev",
        track="2d",
        scenes=SCENES,
        targets=TARGETS,
        seed=1,
        sources=pack,
        progress=False,
    )
    a, b = (np.asarray(Image.open(root / "gallery" / "0000.jpg")) for root in (flat.root, other))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("name", ["catalog.json", "pack.json"])
def test_splits_share_no_picture(name):
    data = json.loads((DATA / name).read_text())

    def pictures(half):
        groups = [half["grounds"]] + [e for s in sources._KINDS for e in half.get(s, {}).values()]
        return [entry for group in groups for entry in group]

    dev, test = pictures(data["dev"]), pictures(data["test"])
    assert len(set(dev)) == len(dev)
    assert len(set(test)) == len(test)
    assert not set(dev) & set(test)


def test_splits_share_no_mesh():
    pytest.importorskip("pybullet")
    assert not set(render.meshes("dev")) & set(render.meshes("test"))


def test_every_shipped_picture_opens_and_is_listed(pack):
    listed = (DATA / "LICENSES.md").read_text()
    for split in (pack.dev, pack.test):
        for cutout in split.cutouts:
            assert cutout.read().shape[2] == 4
            assert f"`{cutout.path.relative_to(DATA).as_posix()}`" in listed
        for ground in split.grounds:
            assert ground.read().shape[2] == 3
            assert f"`{ground.path.relative_to(DATA).as_posix()}`" in listed
    used = {x.path for s in (pack.dev, pack.test) for x in (*s.cutouts, *s.grounds)}
    assert used == set(DATA.rglob("*.webp"))


@pytest.mark.slow
def test_a_complete_folder_is_left_alone_and_another_recipe_is_refused(flat, pack):
    before = (flat.root / "gallery" / "0000.jpg").stat().st_mtime_ns
    arguments = {"split": "dev", "track": "2d", "scenes": SCENES, "sources": pack, "progress": False}
    generate(flat.root, targets=TARGETS, **arguments)
    assert (flat.root / "gallery" / "0000.jpg").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="other arguments"):
        generate(flat.root, targets=TARGETS - 1, **arguments)


@pytest.mark.slow
def test_an_interrupted_run_is_not_complete_and_starts_over(tmp_path, pack, monkeypatch):
    arguments = {"split": "dev", "track": "2d", "scenes": 5, "targets": 2, "sources": pack, "progress": False}

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(needle, "_write_query", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "b", **arguments)
    (tmp_path / "b" / "gallery" / "9999.jpg").write_bytes(b"left over")
    with pytest.raises(DatasetError, match="interrupted"):
        load(tmp_path / "b")
    assert len(load(generate(tmp_path / "b", **arguments)).gallery) == 5
    assert not (tmp_path / "b" / "gallery" / "9999.jpg").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "train"}, "split 'train'"),
        ({"track": "4d"}, "track '4d'"),
        ({"targets": 100}, "at least 125 scenes"),
        ({"targets": 0}, "0 targets"),
        ({"cutout_queries": 1.5}, "0..1"),
        ({"scenes": 300, "targets": 200}, "cut-outs"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, pack, changed, message):
    arguments = {"split": "dev", "track": "2d", "scenes": 10, "targets": 2, "sources": pack, **changed}
    with pytest.raises(DatasetError, match=message):
        generate(tmp_path / "b", progress=False, **arguments)


def test_a_folder_of_something_else_is_refused(tmp_path, pack):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        generate(tmp_path, split="dev", track="2d", scenes=5, targets=1, sources=pack, progress=False)
    assert (tmp_path / "diary.txt").read_text() == "mine"


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A hand-written benchmark of one scene: the format as documented, not as generated."""
    root = tmp_path / "tiny"
    for part in ("gallery", "masks", "queries"):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (32, 24)).save(root / "gallery" / "a.jpg")
    mask = np.zeros((24, 32), np.uint8)
    mask[4:8, 6:12] = 1
    Image.fromarray(mask).save(root / "masks" / "a.png")
    Image.new("RGB", (8, 8)).save(root / "queries" / "q.png")
    data = {
        "gallery": [
            {
                "file": "gallery/a.jpg",
                "mask": "masks/a.png",
                "objects": [{"instance": "x", "box": [6, 4, 12, 8]}],
            }
        ],
        "queries": [{"file": "queries/q.png", "instance": "x"}],
    }
    (root / "annotations.json").write_text(json.dumps(data))
    return root


def test_reader_gives_absolute_paths_and_values(tiny):
    bench = load(tiny)
    scene = bench.gallery[0]
    assert scene.file.is_absolute()
    assert scene.mask is not None
    assert scene.objects[0].box == (6, 4, 12, 8)
    assert scene.masks()[0].sum() == 24
    assert bench.relevant(bench.queries[0]) == [0]


def put(path, value):
    """A change of annotations.json: the value at a path of keys."""

    def change(root: Path) -> None:
        file = root / "annotations.json"
        data = json.loads(file.read_text())
        at = data
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        file.write_text(json.dumps(data))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda root: (root / "annotations.json").unlink(), "no annotations.json"),
        (lambda root: (root / "annotations.json").write_text("{"), "not readable as JSON"),
        (lambda root: (root / "annotations.json").write_text("[]"), "top level"),
        (lambda root: (root / "gallery" / "a.jpg").unlink(), r"a\.jpg: missing"),
        (lambda root: (root / "queries" / "q.png").unlink(), r"q\.png: missing"),
        (put(["gallery"], []), "gallery is empty"),
        (put(["gallery"], None), "needs a list 'gallery'"),
        (put(["gallery", 0, "mask"], "masks/b.png"), r"b\.png: missing"),
        (put(["gallery", 0, "file"], "../a.jpg"), "leads out"),
        (put(["gallery", 0, "file"], 3), "must be a file name"),
        (put(["gallery", 0, "objects", 0, "box"], [6, 4, 6, 8]), r"objects\[0\]\.box must be x0 < x1"),
        (put(["gallery", 0, "objects", 0, "box"], [6, 4, 8]), "four numbers"),
        (put(["gallery", 0, "objects", 0, "box"], [6, 4, float("nan"), 8]), "four numbers"),
        (put(["gallery", 0, "objects", 0, "instance"], 5), "instance must be text or null"),
        (put(["gallery", 0, "objects", 0, "name"], 5), "name must be text or null"),
        (put(["gallery", 0, "exhaustive"], "no"), "exhaustive must be true or false"),
        (put(["queries", 0, "instance"], "y"), "no scene holds 'y'"),
        (put(["queries", 0, "instance"], None), "instance must be text"),
    ],
)
def test_reader_names_the_file_and_the_problem(tiny, damage, message):
    damage(tiny)
    with pytest.raises(DatasetError, match=message) as caught:
        load(tiny)
    assert str(tiny) in str(caught.value)


def test_distractors_may_have_no_name_and_a_scene_no_mask(tiny):
    put(["gallery", 0, "mask"], None)(tiny)
    put(["gallery", 0, "objects"], [{"instance": None, "box": [0, 0, 1, 1]}])(tiny)
    put(["queries"], [])(tiny)
    scene = load(tiny).gallery[0]
    assert scene.masks() is None
    assert scene.instances == [None]


def test_masks_that_do_not_fit_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 3, np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", 3).shape == (4, 4)
    with pytest.raises(DatasetError, match="value 3"):
        read_mask(tmp_path / "m.png", 2)
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    with pytest.raises(DatasetError, match="one channel"):
        read_mask(tmp_path / "rgb.png", 2)
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(DatasetError, match="not readable"):
        read_mask(tmp_path / "bad.png", 2)


def test_covered_objects_stay_mostly_visible(pack):
    rng = np.random.default_rng(0)
    scene = Scene(np.zeros((768, 1024, 3), np.uint8))
    square = np.full((100, 100, 4), 255, np.uint8)
    scene.paste(square, 100, 100, rng)
    assert not scene.fits(square, 150, 100, None)  # touches another
    assert not scene.fits(square, 150, 100, 0)  # hides half of it
    assert scene.fits(square, 170, 100, 0)
    assert not scene.fits(square, 300, 100, 0)  # covers nothing of it
    assert not scene.fits(square, 980, 100, None)  # sticks out
    scene.paste(square, 170, 100, rng)
    assert (scene.ids == 1).sum() == 7000 >= MIN_VISIBLE * 10_000
    assert scene.box(0) == (100, 100, 170, 200)


def test_resize_meets_the_area():
    rng = np.random.default_rng(0)
    disc = np.zeros((200, 200, 4), np.uint8)
    cv2.circle(disc, (100, 100), 80, (200, 10, 10, 255), -1)
    for area in (500, 5_000, 40_000):
        small = resize_area(disc, area, FLAT, rng)
        assert (small[..., 3] > 127).sum() == pytest.approx(area, rel=0.03)
        assert abs(int(small[small[..., 3] > 200][:, 0].mean()) - 200) <= 2  # no dark rim comes in


def test_turns_stay_within_the_stated_angles():
    rng = np.random.default_rng(0)
    for _ in range(50):
        turn = render.random_turn(rng)
        angle = np.rad2deg(np.arccos((np.trace(turn) - 1) / 2))
        assert 9.99 <= angle <= 45.01
        assert np.allclose(turn @ turn.T, np.eye(3))


def test_meshes_are_brought_to_unit_size(tmp_path):
    (tmp_path / "m.obj").write_text("v 0 0 0\nv 10 0 0\nv 10 10 0\nv 0 10 4\nf 1 2 3 4\n")
    lines = render.wrap_mesh(tmp_path / "m.obj").splitlines()
    corners = np.array([[float(x) for x in line.split()[1:]] for line in lines if line.startswith("v ")])
    assert np.linalg.norm(corners, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert sum(line.startswith("f ") for line in lines) == 2
    (tmp_path / "empty.obj").write_text("")
    with pytest.raises(DatasetError, match="without vertices"):
        render.wrap_mesh(tmp_path / "empty.obj")


def test_missing_sources_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path))
    with pytest.raises(DatasetError, match=r"Sources\.full\(fetch=True\)"):
        Sources.full()
    monkeypatch.setattr(sources.shutil, "which", lambda _: None)
    with pytest.raises(DatasetError, match="npm is not installed"):
        sources.locate("emoji", fetch=True)
    with pytest.raises(DatasetError, match="apt-get is not installed"):
        sources.locate("clipart", fetch=True)
    with pytest.raises(DatasetError, match="no picture source 'moon'"):
        sources.locate("moon")
    assert list((tmp_path / "sources").iterdir()) == []  # nothing half done is left


def test_fetched_sources_come_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("SOIR_CACHE", str(tmp_path))

    def get(_, scratch):
        (scratch / "unpacked" / "inner").mkdir()

    monkeypatch.setitem(sources._PACKAGES, "clipart", ("p", "p", "inner", get))
    assert sources.locate("clipart", fetch=True) == tmp_path / "sources" / "p" / "inner"
    assert sources.locate("clipart").is_dir()
    monkeypatch.setitem(sources._PACKAGES, "clipart", ("p", "q", "other", get))
    with pytest.raises(DatasetError, match="has no other"):
        sources.locate("clipart", fetch=True)


def test_qt_resources_are_read_by_name(tmp_path):
    def name(text):
        return struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")

    names = name("pictures") + name("a.txt")
    second = len(name("pictures"))
    tree = struct.pack(">IHII", 0, 2, 1, 1)
    tree += struct.pack(">IHII", 0, 2, 1, 2)
    tree += struct.pack(">IHHHI", second, 0, 0, 0, 0)
    blob = struct.pack(">I", 5) + b"hello"
    head = struct.pack(">4sIIII", b"qres", 1, 20, 20 + len(tree), 20 + len(tree) + len(blob))
    (tmp_path / "x.rcc").write_bytes(head + tree + blob + names)
    assert decode.read_bytes(tmp_path / "x.rcc" / "pictures" / "a.txt") == b"hello"
    with pytest.raises(DatasetError, match="holds no"):
        decode.read_bytes(tmp_path / "x.rcc" / "b.txt")
    (tmp_path / "y.rcc").write_bytes(b"something else, longer than a header")
    with pytest.raises(DatasetError, match="not a Qt resource"):
        decode.read_bytes(tmp_path / "y.rcc" / "b.txt")


def test_objects_are_cut_out_of_photographs():
    photo = np.full((120, 160, 3), 240, np.uint8)
    cv2.circle(photo, (80, 60), 30, (180, 40, 30), -1)
    photo = np.clip(photo + np.random.default_rng(0).normal(0, 4, photo.shape), 0, 255).astype(np.uint8)
    cut = decode.cut_out(photo)
    assert (cut[..., 3] > 127).sum() == pytest.approx(np.pi * 30**2, rel=0.08)
    with pytest.raises(DatasetError, match="no clear foreground"):
        decode.cut_out(np.full((60, 60, 3), 200, np.uint8))


def test_too_many_solids_are_refused(monkeypatch):
    with pytest.raises(DatasetError, match="meshes"):
        cast._solid_cast(None, [Path("a.obj")] * 3, 1, np.random.default_rng(0))


def test_a_mesh_without_numbers_is_told_apart(tmp_path):
    good, bad = tmp_path / "good.obj", tmp_path / "bad.obj"
    good.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    bad.write_text("v nan nan nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert render.is_whole(good)
    assert not render.is_whole(bad)


def inventor(pack: Sources, seed: int) -> Inventor:
    drawings = [cutout.path for cutout in pack.dev.cutouts if cutout.kind != "photo"]
    return Inventor(drawings, [pack.dev.grounds[0].read()], np.random.default_rng(seed))


def test_invented_things_of_a_family_share_their_silhouette_alone(pack):
    draws = inventor(pack, 0)
    outline = draws.outline()
    one, other = draws.thing(outline), draws.thing(outline)
    assert np.array_equal(one[..., 3], other[..., 3])
    assert np.abs(one[..., :3].astype(int) - other[..., :3])[one[..., 3] > 127].mean() > 5


def test_a_drawing_too_large_to_open_is_passed_over(pack, tmp_path, monkeypatch):
    huge = tmp_path / "huge.png"
    Image.new("RGBA", (3000, 3000)).save(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    draws = inventor(pack, 0)
    draws = Inventor([huge, *draws.drawings], draws.photos, np.random.default_rng(0))
    with pytest.raises(DatasetError, match=r"huge\.png: not readable as an image"):
        decode.read_rgba(huge)
    assert all(draws.outline().shape[2] == 4 for _ in range(20))


def test_invented_pictures_repeat(pack):
    pictures = [(draws := inventor(pack, seed)).thing(draws.outline()) for seed in (1, 1, 2)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert inventor(pack, 3).background().shape == (900, 1200, 3)


@pytest.mark.slow
def test_crowded_scenes_hold_targets_alone_each_in_many(pack, tmp_path):
    """As in VoxDet: the same things again and again, many right answers."""
    folder = needle.generate(
        tmp_path / "c",
        split="dev",
        track="2d",
        scenes=8,
        targets=10,
        sources=pack,
        crowded=True,
        progress=False,
    )
    bench = load(folder)
    wanted = {query.instance for query in bench.queries}
    assert all(6 <= len(image.objects) <= 10 and set(image.instances) <= wanted for image in bench.gallery)
    assert np.mean([len(bench.relevant(query)) for query in bench.queries]) > 5
    with pytest.raises(DatasetError, match="crowded scenes hold up to 10"):
        needle.generate(
            tmp_path / "d", split="dev", track="2d", scenes=8, targets=9, sources=pack, crowded=True
        )
