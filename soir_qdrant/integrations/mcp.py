"""A server of the Model Context Protocol: an assistant searches the collections by image, words and box, and sees
what was found."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from PIL import Image as PillowImage
from qdrant_client.client_base import QdrantBase

from soir_qdrant.errors import ConfigError, ImageError, ObjectsError, SoirError
from soir_qdrant.images import load
from soir_qdrant.images.addresses import split
from soir_qdrant.integrations.hit_fields import hit_fields
from soir_qdrant.query import Query
from soir_qdrant.report.html import Shown, drawn
from soir_qdrant.search.searcher import SoirSearcher
from soir_qdrant.service.collections import Collections
from soir_qdrant.service.local import threadsafe
from soir_qdrant.service.originals import Originals
from soir_qdrant.service.pictures import opened
from soir_qdrant.service.settings import ServiceSettings
from soir_qdrant.types import Box, Crop, Hit, Text

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Image
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise ConfigError(f"{error}: pip install 'soir-qdrant[mcp]'") from error

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline

SIDE, MAX_HITS = 384, 20  # pixels of a thumbnail's longer side; of one answer
READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
INSTRUCTIONS = (
    "Finds the photographs that hold one particular small thing, and where in them it is. Search with an image of "
    "the thing alone, or with a photograph and a box round the thing: x0, y0, x1, y1 in pixels. Every answer is a "
    "JSON list of hits, best first, followed by a thumbnail of each with the object that matched in a green box."
)


def create_server(
    client: QdrantBase, pipeline: Callable[[], Pipeline], settings: ServiceSettings | None = None
) -> MCPServer:
    """The server; `run()` serves stdin and stdout.

    Args:
        client: of Qdrant.
        pipeline: makes the pipeline; called by the first search.
        settings: of the service, those that hold here too: `collections`, `namespace`, `vector_name`, `roots` (images
            are opened below these folders only, the query's too), `max_bytes`, `max_pixels`.

    Raises:
        ConfigError: where the package mcp is missing.
    """
    tools = _Tools(client, pipeline, settings or ServiceSettings())
    server = MCPServer("soir", instructions=INSTRUCTIONS, log_level="WARNING")
    for tool in (
        tools.list_collections,
        tools.search_by_image,
        tools.search_by_words,
        tools.search_by_object,
    ):
        server.tool(annotations=READ_ONLY, structured_output=False)(tool)
    return server


class _Tools:
    """The tools; their docstrings are what the assistant reads."""

    def __init__(
        self, client: QdrantBase, pipeline: Callable[[], Pipeline], settings: ServiceSettings
    ) -> None:
        self.client, self.settings = threadsafe(client), settings
        self.collections = Collections(
            self.client, settings.collections, settings.folders, settings.namespace, settings.stores
        )
        self.originals = Originals(settings)
        self._make_pipeline, self._lock = pipeline, RLock()
        self._searchers: dict[str, SoirSearcher] = {}
        self._pipeline: Pipeline | None = None

    def list_collections(self) -> str:
        """List the collections of images that can be searched, with the number of images in each."""
        try:
            return json.dumps({name: self.collections.count(name) for name in self.collections.names()})
        except SoirError as error:
            raise ToolError(str(error)) from error

    def search_by_image(
        self, image: str, box: list[float] | None = None, collection: str | None = None, limit: int = 5
    ) -> list[Any]:
        """Find the images that hold the thing which another image shows.

        image: the path of a file, or a data URI (data:image/png;base64,...). box: x0, y0, x1, y1 in pixels, the thing
        in it; without one, the image is of the thing alone. collection: needed where there are several. limit: hits.
        """
        return self._answer(lambda: _part(self._query_image(image), box), collection, limit)

    def search_by_words(self, words: str, collection: str | None = None, limit: int = 5) -> list[Any]:
        """Find the images that hold what words describe, where the models of this server read words."""
        return self._answer(lambda: Text(words), collection, limit)

    def search_by_object(
        self, id: str, object: int | None = None, collection: str | None = None, limit: int = 5
    ) -> list[Any]:
        """Find the images that hold an object of an image which was found before.

        id: of that hit. object: its number there, as hits have it; without one, what the whole image shows.
        """

        def query() -> Query:
            payload = self.collections.payload(self.collections.named(collection), id)
            soir = payload.get("soir") or {}
            stored = soir.get("objects") or []
            if object is not None and not 0 <= object < len(stored):
                raise ObjectsError(f"object {object}: this image has {len(stored)}, counted from 0")
            _, data = self.originals.open(soir)
            return _part(data, None if object is None else stored[object]["box"])

        return self._answer(query, collection, limit)

    def _answer(self, query: Callable[[], Query], collection: str | None, limit: int) -> list[Any]:
        """Hits as JSON, then a thumbnail of each whose image can be opened."""
        if not 1 <= limit <= MAX_HITS:
            raise ToolError(f"limit {limit}: give 1 to {MAX_HITS}")
        try:
            searcher = self._searcher(self.collections.named(collection))
            hits = searcher.search(query(), limit=limit)
        except SoirError as error:
            raise ToolError(str(error)) from error
        listed, thumbnails = [], []
        for hit in hits:
            fields = {**hit_fields(hit), **self._shown_name(hit)}
            try:
                thumbnails.append(Image(data=self._thumbnail(hit), format="jpeg"))
                fields["thumbnail"] = len(thumbnails)
            except ImageError as error:
                fields["thumbnail"], fields["no_thumbnail"] = None, str(error)
            listed.append(fields)
        return [json.dumps(listed, ensure_ascii=False), *thumbnails]

    def _shown_name(self, hit: Hit) -> dict[str, Any]:
        """The place of the file: below the folders where these are named, else as it is."""
        return {"uri": self.collections.fields(hit.payload)["name"]} if self.settings.folders else {}

    def _searcher(self, collection: str) -> SoirSearcher:
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._make_pipeline()
            if collection not in self._searchers:
                self._searchers[collection] = SoirSearcher(
                    self.client,
                    collection,
                    pipeline=self._pipeline,
                    vector_name=self.settings.vector_name,
                    namespace=self.settings.namespace,
                    max_pixels=self.settings.max_pixels,
                )
            return self._searchers[collection]

    def _query_image(self, image: str) -> str | bytes:
        """A path below the folders, or the bytes of a data URI, once they are known to be an image."""
        if not image.startswith("data:"):
            path, folders = Path(image).expanduser(), self.settings.folders
            file = Path(split(str(path))[0]).resolve()  # of a page or a frame, the file that is opened
            if folders is not None and not any(file.is_relative_to(folder) for folder in folders):
                raise ImageError(f"{image} lies outside the folders of this server (--root)")
            return str(path)
        try:
            data = base64.b64decode(image.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ImageError(f"image: not base64 after the comma of the data URI ({error})") from error
        if len(data) > self.settings.max_bytes:
            raise ImageError(
                f"image: {len(data):,} bytes, more than the {self.settings.max_bytes:,} that are read"
            )
        opened(data, self.settings.max_pixels)
        return data

    def _thumbnail(self, hit: Hit) -> bytes:
        """A JPEG of the hit's image with the matched object boxed, without metadata. Raises ImageError."""
        _, data = self.originals.open(hit.payload.get("soir") or {})
        rgb = load(data, name=str(hit.id), max_pixels=self.settings.max_pixels).rgb
        width = max(1, round(SIDE * rgb.shape[1] / max(rgb.shape[:2])))
        stream = io.BytesIO()
        PillowImage.fromarray(drawn(Shown(rgb, [], hit.box, ""), width)).save(stream, "JPEG", quality=85)
        return stream.getvalue()


def _part(image: str | bytes, box: list[float] | None) -> Query:
    if box is None:
        return image
    if len(box) != 4:
        raise ConfigError(f"box {box}: give four numbers, x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = box
    corners: Box = (x0, y0, x1, y1)
    return Crop(image, corners)
