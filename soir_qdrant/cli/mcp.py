"""`soir mcp`: the collections for assistants, by the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from soir_qdrant.cli.console import ProfileOption, WhiteningOption, settings_of
from soir_qdrant.cli.options import (
    FolderOption,
    KeyOption,
    NamespaceOption,
    OnnxOption,
    TritonOption,
    UrlOption,
    open_client,
    served_pipeline,
)
from soir_qdrant.cli.serve import CollectionsOption, MaxOption

RootOption = Annotated[
    list[Path] | None,
    typer.Option("--root", help="open images below this folder only, the query's too; repeatable"),
]


def mcp(
    context: typer.Context,
    path: FolderOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    collection: CollectionsOption = None,
    namespace: NamespaceOption = None,
    root: RootOption = None,
    max_mb: MaxOption = 20,
    profile: ProfileOption = "embedded",
    whitening: WhiteningOption = None,
    triton: TritonOption = None,
    onnx: OnnxOption = None,
) -> None:
    """Serve the collections to an assistant on stdin and stdout, by the Model Context Protocol: it searches by image,
    words and box, and gets thumbnails. Nothing can be written."""
    from soir_qdrant.integrations.mcp import create_server
    from soir_qdrant.service.settings import ServiceSettings

    settings = ServiceSettings(
        collections=tuple(collection) if collection else None,
        namespace=namespace,
        roots=tuple(root) if root else None,
        max_bytes=max_mb * 1_000_000,
    )
    chosen = settings_of(profile, whitening)
    client = open_client(context, path, url, api_key, shared=True)
    create_server(client, lambda: served_pipeline(chosen, triton, onnx), settings).run()
