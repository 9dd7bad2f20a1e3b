"""Another model without downtime: what docs/how-to/production.md says of aliases."""

import numpy as np
import pytest
from conftest import ColourPipeline, ingestor, picture
from PIL import Image
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from soir_qdrant.assembly import OF_0_1
from soir_qdrant.cli.main import app
from soir_qdrant.errors import CollectionError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.search.searcher import SoirSearcher


def point_alias(client, collection, *, replace):
    old = [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="live"))] if replace else []
    new = models.CreateAlias(collection_name=collection, alias_name="live")
    client.update_collection_aliases([*old, models.CreateAliasOperation(create_alias=new)])


def test_an_alias_moves_from_the_old_collection_to_the_new_one_and_back():
    client = QdrantClient(":memory:")
    old, new = ColourPipeline("1"), ColourPipeline("2")
    ingestor(client, old, collection="images-1").add([picture(i) for i in range(3)])
    ingestor(client, new, collection="images-2").add([picture(i) for i in range(5)])
    for collection, pipeline, count in (("images-1", old, 3), ("images-2", new, 5), ("images-1", old, 3)):
        point_alias(client, collection, replace=client.collection_exists("live"))
        assert len(SoirSearcher(client, "live", pipeline=pipeline).search(picture(0))) == count


def test_a_running_application_notices_that_the_alias_moved():
    client = QdrantClient(":memory:")
    old, new = ColourPipeline("1"), ColourPipeline("2")
    for collection, pipeline in (("images-1", old), ("images-2", new)):
        ingestor(client, pipeline, collection=collection).add([picture(i) for i in range(3)])
    point_alias(client, "images-1", replace=False)
    running = SoirSearcher(client, "live", pipeline=old)
    assert running.search(picture(0))
    point_alias(client, "images-2", replace=True)
    for ask in (running.search, lambda image: running.search_groups(image, "soir.count")):
        with pytest.raises(CollectionError, match="version"):
            ask(picture(0))
    point_alias(client, "images-1", replace=True)
    assert running.search(picture(0))


def test_an_application_that_still_has_the_old_model_is_refused():
    client = QdrantClient(":memory:")
    ingestor(client, ColourPipeline("2"), collection="images-2").add([picture(0)])
    point_alias(client, "images-2", replace=False)
    with pytest.raises(CollectionError, match="version"):
        SoirSearcher(client, "live", pipeline=ColourPipeline("1")).search(picture(0))


@pytest.mark.slow
def test_a_collection_of_version_0_1_goes_on_with_the_projection_of_then(tmp_path):
    client = QdrantClient(path=str(tmp_path / "needles"))
    image = np.kron(picture(0), np.ones((4, 4, 1), np.uint8))
    SoirIngestor(client, profile="embedded-0.1").add([image], ids=[0])  # as version 0.1 did by default
    searcher = SoirSearcher(client)
    assert searcher.search(image, box=(0, 0, 160, 120))[0].score > 0.8  # the whole image, as it is stored
    assert searcher.pipeline.whitening.digest == OF_0_1
    assert SoirIngestor(client).add([picture(1)], ids=[1]).added == 1
    assert SoirIngestor(client, "new").pipeline.settings.profile == "embedded"
    with pytest.raises(CollectionError, match=r"embedded-0\.1"):
        SoirSearcher(client, profile="embedded").search(image)
    client.close()

    Image.fromarray(image).save(tmp_path / "a.png")
    place = [str(tmp_path / "a.png"), "--path", str(tmp_path / "needles")]
    for command, said in (("search", "0."), ("ingest", "1 added")):
        done = CliRunner().invoke(app, [command, *place])
        assert (done.exit_code, said in done.output) == (0, True), done.output
