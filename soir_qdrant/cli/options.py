"""Options that several commands share, and what they mean: a client, a pipeline, a box, a filter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soir_qdrant.cli.console import settings_of

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime

FolderOption = Annotated[Path | None, typer.Option("--path", help="folder of an embedded Qdrant")]
UrlOption = Annotated[str | None, typer.Option("--url", envvar="QDRANT_URL", help="URL of a Qdrant server")]
KeyOption = Annotated[str | None, typer.Option("--api-key", envvar="QDRANT_API_KEY", help="of the server")]
NameOption = Annotated[str, typer.Option("--collection", help="name of the collection")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", help="of a tenant, shop ...; its pictures are its own")
]
TritonOption = Annotated[
    str | None,
    typer.Option(
        "--triton", envvar="SOIR_TRITON", help="host:port of a Triton that serves the models (gRPC)"
    ),
]
OnnxOption = Annotated[
    Path | None, typer.Option("--onnx", help="folder written by soir export: run its models with onnxruntime")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


def open_client(
    context: typer.Context,
    path: Path | None,
    url: str | None,
    api_key: str | None,
    *,
    there: bool = True,
    shared: bool = False,
) -> QdrantClient:
    """there: whether a folder must hold a Qdrant already. shared: for several threads."""
    from soir_qdrant.errors import ConfigError
    from soir_qdrant.qdrant.transport import connect

    source = context.get_parameter_source("url")
    if path and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("--path and --url: choose one")
    if not path and not url:
        raise typer.BadParameter("say where Qdrant is: --path FOLDER or --url URL (or set QDRANT_URL)")
    if path:
        if there and not (path / "meta.json").is_file():
            raise ConfigError(f"{path}: no embedded Qdrant there; `soir ingest` makes one")
        return connect(path=path, force_disable_check_same_thread=shared)
    return connect(url=url, api_key=api_key)


def pipeline_of(profile: str, whitening: Path | None) -> Pipeline:
    from soir_qdrant.assembly import make_pipeline

    return make_pipeline(settings_of(profile, whitening))


def served_pipeline(settings: Settings, triton: str | None, onnx: Path | None) -> Pipeline:
    """The pipeline on the models of a Triton, of a folder of exports, or of this machine."""
    from soir_qdrant.assembly import make_pipeline

    return make_pipeline(settings, runtime_of(triton, onnx))


def runtime_of(triton: str | None, onnx: Path | None) -> Runtime | None:
    """Where the models run; None is here. $SOIR_TRITON_TOKEN, where it is set, is sent to Triton as a bearer
    token."""
    if triton and onnx:
        raise typer.BadParameter("--triton and --onnx: choose one")
    if triton:
        from soir_qdrant.serving.triton import TritonRuntime

        token = os.environ.get("SOIR_TRITON_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return TritonRuntime(triton, headers=headers)
    if onnx:
        from soir_qdrant.serving.onnx import OnnxRuntime

        return OnnxRuntime(onnx)
    return None


def box_of(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--box {text!r}: give four numbers, x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def filter_of(text: str | None) -> Any:
    if text is None:
        return None
    from pydantic import ValidationError
    from qdrant_client import models

    try:
        return models.Filter.model_validate_json(text)
    except ValidationError as error:
        raise typer.BadParameter(f"--filter: no Qdrant filter ({error.errors()[0]['msg']})") from None


def collection_info(client: QdrantClient, name: str) -> dict[str, Any]:
    from soir_qdrant.errors import CollectionError

    if not client.collection_exists(name):
        raise CollectionError(f"no collection {name!r} there; make one with `soir ingest`")
    held = client.get_collection(name)
    metadata = getattr(held.config, "metadata", None)
    return {"points": client.count(name).count, "metadata": metadata}
