"""A folder changes, and the collection follows, doing the least."""

import os
import shutil

import numpy as np
import pytest
from conftest import ColourPipeline, ingestor, picture, stored
from PIL import Image, PngImagePlugin
from qdrant_client import QdrantClient, models

from soir_qdrant.errors import ImageError
from soir_qdrant.ingest.outcome import summary
from soir_qdrant.ingest.sync import sync_summary
from soir_qdrant.qdrant.identity import point_id
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.types import SceneObject


def uris(client):
    return sorted(uri for payload in stored(client).values() for uri in payload["soir"]["uris"])


def files(folder):
    return sorted(str(path) for path in folder.rglob("[!.]*.png"))


def changes(report):
    return sorted((change.what, change.name) for change in report.changes)


def with_title(file):
    """Other bytes, the same pixels."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Title", "a mug")
    Image.fromarray(np.asarray(Image.open(file))).save(file, pnginfo=about)


def test_a_first_pass_stores_everything_and_a_second_nothing(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    assert adder.sync(folder).counts == {"new": 6}
    assert uris(client) == files(folder)
    calls, before = len(pipeline.calls), stored(client)
    report = adder.sync(folder)
    assert (report.counts, report.unchanged) == ({}, 6)
    assert len(pipeline.calls) == calls
    assert stored(client) == before


def test_a_moved_folder_keeps_its_points_and_runs_no_model(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    adder.sync(folder)
    before, calls = stored(client), len(pipeline.calls)
    moved = folder.rename(folder.with_name("moved"))
    report = adder.sync(moved)
    assert report.counts == {"moved": 6}
    assert len(pipeline.calls) == calls
    assert set(stored(client)) == set(before)
    assert uris(client) == files(moved)
    hit = SoirSearcher(client, pipeline=pipeline).search(moved / "0.png")[0]
    assert hit.uri == str(moved / "0.png")


def test_a_file_is_renamed_moved_copied_and_removed(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    adder.sync(folder)
    calls = len(pipeline.calls)
    (folder / "0.png").rename(folder / "zero.png")
    (folder / "2.png").rename(folder / "sub" / "2.png")
    shutil.copy(folder / "4.png", folder / "four.png")
    (folder / "sub" / "1.png").unlink()
    report = adder.sync(folder)
    assert changes(report) == [
        ("copied", "four.png"), ("moved", "sub/2.png"), ("renamed", "zero.png"), ("vanished", "sub/1.png"),
    ]  # fmt: skip
    assert {change.before for change in report.changes} == {None, "0.png", "2.png"}
    assert len(pipeline.calls) == calls
    assert uris(client) == files(folder)
    assert client.count("images").count == 5
    assert sync_summary(report).splitlines()[0].startswith("1 copied, 1 moved, 1 renamed, 1 vanished, 3 unch")


def test_a_picture_that_is_edited_takes_its_point_with_it(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    adder.sync(folder)
    (id_,) = (i for i, payload in stored(client).items() if payload["soir"]["uri"].endswith("/0.png"))
    client.set_payload("images", {"reviewed": "yes"}, [id_])
    Image.fromarray(picture(77)).save(folder / "0.png")
    report = adder.sync(folder)
    assert changes(report) == [("changed", "0.png")]
    assert client.count("images").count == 6
    assert uris(client) == files(folder)
    (payload,) = (p for p in stored(client).values() if p["soir"]["uri"].endswith("/0.png"))
    assert payload["reviewed"] == "yes"
    assert pipeline.calls[-1] == ["0.png"]


def test_new_metadata_run_no_model(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    adder.sync(folder)
    calls = len(pipeline.calls)
    with_title(folder / "0.png")
    assert changes(adder.sync(folder)) == [("touched", "0.png")]
    assert len(pipeline.calls) == calls
    held = stored(client)
    assert len(held) == 6
    assert all(id_ == point_id(payload["soir"]["sha256"]) for id_, payload in held.items())
    assert ingestor(client, pipeline).add(folder).skipped == 6


def test_two_points_of_one_file_are_put_right(client, folder, pipeline):
    """A file that was edited and only added again: the old point stayed beside the new one."""
    adder = ingestor(client, pipeline)
    adder.add(folder)
    Image.fromarray(picture(77)).save(folder / "0.png")
    report = adder.add(folder)
    assert (report.added, report.superseded) == (1, 1)
    assert "1 beside what their files held before" in summary(report)
    assert client.count("images").count == 7
    assert adder.add(folder).superseded == 0
    calls = len(pipeline.calls)
    adder.sync(folder)
    assert client.count("images").count == 6
    assert uris(client) == files(folder)
    assert len(pipeline.calls) == calls
    assert adder.sync(folder).counts == {}


def test_both_points_of_a_file_go_with_it(client, folder):
    adder = ingestor(client)
    for seed in (77, 78):
        adder.add(folder)
        Image.fromarray(picture(seed)).save(folder / "0.png")
    adder.add(folder)
    (folder / "0.png").unlink()
    assert adder.sync(folder).counts == {"vanished": 1}
    assert uris(client) == files(folder)


@pytest.mark.parametrize("on_exists", ["update", "replace"])
def test_an_update_puts_two_points_of_one_file_right_too(client, folder, on_exists):
    adder = ingestor(client)
    adder.add(folder)
    Image.fromarray(picture(77)).save(folder / "0.png")
    adder.add(folder)
    adder.add(folder, on_exists=on_exists)
    assert uris(client) == files(folder)


def test_two_files_that_swap_their_names(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    adder.sync(folder)
    before, calls = stored(client), len(pipeline.calls)
    (folder / "0.png").rename(folder / "x.png")
    (folder / "2.png").rename(folder / "0.png")
    (folder / "x.png").rename(folder / "2.png")
    adder.sync(folder)
    after = stored(client)
    assert len(pipeline.calls) == calls
    assert set(after) == set(before)
    assert uris(client) == files(folder)
    swapped = {
        str(folder / "0.png"): str(folder / "2.png"),
        str(folder / "2.png"): str(folder / "0.png"),
    }
    for id_, payload in before.items():
        uri = payload["soir"]["uri"]
        assert after[id_]["soir"]["uris"] == [swapped.get(uri, uri)]


@pytest.mark.parametrize("own", [{}, {"0.png": 7}])
@pytest.mark.parametrize("aside", ["old.png", "sub/0.png"])
@pytest.mark.parametrize("edited", [True, False])
def test_a_file_is_set_aside_and_its_name_used_again(folder, own, aside, edited):
    """As an editor's backup does. Both images stay; that of before keeps its point."""
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.add(folder, ids=own)
    before = {payload["soir"]["uri"]: id_ for id_, payload in stored(client).items()}
    shutil.copy(folder / "0.png", folder / aside)
    if edited:
        Image.fromarray(picture(77)).save(folder / "0.png")
    else:
        with_title(folder / "0.png")
    assert changes(adder.sync(folder)) == [("changed", "0.png"), ("copied", aside)]
    assert uris(client) == files(folder)
    after = {payload["soir"]["uri"]: id_ for id_, payload in stored(client).items()}
    assert after[str(folder / aside)] == before[str(folder / "0.png")]
    assert adder.sync(folder).counts == {}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("on_exists", ["update", "replace"])
def test_an_update_loses_neither_of_them(folder, on_exists, batch_size):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.add(folder)
    (folder / "0.png").rename(folder / "old.png")
    Image.fromarray(picture(77)).save(folder / "0.png")
    adder.add(folder, on_exists=on_exists, batch_size=batch_size)
    assert uris(client) == files(folder)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_id_of_ones_own_stays_with_a_file_and_its_copies(folder, batch_size):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.add(folder, ids={"0.png": 7})
    Image.fromarray(picture(77)).save(folder / "0.png")
    shutil.copy(folder / "0.png", folder / "copy.png")
    report = adder.add(folder, on_exists="update", batch_size=batch_size)
    assert (report.added, report.updated, report.skipped, report.failed) == (0, 1, 6, [])
    assert sorted(stored(client)[7]["soir"]["uris"]) == [str(folder / "0.png"), str(folder / "copy.png")]
    assert uris(client) == files(folder)


def test_two_images_become_equal(folder, pipeline):
    """As where two that differ by their titles alone lose them."""
    client = QdrantClient(":memory:")
    adder = ingestor(client, pipeline)
    shutil.copy(folder / "0.png", folder / "twin.png")
    with_title(folder / "twin.png")
    adder.sync(folder)
    calls = len(pipeline.calls)
    Image.fromarray(picture(0)).save(folder / "0.png", compress_level=1)
    shutil.copy(folder / "0.png", folder / "twin.png")
    adder.sync(folder)
    assert uris(client) == files(folder)
    assert client.count("images").count == 6
    assert len(pipeline.calls) == calls


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("way", ["sync", "update", "replace"])
@pytest.mark.parametrize("before", ["different", "equal", "new image is stored already", "own id"])
def test_two_files_are_overwritten_with_one_new_image(folder, before, way, batch_size):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    pair = [folder / "0.png", folder / "2.png"]
    if before == "equal":
        shutil.copy(*pair)
    if before == "new image is stored already":
        Image.fromarray(picture(77)).save(folder / "sub" / "77.png")
    adder.add(folder, ids={"0.png": 7} if before == "own id" else None)
    for file in pair:
        Image.fromarray(picture(77)).save(file)
    if way == "sync":
        adder.sync(folder, batch_size=batch_size)
    else:
        adder.add(folder, on_exists=way, batch_size=batch_size)
    assert uris(client) == files(folder)
    assert any(
        {str(file) for file in pair} <= set(point["soir"]["uris"]) for point in stored(client).values()
    )


class WithPatches(ColourPipeline):
    """Patches cost it nothing."""

    has_patches = True

    def scenes(self, images, objects=None, seconds=None, *, patches=False):
        self.patches = patches
        return super().scenes(images, objects, seconds)


@pytest.mark.parametrize(
    "options", [{"code_vectors": "scalar"}, {"object_patches": False}, {"object_codes": 8}]
)
def test_a_collection_goes_on_as_it_was_made(client, folder, options):
    ingestor(client, WithPatches(), **options).add(folder)
    before, pipeline = stored(client), WithPatches()
    adder = ingestor(client, pipeline)
    assert adder.sync(folder).counts == {}
    assert adder.add(folder, on_exists="update").skipped == 6
    assert adder.add(folder, on_exists="replace").updated == 6
    assert pipeline.patches == ("object_patches" not in options)
    assert stored(client) == before
    if "object_codes" in options:  # unless it is told otherwise
        assert ingestor(client, WithPatches(), object_codes=4).sync(folder).counts == {"stale": 6}


def test_another_recipe_is_stale_and_given_objects_stay(folder):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.sync(
        folder, objects={"0.png": [SceneObject((0, 0, 9, 9), label="mug")]}, payloads={"0.png": {"n": 1}}
    )
    newer = ColourPipeline()
    newer.recipe = {"detector": "newer"}
    report = ingestor(client, newer).sync(folder)
    assert report.counts == {"stale": 5}
    assert report.unchanged == 1
    assert sum("mug" in payload["soir"]["labels"] for payload in stored(client).values()) == 1
    assert ingestor(client, newer).sync(folder).counts == {}


def test_a_dry_run_says_what_would_be_done_and_does_nothing(client, folder, pipeline):
    adder = ingestor(client, pipeline)
    assert adder.sync(folder, dry_run=True).counts == {"new": 6}
    assert not client.collection_exists("images")
    adder.sync(folder)
    before, calls = stored(client), len(pipeline.calls)
    (folder / "0.png").unlink()
    Image.fromarray(picture(77)).save(folder / "2.png")
    Image.fromarray(picture(78)).save(folder / "new.png")
    (folder / "4.png").rename(folder / "four.png")
    report = adder.sync(folder, dry_run=True)
    assert report.counts == {"vanished": 1, "changed": 1, "new": 1, "renamed": 1}
    assert "nothing was done yet" in sync_summary(report)
    assert stored(client) == before
    assert len(pipeline.calls) == calls
    assert adder.sync(folder).counts == report.counts


def test_vanished_files_may_be_kept_and_other_folders_are_left_alone(folder, tmp_path):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(picture(50)).save(elsewhere / "a.png")
    adder.sync(elsewhere)
    adder.add([picture(60)])  # came as pixels: it lies nowhere
    adder.sync(folder)
    (folder / "0.png").unlink()
    assert adder.sync(folder, keep=True).counts == {"kept": 1}
    assert client.count("images").count == 8
    assert adder.sync(folder).counts == {"vanished": 1}
    assert client.count("images").count == 7


def test_nothing_is_emptied_by_accident(folder):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.sync(folder)
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(ImageError, match="no image in this folder"):  # as of a disk that is not mounted
        adder.sync(folder)
    with pytest.raises(ImageError, match="no such folder"):
        adder.sync(folder / "none")
    assert client.count("images").count == 6


def test_a_half_written_file_leaves_the_old_point_as_it_is(folder):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.sync(folder)
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    report = adder.sync(folder)
    assert [failure.name for failure in report.failed] == ["0.png"]
    assert report.counts == {}
    assert uris(client) == files(folder)
    (folder / "0.png").write_bytes(whole)
    assert adder.sync(folder).counts == {}


def test_a_folder_that_cannot_be_looked_into_is_not_empty(folder, monkeypatch):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.sync(folder)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = adder.sync(folder)
    assert report.counts == {}
    assert "this folder cannot be read" in report.failed[0].reason
    assert client.count("images").count == 6


def test_points_of_version_0_1_go_on(client, folder, pipeline):
    """They have one uri, no sizes and times, and no hash of their pixels."""
    adder = ingestor(client, pipeline)
    adder.add(folder)
    for id_, payload in stored(client).items():
        for name in ("uris", "files", "payloads", "pixels"):
            del payload["soir"][name]
        client.set_payload("images", {"soir": payload["soir"]}, [id_])
    calls = len(pipeline.calls)
    (folder / "0.png").rename(folder / "zero.png")
    assert adder.sync(folder).counts == {"renamed": 1}
    assert len(pipeline.calls) == calls
    assert uris(client) == files(folder)


def test_ids_of_ones_own_stay_with_their_files(folder):
    client = QdrantClient(":memory:")
    adder = ingestor(client)
    adder.add(folder, ids={"0.png": 7, "2.png": 8})
    (folder / "0.png").rename(folder / "zero.png")
    Image.fromarray(picture(77)).save(folder / "2.png")
    assert changes(adder.sync(folder)) == [("changed", "2.png"), ("renamed", "zero.png")]
    held = stored(client)
    assert held[7]["soir"]["uri"] == str(folder / "zero.png")
    assert held[8]["soir"]["uri"] == str(folder / "2.png")
    assert len(held) == 6


def test_a_namespace_is_kept_in_step_by_itself(folder):
    client = QdrantClient(":memory:")
    a, b = (ingestor(client, namespace=name) for name in "ab")
    a.sync(folder)
    assert b.sync(folder).counts == {"new": 6}
    (folder / "0.png").unlink()
    assert a.sync(folder).counts == {"vanished": 1}
    assert client.count("images").count == 11
    tenant = models.FieldCondition(key="soir.namespace", match=models.MatchValue(value="b"))
    assert client.count("images", models.Filter(must=[tenant])).count == 6
