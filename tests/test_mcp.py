"""The server of the Model Context Protocol, used by the SDK's own client."""

import asyncio
import base64
import io
import json
import os
import sys

import numpy as np
import pytest
from conftest import ColourPipeline
from PIL import Image
from qdrant_client import QdrantClient
from service_app import BLUE, BOTTOM, GREEN, RED, TOP, fill, png, shelf

pytest.importorskip("mcp", reason="mcp is not installed: the extra mcp has it")
from mcp import Client, StdioServerParameters

from soir_qdrant.integrations.mcp import create_server
from soir_qdrant.service.settings import ServiceSettings

pytestmark = pytest.mark.slow  # importing the SDK takes seconds


def ask(server, tool, **arguments):
    """The answer of a tool: what it says, and the thumbnails."""

    async def call():
        async with Client(server) as client:
            return await client.call_tool(tool, arguments)

    result = asyncio.run(call())
    texts = [block.text for block in result.content if block.type == "text"]
    images = [
        Image.open(io.BytesIO(base64.b64decode(block.data)))
        for block in result.content
        if block.type == "image"
    ]
    return (texts[0] if result.is_error else json.loads(texts[0])), images


@pytest.fixture
def photos(tmp_path):
    return tmp_path / "photos"


@pytest.fixture
def server(photos):
    client = QdrantClient(":memory:")
    fill(client, photos)
    return create_server(client, ColourPipeline, ServiceSettings(roots=(photos,)))


def names(hits):
    return {hit["uri"] for hit in hits}


def test_a_box_in_a_photograph_finds_the_others_that_hold_the_thing(server, photos):
    hits, thumbnails = ask(
        server, "search_by_image", image=str(photos / "red-green.png"), box=list(BOTTOM), limit=2
    )
    assert names(hits) == {"red-green.png", "green-blue.png"}
    second = next(hit for hit in hits if hit["uri"] == "green-blue.png")
    assert (second["box"], second["object"], second["label"]) == (list(TOP), 0, "green")
    assert second["payload"] == {"shop": "south", "price": 20}
    assert [hit["thumbnail"] for hit in hits] == [1, 2]
    assert {image.format for image in thumbnails} == {"JPEG"}
    assert {max(image.size) for image in thumbnails} == {384}


def test_the_thumbnail_shows_the_object_that_matched_in_a_green_box(server):
    hits, thumbnails = ask(server, "search_by_image", image=uri(np.full((20, 20, 3), RED, np.uint8)), limit=1)
    scale = thumbnails[0].width / hits[0]["width"]
    x0, y0, x1, _ = (round(side * scale) for side in hits[0]["box"])
    red, green, blue = thumbnails[0].getpixel(((x0 + x1) // 2, y0))
    assert green > red
    assert green > blue
    assert hits[0]["box"] == list(TOP)


def uri(image):
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def test_an_object_of_a_hit_is_searched_for_next(server):
    (hit,), _ = ask(server, "search_by_image", image=uri(shelf(RED, BLUE)), limit=1)
    hits, _ = ask(server, "search_by_object", id=hit["id"], object=1, limit=2)
    assert names(hits) == {"red-blue.png", "green-blue.png"}


def test_words_go_to_the_encoder_and_its_refusal_comes_back(server):
    answer, _ = ask(server, "search_by_words", words="a red mug")
    assert "this encoder reads no text" in answer


def test_words_find_images_where_the_profile_reads_them(photos):
    class Reading(ColourPipeline):
        def text(self, words):
            return self.query(np.full((8, 8, 3), {"blue": BLUE, "green": GREEN}[words], np.uint8))

    client = QdrantClient(":memory:")
    fill(client, photos)
    hits, _ = ask(create_server(client, Reading), "search_by_words", words="blue", limit=2)
    assert {hit["uri"] for hit in hits} == {str(photos / n) for n in ("red-blue.png", "green-blue.png")}


def test_files_outside_the_folders_are_not_opened(server, tmp_path):
    Image.fromarray(shelf(RED, RED)).save(tmp_path / "secret.png")
    scan, link = tmp_path / "secret.tif", tmp_path / "photos" / "link.tif"
    pages = [Image.fromarray(shelf(RED, RED)), Image.fromarray(shelf(RED, BLUE))]
    pages[0].save(scan, save_all=True, append_images=pages[1:])
    link.symlink_to(scan)
    outside = (tmp_path / "secret.png", tmp_path / "photos" / ".." / "secret.png", link, f"{link}#page=2")
    for path in outside:
        answer, images = ask(server, "search_by_image", image=str(path))
        assert "outside the folders" in answer
        assert not images


def test_a_hit_whose_file_is_gone_is_listed_without_a_thumbnail(server, photos):
    (photos / "red-green.png").unlink()
    hits, thumbnails = ask(server, "search_by_image", image=uri(shelf(RED, GREEN)), limit=3)
    gone = next(hit for hit in hits if hit["uri"] == "red-green.png")
    assert gone["thumbnail"] is None
    assert "moved or deleted" in gone["no_thumbnail"]
    assert len(thumbnails) == 2


def test_errors_say_what_to_do(server):
    assert "give four numbers" in ask(server, "search_by_image", image=uri(shelf(RED, RED)), box=[1, 2])[0]
    assert "not base64" in ask(server, "search_by_image", image="data:image/png;base64,???")[0]
    assert "no collection 'none'" in ask(server, "search_by_words", words="x", collection="none")[0]
    assert "give 1 to 20" in ask(server, "search_by_words", words="x", limit=0)[0]
    (hit,), _ = ask(server, "search_by_image", image=uri(shelf(RED, RED)), limit=1)
    assert "has 2, counted from 0" in ask(server, "search_by_object", id=hit["id"], object=7)[0]


def test_several_collections_are_listed_and_one_must_be_named(photos):
    client = QdrantClient(":memory:")
    fill(client, photos)
    fill(client, photos, "spare")
    server = create_server(client, ColourPipeline)
    assert ask(server, "list_collections")[0] == {"shelves": 3, "spare": 3}
    assert "choose one of shelves, spare" in ask(server, "search_by_words", words="x")[0]


def test_the_command_serves_on_stdin_and_stdout(photos, tmp_path):
    client = QdrantClient(path=str(tmp_path / "db"))
    fill(client, photos)
    client.close()
    command = ["-m", "soir_qdrant", "mcp", "--path", str(tmp_path / "db"), "--root", str(photos)]
    answer, _ = ask(
        StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ)), "list_collections"
    )
    assert answer == {"shelves": 3}
