"""Requests over gRPC: a server says how long each of them was to wait for its answer."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from conftest import ColourPipeline, picture
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from soir_qdrant import AsyncSoirSearcher
from soir_qdrant.errors import CollectionError
from soir_qdrant.qdrant.collection import Store


class Deadlines(grpc.GenericRpcHandler):
    """Knows no method, and notes the seconds that each request leaves it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            self.seconds[details.method.rpartition("/")[2]] = round(context.time_remaining())
            context.abort(grpc.StatusCode.NOT_FOUND, "no such collection")

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def server() -> Iterator[tuple[Deadlines, dict]]:
    """What it notes, and how a client reaches it."""
    deadlines = Deadlines()
    running = grpc.server(ThreadPoolExecutor(2), handlers=[deadlines])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield (
        deadlines,
        {"host": "127.0.0.1", "grpc_port": port, "prefer_grpc": True, "check_compatibility": False},
    )
    running.stop(None)


REQUESTS = {  # method of the client -> method of the server, arguments
    "collection_exists": ("CollectionExists", {}),
    "get_collection": ("Get", {}),
    "create_collection": ("Create", {"vectors_config": models.VectorParams(size=4, distance="Cosine")}),
    "create_payload_index": ("CreateFieldIndex", {"field_name": "soir.uri", "field_schema": "keyword"}),
    "upsert": ("Upsert", {"points": [models.PointStruct(id=1, vector=[1.0] * 4)]}),
    "set_payload": ("SetPayload", {"payload": {"a": 1}, "points": [1]}),
    "delete": ("Delete", {"points_selector": [1]}),
    "retrieve": ("Get", {"ids": [1]}),
    "scroll": ("Scroll", {}),
    "count": ("Count", {}),
    "query_points": ("Query", {"query": [1.0] * 4}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_has_our_timeout_and_the_users_own_are_as_they_were(server, name):
    deadlines, address = server
    client = QdrantClient(**address)
    method, arguments = REQUESTS[name]
    for seconds in (40, 2):
        with pytest.raises(CollectionError, match="no such collection"):
            Store(client, "images", timeout=seconds).call("try", getattr(client, name), **arguments)
        assert deadlines.seconds[method] == seconds
    with pytest.raises(grpc.RpcError):
        client.get_collection("images")
    assert deadlines.seconds["Get"] == 5


def test_those_of_an_async_search_too(server):
    deadlines, address = server

    async def search() -> None:
        searcher = AsyncSoirSearcher(AsyncQdrantClient(**address), pipeline=ColourPipeline())
        with pytest.raises(CollectionError, match="no collection 'images'"):
            await searcher.search(picture(1), timeout=17)

    asyncio.run(search())
    assert deadlines.seconds["Get"] == 17
