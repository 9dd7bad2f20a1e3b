"""The searcher and the ingestor for asyncio, on an AsyncQdrantClient."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ColourPipeline, counts, picture
from qdrant_client import AsyncQdrantClient

from soir_qdrant import AsyncSoirIngestor, AsyncSoirSearcher
from soir_qdrant.errors import CollectionError


def test_what_goes_in_comes_out():
    async def scenario():
        client = AsyncQdrantClient(":memory:")
        images = [picture(i) for i in range(12)]
        ingestor = AsyncSoirIngestor(client, pipeline=ColourPipeline(), keep_objects=True)
        assert counts(
            await ingestor.add(images, ids=range(12), payloads=[{"n": i % 2} for i in range(12)])
        ) == (12, 0, 0)
        searcher = AsyncSoirSearcher(client, pipeline=ColourPipeline())
        several = await asyncio.gather(*(searcher.search(image, limit=3) for image in images))
        assert [hits[0].id for hits in several] == list(range(12))
        (hits,) = await searcher.search_many([images[5]], rerank="objects")
        assert np.isclose(hits[0].score, 1, atol=1e-5)
        assert {group.key for group in await searcher.search_groups(images[0], "n")} == {0, 1}
        assert (await searcher.vector(images[0])).shape == (12,)

    asyncio.run(scenario())


def test_the_loop_goes_on_while_pictures_are_encoded():
    async def scenario():
        client = AsyncQdrantClient(":memory:")
        ingestor = AsyncSoirIngestor(client, pipeline=ColourPipeline(pause=0.2))
        adding = asyncio.ensure_future(ingestor.add([picture(0)]))
        turns = 0
        while not adding.done():
            await asyncio.sleep(0.005)
            turns += 1
        assert turns > 5
        await adding

    asyncio.run(scenario())


def test_errors_come_through():
    async def scenario():
        searcher = AsyncSoirSearcher(AsyncQdrantClient(":memory:"), "none", pipeline=ColourPipeline())
        with pytest.raises(CollectionError, match="no collection 'none'"):
            await searcher.search(picture(0))

    asyncio.run(scenario())


def test_a_folder_is_kept_in_step_and_images_are_removed(folder):
    async def asked():
        client = AsyncQdrantClient(":memory:")
        adder = AsyncSoirIngestor(client, pipeline=ColourPipeline())
        report = await adder.sync(folder)
        assert report.counts == {"new": 6}
        await adder.update_payload({"n": 1}, uris=[folder / "0.png"])
        await adder.remove(uris=[folder / "2.png"])
        return (await client.count("images")).count

    assert asyncio.run(asked()) == 5


def test_a_loop_that_was_closed_leaves_no_client_behind(stand_in):
    client = AsyncQdrantClient(url=stand_in.url, check_compatibility=False, verify=False)
    searcher = AsyncSoirSearcher(client, "none", pipeline=ColourPipeline())
    for _ in range(4):  # as where every request of a web framework has a loop of its own
        with pytest.raises(CollectionError):
            asyncio.run(searcher.search(picture(0)))
    assert len(searcher._bridge._clients) == 1


def test_local_mode_is_asked_by_one_at_a_time_whatever_the_loop(monkeypatch):
    """Readers must not meet a writer: loops in threads of their own wait for one another."""
    client = AsyncQdrantClient(":memory:")
    ingestor = AsyncSoirIngestor(client, pipeline=ColourPipeline())
    asyncio.run(ingestor.add([picture(0)]))
    inside, several = set(), []

    def watched(method):
        async def call(collection_name, *, timeout=None, **arguments):
            inside.add(thread := threading.get_ident())
            several.append(len(inside))
            await asyncio.sleep(0.01)
            answer = await method(collection_name, **arguments)
            inside.discard(thread)
            return answer

        return call

    for name in ("query_points", "upsert"):
        monkeypatch.setattr(client, name, watched(getattr(client, name)))
    searcher = AsyncSoirSearcher(client, pipeline=ColourPipeline())
    with ThreadPoolExecutor(4) as pool:
        work = [searcher.search(picture(0)) for _ in range(6)] + [ingestor.add([picture(i)]) for i in (1, 2)]
        assert all(pool.map(asyncio.run, work))
    assert (len(several), max(several)) == (8, 1)
