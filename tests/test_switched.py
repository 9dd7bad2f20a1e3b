"""A searcher that runs on while the name of its collection becomes that of another one."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ColourPipeline, ingestor, picture
from qdrant_client import QdrantClient, models

from soir_qdrant import SoirSearcher
from soir_qdrant.errors import CollectionError, ConfigError, ServerError
from soir_qdrant.qdrant.faults import Gone


class Short(ColourPipeline):
    """With vectors of 8 numbers."""

    dim = 8

    def __init__(self) -> None:
        super().__init__("short")

    def query(self, image, *, box=None, mask=None):
        vector = super().query(image, box=box, mask=mask)[:8]
        return vector / np.linalg.norm(vector)


def fill(client, name: str, pipeline=None, **options) -> None:
    ingestor(client, pipeline, collection=name, **options).add([picture(i) for i in range(4)])


def point(client, name: str) -> None:
    """Switch the alias "live"."""
    old = client.get_aliases().aliases
    gone = [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="live"))] if old else []
    new = models.CreateAlias(collection_name=name, alias_name="live")
    client.update_collection_aliases([*gone, models.CreateAliasOperation(create_alias=new)])


SEARCHES = {
    "search": lambda searcher: searcher.search(picture(0)),
    "search_many": lambda searcher: searcher.search_many([picture(0)])[0],
    "search_groups": lambda searcher: (
        searcher.search_groups(picture(0), "soir.count", rerank="objects", group_size=4)[0].hits
    ),
}


@pytest.mark.parametrize(
    ("one", "other", "search"),
    [
        ({"code_vectors": "scalar"}, {}, "search"),
        ({"code_vectors": "scalar"}, {}, "search_many"),
        ({}, {"keep_objects": True}, "search_groups"),
    ],
)
def test_an_alias_becomes_that_of_a_collection_with_other_options_and_back(one, other, search):
    client = QdrantClient(":memory:")
    fill(client, "one", **one)
    fill(client, "other", **other)
    point(client, "one")
    running = SoirSearcher(client, "live", pipeline=ColourPipeline())
    running.search(picture(0))
    for name in ("other", "one", "other"):
        point(client, name)
        if search != "search_groups" or name == "other":  # which keeps vectors of objects
            assert len(SEARCHES[search](running)) == 4


def test_a_collection_is_made_anew_with_other_options(client):
    fill(client, "images", code_vectors="scalar")
    running = SoirSearcher(client, pipeline=ColourPipeline())
    before = [hit.id for hit in running.search(picture(0))]
    client.delete_collection("images")
    with pytest.raises(Gone, match="collection 'images' is gone"):
        running.search(picture(0))
    fill(client, "images")
    assert [hit.id for hit in running.search(picture(0))] == before


def test_another_model_is_refused_whatever_the_length_of_its_vectors():
    client = QdrantClient(":memory:")
    fill(client, "long")
    fill(client, "short", Short())
    point(client, "long")
    running, vector = (
        SoirSearcher(client, "live", pipeline=ColourPipeline()),
        ColourPipeline().query(picture(0)),
    )
    assert running.search(picture(0))
    point(client, "short")
    for _ in range(2):
        with pytest.raises(CollectionError, match="8 numbers, here they have 12: take the profile"):
            running.search(picture(0))
        with pytest.raises(ConfigError, match=r"the query vector has 12 numbers, those of .* have 8"):
            running.search(vector)
    point(client, "long")
    assert running.search(vector)
    assert running.search(picture(0))


def test_what_is_refused_for_other_reasons_is_asked_once(monkeypatch):
    client, requests = QdrantClient(":memory:"), []
    fill(client, "images")
    running = SoirSearcher(client, pipeline=ColourPipeline())
    running.search(picture(0))

    def refusing(*_, **__):
        requests.append(1)
        raise ValueError("Vector codes is not found in the collection")

    monkeypatch.setattr(client, "query_points", refusing)
    with pytest.raises(
        CollectionError, match="could not search collection 'images': Vector codes"
    ) as refused:
        running.search(picture(0))
    assert not isinstance(refused.value, ServerError)  # it is not gone
    assert len(requests) == 1
