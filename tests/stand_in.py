"""Qdrant's REST interface, as far as this package uses it, in front of an embedded Qdrant in memory.

It is no Qdrant server. It shows what goes over the wire: every request is parsed with the client's own
models, and `faults` makes it fail the way servers fail. What only a real server can tell is tested with the
marker `server`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from qdrant_client import QdrantClient, models


@dataclass(frozen=True)
class Reply:
    """An answer, as a proxy may give it."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class StandIn:
    """url: where it listens. faults: what happens to the next writes, in order: None lets one through, a
    number is the status it is answered with, "lose" drops the connection before and "late" after it was
    carried out, "acknowledged" carries it out and does not say so, a Reply is sent as it is. reads: the same for
    the next other requests. indexes: the payload fields that have one. writes: bytes of each write that came in.
    requests: method and path of every request. sizes: bytes of all requests and answers."""

    def __init__(self) -> None:
        self.memory = QdrantClient(":memory:")
        self.indexes: dict[str, str] = {}
        self.faults: list[Reply | int | str | None] = []
        self.reads: list[Reply | int | str | None] = []
        self.requests: list[str] = []
        self.writes: list[int] = []
        self.sizes = 0  # bytes of all requests and answers
        self.server = HTTPServer(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self.server.handle_error = lambda *_: None  # a client that was killed: nobody to tell
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def client(self) -> QdrantClient:
        """verify=False: the certificates, which http:// needs none of, take a tenth of a second to read."""
        return QdrantClient(url=self.url, check_compatibility=False, verify=False)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def route(self, method: str, path: str) -> Callable[[Any], Any]:
        for pattern, name in ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return lambda body: getattr(self, name)(*found.groups(), body)
        raise LookupError(f"{method} {path}")

    def exists(self, name: str, _: Any) -> Any:
        return {"exists": self.memory.collection_exists(name)}

    def create(self, name: str, body: Any) -> Any:
        asked = models.CreateCollection.model_validate(body)
        metadata = getattr(asked, "metadata", None)  # clients before 1.16 have none
        extra = {"metadata": metadata} if metadata else {}
        return self.memory.create_collection(name, asked.vectors, **extra)

    def delete(self, name: str, _: Any) -> Any:
        return self.memory.delete_collection(name)

    def change(self, name: str, body: Any) -> Any:
        return self.memory.update_collection(name, metadata=body["metadata"])

    def info(self, name: str, _: Any) -> Any:
        schema = {field: {"data_type": kind, "points": 0} for field, kind in self.indexes.items()}
        return {**plain(self.memory.get_collection(name)), "payload_schema": schema}

    def index(self, name: str, body: Any) -> Any:
        kind = body["field_schema"]
        self.indexes[body["field_name"]] = kind["type"] if isinstance(kind, dict) else kind
        return {"operation_id": 1, "status": "completed"}

    def upsert(self, name: str, body: Any) -> Any:
        points = [models.PointStruct.model_validate(point) for point in body["points"]]
        return plain(self.memory.upsert(name, points, update_mode=body.get("update_mode")))

    def update(self, name: str, body: Any) -> Any:
        operations = models.UpdateOperations.model_validate(body).operations
        return [plain(done) for done in self.memory.batch_update_points(name, operations)]

    def set_payload(self, name: str, body: Any) -> Any:
        asked = models.SetPayload.model_validate(body)
        return plain(self.memory.set_payload(name, asked.payload, asked.filter or asked.points, asked.key))

    def update_vectors(self, name: str, body: Any) -> Any:
        return plain(self.memory.update_vectors(name, models.UpdateVectors.model_validate(body).points))

    def remove(self, name: str, body: Any) -> Any:
        asked = models.FilterSelector if "filter" in body else models.PointIdsList
        return plain(self.memory.delete(name, asked.model_validate(body)))

    def retrieve(self, name: str, body: Any) -> Any:
        asked = models.PointRequest.model_validate(body)
        return [
            plain(r) for r in self.memory.retrieve(name, asked.ids, asked.with_payload, asked.with_vector)
        ]

    def scroll(self, name: str, body: Any) -> Any:
        asked = models.ScrollRequest.model_validate(body)
        points, following = self.memory.scroll(
            name,
            asked.filter,
            asked.limit,
            offset=asked.offset,
            with_payload=asked.with_payload,
            with_vectors=asked.with_vector,
        )
        return {"points": [plain(point) for point in points], "next_page_offset": following}

    def count(self, name: str, body: Any) -> Any:
        return plain(self.memory.count(name))

    def query(self, name: str, body: Any) -> Any:
        (answer,) = self.memory.query_batch_points(name, [models.QueryRequest.model_validate(body)])
        return plain(answer)

    def query_batch(self, name: str, body: Any) -> Any:
        asked = models.QueryRequestBatch.model_validate(body)
        return [plain(answer) for answer in self.memory.query_batch_points(name, asked.searches)]

    def groups(self, name: str, body: Any) -> Any:
        asked = models.QueryGroupsRequest.model_validate(body)
        names = {"filter": "query_filter", "params": "search_params", "with_vector": "with_vectors"}
        fields = {names.get(field, field): getattr(asked, field) for field in asked.model_fields_set}
        return plain(
            self.memory.query_points_groups(name, **{k: v for k, v in fields.items() if v is not None})
        )


ROUTES = [
    (r"GET /collections/(\w+)/exists", "exists"),
    (r"PUT /collections/(\w+)", "create"),
    (r"GET /collections/(\w+)", "info"),
    (r"DELETE /collections/(\w+)", "delete"),
    (r"PATCH /collections/(\w+)", "change"),
    (r"PUT /collections/(\w+)/index", "index"),
    (r"PUT /collections/(\w+)/points", "upsert"),
    (r"POST /collections/(\w+)/points", "retrieve"),
    (r"POST /collections/(\w+)/points/batch", "update"),
    (r"POST /collections/(\w+)/points/payload", "set_payload"),
    (r"PUT /collections/(\w+)/points/vectors", "update_vectors"),
    (r"POST /collections/(\w+)/points/delete", "remove"),
    (r"POST /collections/(\w+)/points/scroll", "scroll"),
    (r"POST /collections/(\w+)/points/count", "count"),
    (r"POST /collections/(\w+)/points/query", "query"),
    (r"POST /collections/(\w+)/points/query/batch", "query_batch"),
    (r"POST /collections/(\w+)/points/query/groups", "groups"),
]


def plain(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, stand_in: StandIn, *args: Any) -> None:
        self.stand_in = stand_in
        super().__init__(*args)

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.stand_in.sizes += length
        path, _, asked = self.path.partition("?")
        self.stand_in.requests.append(f"{self.command} {path}")
        waiting = self.stand_in.reads
        if (self.command == "PUT" and path.endswith("/points")) or path.endswith("/points/batch"):
            assert "wait=true" in asked
            self.stand_in.writes.append(length)
            waiting = self.stand_in.faults
        fault = waiting.pop(0) if waiting else None
        if isinstance(fault, Reply):
            self.send(fault.status, fault.body, fault.headers)
            return
        if fault == "lose":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self.reply(fault, {"status": {"error": "as asked"}})
            return
        try:
            result = self.stand_in.route(self.command, path)(body)
        except LookupError as error:
            self.reply(404, {"status": {"error": f"no such thing: {error}"}})
        except ValueError as error:
            text = str(error)
            missing = re.fullmatch("Collection .+ not found", text)
            status = 404 if missing else 409 if "already exists" in text else 400
            self.reply(status, {"status": {"error": text}})
        else:
            if fault == "acknowledged":
                result = {**result, "status": "acknowledged"}
            if fault != "late":
                self.reply(200, {"result": result, "status": "ok", "time": 0.0})

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_one

    def reply(self, status: int, content: Any) -> None:
        extra = (("Retry-After", "0"),) if status == 429 else ()
        self.send(status, json.dumps(content).encode(), (("Content-Type", "application/json"), *extra))

    def send(self, status: int, data: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        self.stand_in.sizes += len(data)
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass
