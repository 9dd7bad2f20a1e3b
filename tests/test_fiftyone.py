"""The similarity backend of FiftyOne, on a real dataset in FiftyOne's own database.

FiftyOne is not part of `make install` (1.1 GB with its database, and OpenCV below 5): where it is installed, this runs.
Where it can download no MongoDB, give the address of one in FIFTYONE_DATABASE_URI.
"""

import pytest
from conftest import ColourPipeline
from qdrant_client import QdrantClient
from service_app import BLUE, BOTTOM, RED, TOP, fill, png, shelf

pytest.importorskip("fiftyone", reason="fiftyone is not installed: it takes 1.1 GB and another OpenCV")
import fiftyone as fo
import fiftyone.brain as fob

from soir_qdrant import SoirIngestor
from soir_qdrant.errors import ConfigError
from soir_qdrant.integrations.fiftyone import SoirSimilarityConfig


@pytest.fixture
def photos(tmp_path):
    return tmp_path / "photos"


@pytest.fixture
def client(photos):
    client = QdrantClient(":memory:")
    fill(client, photos)
    return client


@pytest.fixture
def dataset(client, photos):
    try:
        dataset = fo.Dataset.from_images_dir(str(photos))
    except fo.core.config.FiftyOneConfigError as error:
        pytest.skip(f"FiftyOne finds no MongoDB here: {error}")
    yield dataset
    dataset.delete()


class Samples:
    """What the index uses of a dataset, without FiftyOne's database."""

    def __init__(self, files):
        self.files, self.fields = files, {}

    def values(self, what):
        ids, files = list(self.files), list(self.files.values())
        return [ids, files] if isinstance(what, list) else files

    def select(self, ids, ordered=False):
        return Samples({id: self.files[id] for id in ids})

    def has_sample_field(self, name):
        return name in self.fields

    def add_sample_field(self, name, kind, embedded_doc_type):
        self.fields[name] = {}

    def set_values(self, name, values, key_field):
        self.fields[name] |= values


def test_the_index_finds_samples_by_file_and_writes_the_boxes(client, photos, monkeypatch):
    files = ("red-green.png", "red-blue.png", "green-blue.png")
    samples = Samples({f"{i:024x}": str(photos / name) for i, name in enumerate(files)})
    index = SoirSimilarityConfig(collection="shelves").build().initialize(samples, "soir")
    monkeypatch.setattr(type(index), "has_view", False)
    index.use(client, ColourPipeline())
    view = index.search(str(photos / "red-green.png"), box=BOTTOM, limit=2)
    assert set(names(view)) == {"red-green.png", "green-blue.png"}
    detection = samples.fields["soir"][f"{2:024x}"]
    assert detection.bounding_box == pytest.approx([5 / 80, 5 / 60, 20 / 80, 20 / 60])
    assert index._kneighbors(f"{1:024x}", k=1)[0] == [f"{1:024x}"]
    for nothing in ({"label_ids": [f"{0:024x}"]}, {"sample_ids": [f"{0:024x}"], "label_ids": ["a"]}, {}):
        with pytest.raises(ConfigError, match="sample_ids"):
            index.remove_from_index(**nothing)
    assert index.total_index_size == 3
    index.remove_from_index([f"{0:024x}"])
    assert index.total_index_size == 2
    assert index.add_samples(progress=False).added == 1


@pytest.fixture
def index(dataset, client):
    results = fob.compute_similarity(
        dataset, backend=SoirSimilarityConfig, brain_key="soir", embeddings=False, collection="shelves"
    )
    return results.use(client, ColourPipeline())


def names(view):
    return [path.rpartition("/")[2] for path in view.values("filepath")]


def test_vectors_come_out_of_a_collection_that_keeps_objects_too(photos):
    client = QdrantClient(":memory:")
    photos.mkdir()
    (photos / "a.png").write_bytes(png(shelf(RED, BLUE)))
    SoirIngestor(client, "shelves", pipeline=ColourPipeline(), keep_objects=True).add(photos, progress=False)
    samples = Samples({f"{0:024x}": str(photos / "a.png")})
    index = SoirSimilarityConfig(collection="shelves").build().initialize(samples, "soir")
    vectors, ids, _ = index.use(client, ColourPipeline()).get_embeddings([f"{0:024x}"])
    assert (vectors.shape, list(ids)) == ((1, 12), [f"{0:024x}"])


def test_a_box_finds_the_samples_that_hold_the_thing_and_where(index, photos):
    view = index.search(str(photos / "red-green.png"), box=BOTTOM, limit=2)
    assert set(names(view)) == {"red-green.png", "green-blue.png"}
    boxes = dict(zip(names(view), view.values("soir.bounding_box"), strict=True))
    assert boxes["green-blue.png"] == pytest.approx([5 / 80, 5 / 60, 20 / 80, 20 / 60])
    assert view.values("soir.confidence") == sorted(view.values("soir.confidence"), reverse=True)


def test_fiftyones_own_sorting_takes_samples_and_vectors(index, dataset, photos):
    first = dataset.match(fo.ViewField("filepath").ends_with("red-blue.png")).first()
    assert names(dataset.sort_by_similarity(first.id, k=1, brain_key="soir")) == ["red-blue.png"]
    vector = index.searcher.vector(str(photos / "red-green.png"), box=TOP)
    view = dataset.sort_by_similarity(vector, k=2, brain_key="soir", dist_field="score")
    assert set(names(view)) == {"red-green.png", "red-blue.png"}
    assert all(score > 0 for score in view.values("score"))


def test_a_view_is_searched_alone(index, dataset, photos):
    blue = dataset.match(fo.ViewField("filepath").ends_with("-blue.png"))
    with index.use_view(blue):
        assert set(names(index.search(str(photos / "red-green.png"), field=None))) == {
            "red-blue.png",
            "green-blue.png",
        }


def test_samples_are_added_and_removed(dataset, photos):
    index = fob.compute_similarity(dataset, backend=SoirSimilarityConfig, brain_key="new", embeddings=False)
    index.use(QdrantClient(":memory:"), ColourPipeline())
    assert index.total_index_size == 0
    assert index.add_samples(progress=False).added == 3
    assert index.total_index_size == 3
    assert index.get_embeddings()[0].shape == (3, 12)
    index.remove_from_index([dataset.first().id])
    assert index.total_index_size == 2


def test_it_is_loaded_again_with_the_place_of_qdrant(index, dataset, client, tmp_path):
    dataset.save()
    dataset._brain_cache.clear()
    again = dataset.load_brain_results("soir", path=str(tmp_path / "db"))
    assert again.config.collection == "shelves"
    assert again.total_index_size == 0


def test_errors_say_what_to_do(index, dataset):
    with pytest.raises(ConfigError, match="add_samples"):
        index.add_to_index(None, None)
    with pytest.raises(ConfigError, match="say where Qdrant is"):
        SoirSimilarityConfig().connected()
