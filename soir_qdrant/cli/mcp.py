"""`soir mcp`: the collections for assistants, by the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from soir_qdrant.cli.groups import Models, Server, grouped
from soir_qdrant.cli.serve import CollectionsOption, MaxOption, StoreOption, VectorNameOption

RootOption = Annotated[
    list[Path] | None,
    typer.Option("--root", help="open images below this folder only, the query's too; repeatable"),
]


@grouped
def mcp(
    server: Server,
    models: Models,
    collection: CollectionsOption = None,
    namespace: Annotated[str | None, typer.Option(help="show the images of this one alone")] = None,
    vector_name: VectorNameOption = None,
    root: RootOption = None,
    store: StoreOption = None,
    max_mb: MaxOption = 20,
) -> None:
    """Serve the collections to an assistant on stdin and stdout, by the Model Context Protocol.

    It searches by image, words and box, and gets thumbnails. Nothing can be written."""
    from soir_qdrant.integrations.mcp import create_server
    from soir_qdrant.service.settings import ServiceSettings

    settings = ServiceSettings(
        collections=tuple(collection) if collection else None,
        namespace=namespace,
        vector_name=vector_name,
        roots=tuple(root) if root else None,
        stores=tuple(store or ()),
        max_bytes=max_mb * 1_000_000,
    )
    _ = models.settings  # an unknown one is refused before the server listens
    create_server(server.client(shared=True), models.pipeline, settings).run()
