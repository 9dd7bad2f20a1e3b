"""`soir serve`: the service and its page."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Annotated

import typer

from soir_qdrant.cli.console import ProfileOption, WhiteningOption, err, settings_of
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

CollectionsOption = Annotated[
    list[str] | None, typer.Option("--collection", help="one that may be used; repeatable; default: all")
]
HostOption = Annotated[str, typer.Option(help="address; any but this machine's own needs a token")]
TokenOption = Annotated[
    str | None, typer.Option(envvar="SOIR_TOKEN", help="what clients must present; better as the variable")
]
RootOption = Annotated[
    list[Path] | None, typer.Option("--root", help="open images below this folder only; repeatable")
]
WritableOption = Annotated[bool, typer.Option("--writable", help="let clients add and delete images")]
UploadsOption = Annotated[Path | None, typer.Option(help="folder that keeps images which clients send")]
AllowHostOption = Annotated[
    list[str] | None, typer.Option("--allow-host", help="another name of this service; repeatable")
]
MaxOption = Annotated[int, typer.Option(min=1, help="megabytes of one request, or of one stored file")]
QueueOption = Annotated[int, typer.Option(min=1, help="searches that may wait; then: 503, try later")]
RateOption = Annotated[float, typer.Option(min=0, help="searches a second for each client; 0: no limit")]


def serve(
    context: typer.Context,
    path: FolderOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    collection: CollectionsOption = None,
    namespace: NamespaceOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    token: TokenOption = None,
    root: RootOption = None,
    writable: WritableOption = False,
    uploads: UploadsOption = None,
    allow_host: AllowHostOption = None,
    max_mb: MaxOption = 20,
    queue: QueueOption = 32,
    rate: RateOption = 5.0,
    profile: ProfileOption = "embedded",
    whitening: WhiteningOption = None,
    triton: TritonOption = None,
    onnx: OnnxOption = None,
) -> None:
    """Serve a page on which one draws a box and finds the thing, and the same as a REST interface."""
    from soir_qdrant.service.settings import ServiceSettings

    settings = ServiceSettings(
        host=host,
        port=port,
        token=token or None,
        collections=tuple(collection) if collection else None,
        namespace=namespace,
        roots=tuple(root) if root else None,
        writable=writable,
        uploads=uploads,
        allowed_hosts=tuple(allow_host or ()),
        max_bytes=max_mb * 1_000_000,
        queue=queue,
        rate=rate,
    )
    chosen = settings_of(profile, whitening)
    client = open_client(context, path, url, api_key, shared=True)
    _need_extra()
    from soir_qdrant.service.app import create_app
    from soir_qdrant.service.run import run

    logging.getLogger("soir_qdrant.service").setLevel(logging.INFO)
    app = create_app(client, lambda: served_pipeline(chosen, triton, onnx), settings)
    run(app, settings, lambda address: err.print(f"{address}   (end with Ctrl-C)", highlight=False))


def _need_extra() -> None:
    """Raises ConfigError where the packages of the extra are not installed."""
    from soir_qdrant.errors import ConfigError

    wanted = ("fastapi", "uvicorn", "multipart", "prometheus_client")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"soir serve needs {', '.join(missing)}: pip install 'soir-qdrant[serve]'")
