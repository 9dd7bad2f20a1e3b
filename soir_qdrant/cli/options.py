"""Options that commands read alike: JSON, a box, a filter; and what a collection is like."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qdrant_client.client_base import QdrantBase

    from soir_qdrant.qdrant.transport import Retry

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
MaxPixelsOption = Annotated[int, typer.Option(min=1, help="of the largest image that is decoded")]
BatchOption = Annotated[int, typer.Option(min=1, help="images at once; bounds the memory")]


def _starting_head(context: typer.Context, start: Path | None) -> Path | None:
    """The file of "shipped": the part that ships and that the command trains."""
    from soir_qdrant.recipe import SHIPPED

    return SHIPPED / f"{context.info_name}.safetensors" if start == Path("shipped") else start


StartOption = Annotated[
    Path | None,
    typer.Option(
        callback=_starting_head,
        help="a head to go on from, a file or shipped (default: one without training)",
    ),
]


def box_of(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--box {text!r}: give four numbers, x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def check_chosen(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Raises BadParameter where the command line has another option than these. allowed: names of parameters."""
    for name, option in _chosen(context):
        if name not in allowed:
            raise typer.BadParameter(f"{option} {why}")


def check_not_chosen(context: typer.Context, refused: Collection[str], why: str) -> None:
    """Raises BadParameter where the command line has one of these options. refused: names of parameters."""
    for name, option in _chosen(context):
        if name in refused:
            raise typer.BadParameter(f"{option} {why}")


def _chosen(context: typer.Context) -> Iterator[tuple[str, str]]:
    """Name and spelling of the options on the command line."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source and source.name == "COMMANDLINE":
            yield parameter.name or "", parameter.opts[0]


def filter_of(text: str | None) -> Any:
    if text is None:
        return None
    from pydantic import ValidationError
    from qdrant_client import models

    try:
        return models.Filter.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise typer.BadParameter(f"--filter: no Qdrant filter ({place}: {first['msg']})") from None


def collection_names(client: QdrantBase, retry: Retry) -> list[str]:
    """Raises ServerError where the server cannot be reached or refuses."""
    return [item.name for item in retry(client.get_collections, "list the collections").collections]


def collection_info(client: QdrantBase, name: str, retry: Retry) -> dict[str, Any]:
    """How many points, and the metadata. Raises CollectionError where there is no such collection, and ServerError."""
    from soir_qdrant.errors import CollectionError
    from soir_qdrant.qdrant.collection import Store

    store = Store(client, name, retry=retry)
    if not store.exists():
        raise CollectionError(f"no collection {name!r} there; make one with `soir ingest`")
    info = store.call("look into", client.get_collection)
    count = store.call("count", client.count).count
    return {"points": count, "metadata": getattr(info.config, "metadata", None)}
