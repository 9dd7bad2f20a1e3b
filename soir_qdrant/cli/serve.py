"""`soir serve`: the service and its page."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Annotated

import typer

from soir_qdrant.cli.console import err
from soir_qdrant.cli.groups import Models, Server, grouped

CollectionsOption = Annotated[
    list[str] | None, typer.Option("--collection", help="one that may be used; repeatable; default: all")
]
HostOption = Annotated[str, typer.Option(help="address; any but this machine's own needs a token")]
TokenOption = Annotated[
    str | None, typer.Option(envvar="SOIR_TOKEN", help="what clients must present; better as the variable")
]
VectorNameOption = Annotated[
    str | None, typer.Option("--vector-name", help="of our vector, in collections that have others")
]
RootOption = Annotated[
    list[Path] | None, typer.Option("--root", help="open images below this folder only; repeatable")
]
StoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store", help="open images below this address too, such as s3://bucket/photos; repeatable"
    ),
]
WritableOption = Annotated[bool, typer.Option("--writable", help="let clients add and delete images")]
UploadsOption = Annotated[Path | None, typer.Option(help="folder that keeps images which clients send")]
AllowHostOption = Annotated[
    list[str] | None, typer.Option("--allow-host", help="another name of this service; repeatable")
]
MaxOption = Annotated[int, typer.Option(min=1, help="megabytes of one request, or of one stored file")]
QueueOption = Annotated[int, typer.Option(min=1, help="searches that may wait; then: 503, try later")]
RateOption = Annotated[float, typer.Option(min=0, help="searches a second for each client; 0: no limit")]


@grouped
def serve(
    server: Server,
    models: Models,
    collection: CollectionsOption = None,
    namespace: Annotated[str | None, typer.Option(help="show the images of this one alone")] = None,
    vector_name: VectorNameOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    token: TokenOption = None,
    root: RootOption = None,
    store: StoreOption = None,
    writable: WritableOption = False,
    uploads: UploadsOption = None,
    allow_host: AllowHostOption = None,
    max_mb: MaxOption = 20,
    queue: QueueOption = 32,
    rate: RateOption = 5.0,
) -> None:
    """Serve a page on which one draws a box and finds the thing, and the same as a REST interface."""
    from soir_qdrant.service.settings import ServiceSettings

    settings = ServiceSettings(
        host=host,
        port=port,
        token=token or None,
        collections=tuple(collection) if collection else None,
        namespace=namespace,
        vector_name=vector_name,
        roots=tuple(root) if root else None,
        stores=tuple(store or ()),
        writable=writable,
        uploads=uploads,
        allowed_hosts=tuple(allow_host or ()),
        max_bytes=max_mb * 1_000_000,
        queue=queue,
        rate=rate,
    )
    _ = models.settings  # an unknown one is refused before the server listens
    client = server.client(shared=True)
    _need_extra()
    from soir_qdrant.service.app import create_app
    from soir_qdrant.service.run import run

    logging.getLogger("soir_qdrant.service").setLevel(logging.INFO)
    app = create_app(client, models.pipeline, settings)
    run(app, settings, lambda address: err.print(f"{address}   (end with Ctrl-C)", highlight=False))


def _need_extra() -> None:
    """Raises ConfigError where the packages of the extra are not installed."""
    from soir_qdrant.errors import ConfigError

    wanted = ("fastapi", "uvicorn", "multipart", "prometheus_client", "sklearn")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"soir serve needs {', '.join(missing)}: pip install 'soir-qdrant[serve]'")
