"""Evaluation, calibration and the command line on a small real benchmark with the real pipeline."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from soir_qdrant.cli.main import app
from soir_qdrant.errors import DatasetError, ImageError
from soir_qdrant.lab.calibrate import Moments
from soir_qdrant.lab.evaluate.compare import DEFAULT_ROWS, evaluate
from soir_qdrant.lab.evaluate.compare import run as evaluation
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.distractors import among
from soir_qdrant.lab.evaluate.metrics import image_size
from soir_qdrant.lab.evaluate.plain_rows import OF_PAPER
from soir_qdrant.lab.evaluate.published import SETS
from soir_qdrant.lab.needlebench.needle import generate
from soir_qdrant.lab.needlebench.sources import Sources


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "small"
    return generate(
        folder, split="test", track="2d", scenes=8, targets=4, sources=Sources.shipped(), progress=False
    )


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def few(bench, tmp_path_factory):
    """Three of its scenes, and a query for a thing in some of them."""
    folder = shutil.copytree(bench, tmp_path_factory.mktemp("bench") / "few")
    labels = json.loads((folder / "annotations.json").read_text())
    labels["gallery"] = labels["gallery"][:3]
    shown = [{item["instance"] for item in entry["objects"]} for entry in labels["gallery"]]
    counts = [sum(query["instance"] in names for names in shown) for query in labels["queries"]]
    labels["queries"] = [q for q, count in zip(labels["queries"], counts, strict=True) if 0 < count < 3][:1]
    (folder / "annotations.json").write_text(json.dumps(labels))
    return folder


@pytest.mark.slow
def test_given_their_objects_small_things_are_found_better_than_by_the_whole_picture(bench, tmp_path):
    file = tmp_path / "result.json"
    output = run("evaluate", bench, "--json", file)
    results = json.loads(file.read_text())
    assert list(results) == [*DEFAULT_ROWS, "ingest"]
    assert all(set(results[name]) >= {"mAP", "R@1", "R@10"} for name in DEFAULT_ROWS)
    assert results["global-untuned"] != results["global"]
    assert results["default"]["mAP"] > results["global"]["mAP"] + 10
    assert results["objects"]["mAP"] >= 70
    assert results["rerank-objects"]["mAP"] == results["objects"]["mAP"]  # all 8 are candidates
    assert results["rerank-codes"]["mAP"] > results["default"]["mAP"] - 10
    for name in ("default", "rerank-objects", "rerank-codes"):
        assert 0.5 < results[name]["localised"] <= 1
    assert "calibrated" in output


@pytest.mark.slow
def test_rerankers_that_open_images_are_measured_where_they_are_asked_for(few):
    results = evaluate(load(few), rows=("default", "rerank-image", "q-perturbation"))
    for name in ("rerank-image", "q-perturbation"):
        assert name not in DEFAULT_ROWS
        assert results[name]["mAP"] >= results["default"]["mAP"]
        assert 0.5 < results[name]["localised"] <= 1
        assert results[name]["ms_per_candidate"] > 0


@pytest.mark.slow
def test_objects_are_detected_and_too_few_make_no_whitening(few, tmp_path):
    file, white = tmp_path / "result.json", tmp_path / "white.safetensors"
    run("evaluate", few, "--objects", "detected", "--rows", "default,chance", "--json", file)
    results = json.loads(file.read_text())
    assert 0.3 < results["detector"]["recall@0.5"] <= 1
    assert results["detector"]["boxes"] <= 100
    assert results["default"]["mAP"] > results["chance"]["mAP"]
    done = CliRunner().invoke(app, ["calibrate", str(few), "--out", str(white)])
    assert "at least 200" in str(done.exception)
    assert not white.exists()


def test_a_search_by_the_command_and_its_pages(folder, tiny_settings, tmp_path):
    """Of small random models, named by a profile."""
    profile, db = tmp_path / "tiny.json", tmp_path / "db"
    profile.write_text(tiny_settings.model_dump_json())
    place = ("--path", db, "--profile", profile)
    files = sorted(folder.rglob("[0-3].png"))
    run("ingest", *files, *place)
    hits = json.loads(run("search", files[0], *place, "--limit", 3, "--json"))
    assert len(hits) == 3
    assert hits[0]["box"] is not None
    about = json.loads(run("info", *place, "--json"))
    assert about["collections"]["images"]["points"] == 4

    page, sheet = tmp_path / "found.html", tmp_path / "found.png"
    run("search", files[0], *place, "--rerank", "codes", "--save-html", page, "--save-png", sheet)
    assert page.read_text().count("<img") == 1 + 4 + 4  # the query, its hits, heat maps of the first
    assert np.asarray(Image.open(sheet)).std() > 10
    with pytest.raises(ImageError, match=r"name a \.png or \.jpg"):
        CliRunner().invoke(
            app,
            ["search", str(files[0]), *map(str, place), "--save-png", str(tmp_path / "a.xyz")],
            catch_exceptions=False,
        )


@pytest.mark.slow
def test_the_heat_is_on_the_thing(bench):
    """Given its objects, the heat map of a right hit is hottest on the object that was searched for."""
    from soir_qdrant import Pipeline, SoirIngestor, SoirSearcher
    from soir_qdrant.lab.evaluate.collect import labelled

    client, pipeline, labels = QdrantClient(":memory:"), Pipeline(), load(bench)
    chosen = sorted({labels.relevant(query)[0] for query in labels.queries})  # one image of each thing
    SoirIngestor(client, pipeline=pipeline).add(
        [labels.gallery[i].file for i in chosen],
        ids=chosen,
        objects=[labelled(labels.gallery[i]) for i in chosen],
    )
    searcher, hot = SoirSearcher(client, pipeline=pipeline), []
    for query in labels.queries:
        hit = next(h for h in searcher.search(query.file) if h.id in labels.relevant(query))
        weights = searcher.heat(query.file, hit)
        (x0, y0, x1, y1), box = (
            hit.box,
            next(o.box for o in labels.gallery[hit.id].objects if o.instance == query.instance),
        )
        y, x = np.unravel_index(weights.argmax(), weights.shape)
        assert 0 <= weights.min() <= weights.max() <= 1
        hot.append(box[0] <= x < box[2] and box[1] <= y < box[3])
    assert sum(hot) >= 3
    only = models.Filter(must=[models.HasIdCondition(has_id=[hit.id])])
    (masked,) = searcher.search(query.file, with_masks=True, filter=only)
    assert masked.mask.shape == weights.shape
    assert masked.mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].sum() == masked.mask.sum() > 0


def test_running_moments_are_those_of_all_rows():
    x = np.random.default_rng(0).normal(size=(50, 6)) + 3
    moments = Moments()
    for part in np.split(x, [7, 30]):
        moments.add(part)
    assert np.allclose(moments.mean, x.mean(0))
    assert np.allclose(moments.covariance, np.cov(x, rowvar=False))


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(file)


def published(folder):
    """The authors' file: tuples of NumPy integers, paths of another machine, a picture of another part."""
    for name in ("test/scene.jpg", "test_video/mug_3/rgb/0.jpg", "P2/other.jpg"):
        picture(folder / name)
    i = np.int64
    held = {
        "/far/away/test/scene.jpg": {
            "is_query": False,
            "ins": [3, 5],
            "bbox": [(i(1), i(2), i(11), i(22)), (30.0, 4.0, 40.5, 20.0)],
            "mask": [],
            "set": "RoboTools",
        },
        "/far/away/test_video/mug_3/rgb/0.jpg": {
            "is_query": True,
            "ins": 3,
            "bbox": (i(5), i(5), i(50), i(40)),
            "mask": {"counts": [1, 2], "size": [48, 64]},
            "set": "RoboTools",
        },
        "/far/away/P2/other.jpg": {"is_query": False, "ins": [3], "bbox": [(0, 0, 9, 9)], "set": "OWID"},
    }
    torch.save(held, folder / "anns.pt")
    return folder


def test_voxdet_is_read_as_its_authors_write_it(tmp_path):
    bench = load(published(tmp_path), "voxdet")
    assert [image.file.name for image in bench.gallery] == ["scene.jpg"]
    assert bench.gallery[0].objects[0].box == (1, 2, 11, 22)
    assert bench.gallery[0].instances == ["3", "5"]
    assert bench.queries[0].box == (5, 5, 50, 40)
    assert bench.relevant(bench.queries[0]) == [0]


@pytest.mark.parametrize("layout", ["instre", "permir"])
def test_sets_of_one_object_a_picture_are_read_from_the_same_layout(layout, tmp_path):
    for name in ("a.jpg", "b.jpg", "q.jpg", "alone.jpg"):
        picture(tmp_path / name)
    held = {
        "a.jpg": {"is_query": False, "ins": 0, "bbox": [10, 10, 20, 20], "obj_name": "chair"},
        "b.jpg": {"is_query": False, "ins": 1, "bbox": None},
        "q.jpg": {"is_query": True, "ins": 0, "bbox": [0, 0, 64, 48]},
        "alone.jpg": {"is_query": True, "ins": 9, "bbox": None},  # nothing to be found: left out
    }
    torch.save(held, tmp_path / "annotations.pt")
    bench = load(tmp_path / "annotations.pt", layout)
    assert [image.objects[0].box for image in bench.gallery] == [(10, 10, 20, 20), (0, 0, 64, 48)]
    assert [query.file.name for query in bench.queries] == ["q.jpg"]


def sized(folder, **shares):
    """A gallery image for each share of it that its object covers, one query."""
    entries = {}
    for name, share in shares.items():
        picture(folder / f"{name}.jpg")
        side = (share * 64 * 48) ** 0.5
        entries[f"{name}.jpg"] = {"is_query": False, "ins": 0, "bbox": [2, 2, 2 + side, 2 + side]}
    picture(folder / "q.jpg")
    torch.save({**entries, "q.jpg": {"is_query": True, "ins": 0, "bbox": None}}, folder / "anns.pt")
    return folder


@pytest.mark.parametrize(
    ("name", "gallery"), [("instre-xs", ["tiny", "small"]), ("instre-xxs", ["tiny"]), ("instre", None)]
)
def test_the_parts_of_instre_are_those_of_small_objects(name, gallery, tmp_path):
    """XS: under 15 % of the image, XXS: under 5 %. All that is left is ranked, and nothing is added."""
    bench = load(sized(tmp_path, tiny=0.03, small=0.1, large=0.3), name)
    assert [image.file.stem for image in bench.gallery] == (gallery or ["tiny", "small", "large"])
    assert bench.relevant(bench.queries[0]) == list(range(len(bench.gallery)))
    assert bench.depth is None
    if gallery:
        assert "(published: " in SETS[name].note(bench)
        assert "GSS" in SETS[name].note(bench)  # which the paper's own row is below


def ilias(folder):
    """Two things as ILIAS has them on disk, and a distractor."""
    for name, queries, positives in (("mug_000", 1, 2), ("toy_001", 2, 1)):
        for kind, letter, count in (("query", "Q", queries), ("pos", "P", positives)):
            for i in range(count):
                file = folder / "ilias_core" / name / kind / f"{letter}{name[-3:]}_{i:02}.jpg"
                picture(file)
                file.with_name(f"{file.stem}_bbox.txt").write_text("4 6 20 10\n30 30 60 8\n")
    picture(folder / "distractors" / "yfcc" / "1.jpg")
    return folder


def test_ilias_is_read_as_it_is_published(tmp_path):
    """Positives are the gallery, distractors join it, boxes are x, y, width, height, and AP looks at 1,000 ranks."""
    bench = load(ilias(tmp_path), "ilias")
    assert [image.file.stem for image in bench.gallery] == ["P000_00", "P000_01", "P001_00", "1"]
    assert bench.gallery[0].objects[0].box == (4, 6, 24, 16)
    assert bench.gallery[0].objects[1].box == (30, 30, 64, 38)  # ends at the image
    assert bench.gallery[3].objects == []
    assert [query.instance for query in bench.queries] == ["mug_000", "toy_001", "toy_001"]
    assert bench.queries[0].box == (4, 6, 64, 38)  # all of its boxes
    assert bench.relevant(bench.queries[0]) == [0, 1]
    assert bench.depth == 1000
    assert "5 or 100 million distractors" in SETS["ilias"].note(bench)
    (tmp_path / "ilias_core/mug_000/pos/P000_00_bbox.txt").write_text("4 6 20")
    with pytest.raises(DatasetError, match=r"P000_00_bbox\.txt: not lines of x, y, width, height"):
        load(tmp_path, "ilias")


def test_distractors_join_the_gallery_once_and_are_right_for_nothing(tmp_path):
    bench, others = load(ilias(tmp_path / "things"), "ilias"), tmp_path / "others"
    picture(others / "deep" / "down" / "1.jpg")
    picture(others / "2.png")
    (others / "again.jpg").symlink_to(bench.gallery[0].file)
    more = among(bench, [others, others, tmp_path / "things"])  # queries are in there as well
    assert [image.file.name for image in more.gallery[4:]] == ["2.png", "1.jpg"]
    assert more.gallery[:4] == bench.gallery
    assert [more.relevant(query) for query in more.queries] == [bench.relevant(q) for q in bench.queries]
    assert (more.queries, more.depth) == (bench.queries, bench.depth)
    with pytest.raises(DatasetError, match="empty: no images there to search among"):
        among(bench, [tmp_path / "empty"])


@pytest.mark.slow
def test_a_published_set_is_one_option_away(tmp_path):
    """`soir evaluate --dataset NAME DIR` says what to compare with; --format is its name of before."""
    for option in ("--dataset", "--format"):
        command = ["evaluate", str(published(tmp_path)), option, "voxdet", "--rows", "chance"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "MaO-DINOv2 70.2" in done.output


@pytest.mark.parametrize("layout", ["needle", "voxdet", "owid", "permir", "instre", "ilias", "none"])
def test_a_missing_set_says_what_is_missing(layout, tmp_path):
    with pytest.raises(DatasetError, match=r"missing|annotations\.json|choose one"):
        load(tmp_path, layout)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"not torch", "not readable"),
        ([1], "holds a list"),
        ({"a.jpg": {"is_query": False}}, "a.jpg"),
        ({"a.jpg": {"is_query": False, "ins": [1], "bbox": [(5, 5, 5, 9)]}}, "empty"),
        ({"b.jpg": {"is_query": False, "ins": [1], "bbox": [(5, 5, 8, 9)]}}, "b.jpg"),
        ({"a.jpg": {"is_query": False, "ins": [1], "bbox": [(5, 5, 8, 9)]}}, "0 queries"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(held, said, tmp_path):
    picture(tmp_path / "a.jpg")
    if isinstance(held, bytes):
        (tmp_path / "anns.pt").write_bytes(held)
    else:
        torch.save(held, tmp_path / "anns.pt")
    with pytest.raises(DatasetError, match=said):
        load(tmp_path, "voxdet")


@pytest.mark.slow
def test_a_published_set_is_evaluated(tmp_path):
    bench = load(published(tmp_path), "voxdet")
    with pytest.raises(DatasetError, match="no queries"):
        evaluate(replace(bench, queries=[]))
    results = evaluate(bench, rows=("global", "default", "objects", *OF_PAPER))
    assert set(OF_PAPER) < set(results)
    assert not set(OF_PAPER) & set(DEFAULT_ROWS)
    assert results["default"]["mAP"] == 100  # of one picture
    assert results["paper"]["encoder"] == "DINOv2 ViT-S/14, 12 blocks"


@pytest.mark.slow
def test_what_is_in_distractors_is_detected_where_objects_are_given(tmp_path):
    bench, other = load(published(tmp_path / "set"), "voxdet"), np.full((240, 320, 3), 90, np.uint8)
    other[60:130, 40:110], other[90:180, 200:270] = (220, 40, 30), (30, 60, 220)
    (tmp_path / "others").mkdir()
    Image.fromarray(other).save(tmp_path / "others" / "1.png")
    done = evaluation(among(bench, [tmp_path / "others"]), objects="given", rows=("default", "chance"))
    *labelled, detected = done.collected.objects
    assert [len(items) for items in labelled] == [len(image.objects) for image in bench.gallery]
    assert not any(item.stand_in for item in detected)
    assert done.results["chance"]["mAP"] < 100  # what it is of one picture


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (40, 30)), (3, (40, 30)), (6, (30, 40)), (8, (30, 40))]
)
def test_the_size_of_an_image_is_that_of_the_upright_one(orientation, size, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == size
