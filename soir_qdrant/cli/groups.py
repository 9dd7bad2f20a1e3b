"""Options that several commands share, in groups: where Qdrant is, what makes the vectors, what is read."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from soir_qdrant.cli.console import ProfileOption, WhiteningOption, settings_of
from soir_qdrant.cli.options import MaxPixelsOption
from soir_qdrant.images.options import MAX_BYTES, MAX_PIXELS, MEMORY, ReadOptions

if TYPE_CHECKING:
    from qdrant_client.client_base import QdrantBase

    from soir_qdrant.config import Settings
    from soir_qdrant.ingest.ingestor import SoirIngestor
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime

CLIENT_TIMEOUT = 60  # seconds of a request whose method takes none of its own


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are annotated with a group become that group's options."""
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def options() -> Iterator[inspect.Parameter]:
        for name, parameter in inspect.signature(command).parameters.items():
            if name not in groups:
                yield parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
                continue
            of_group = get_type_hints(groups[name], include_extras=True)
            for field in fields(groups[name]):
                annotation = of_group[field.name]
                yield inspect.Parameter(
                    field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
                )

    @functools.wraps(command)
    def run(**values: Any) -> None:
        chosen: dict[str, Any] = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **chosen)

    signature = inspect.Signature(list(options()))
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in signature.parameters.items()}
    return run


@dataclass(frozen=True, slots=True)
class Server:
    """Which Qdrant."""

    path: Annotated[Path | None, typer.Option("--path", help="folder of an embedded Qdrant")] = None
    url: Annotated[str | None, typer.Option("--url", envvar="QDRANT_URL", help="URL of a Qdrant server")] = (
        None
    )
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="QDRANT_API_KEY", help="of the server")
    ] = None
    edge: Annotated[
        Path | None, typer.Option("--edge", help="folder of Qdrant's engine in this process (extra edge)")
    ] = None
    timeout: Annotated[
        int | None,
        typer.Option(min=1, help="seconds of one request to the server (default: 60, of a search 30)"),
    ] = None
    retry_for: Annotated[
        float | None,
        typer.Option(
            min=0, help="seconds for which a passing fault is tried again (default: 120, of a search 30)"
        ),
    ] = None

    def client(self, *, there: bool = True, shared: bool = False) -> QdrantBase:
        """there: whether a folder must hold a Qdrant already. shared: for several threads."""
        from soir_qdrant.errors import ConfigError
        from soir_qdrant.qdrant.transport import connect

        url = self.url if self.url != os.environ.get("QDRANT_URL") else None
        if sum(map(bool, (self.path, self.edge, url))) > 1:
            raise typer.BadParameter("--path, --edge and --url: choose one")
        if self.edge:
            from soir_qdrant.qdrant.edge.client import EdgeClient

            if there and not self.edge.is_dir():
                raise ConfigError(f"{self.edge}: no collection there; `soir ingest` makes one")
            return EdgeClient(self.edge)
        if self.path:
            if there and not (self.path / "meta.json").is_file():
                raise ConfigError(f"{self.path}: no embedded Qdrant there; `soir ingest` makes one")
            return connect(path=self.path, force_disable_check_same_thread=shared)
        if not self.url:
            raise typer.BadParameter("say where Qdrant is: --path FOLDER or --url URL (or set QDRANT_URL)")
        return connect(url=self.url, api_key=self.api_key, timeout=self.timeout or CLIENT_TIMEOUT)

    @property
    def requests(self) -> dict[str, Any]:
        """`timeout` and `retry` of SoirIngestor and SoirSearcher, as far as they were chosen."""
        from soir_qdrant.qdrant.transport import Retry

        chosen: dict[str, Any] = {"timeout": self.timeout} if self.timeout is not None else {}
        return chosen if self.retry_for is None else chosen | {"retry": Retry(total=self.retry_for)}


@dataclass(frozen=True, slots=True)
class Models:
    """What makes the vectors, and where that runs."""

    profile: ProfileOption = None
    whitening: WhiteningOption = None
    triton: Annotated[
        str | None,
        typer.Option(
            "--triton", envvar="SOIR_TRITON", help="host:port of a Triton that serves the models (gRPC)"
        ),
    ] = None
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", help="folder written by soir export: run its models with onnxruntime"),
    ] = None

    exports: Annotated[
        Path | None,
        typer.Option(
            "--models",
            envvar="SOIR_MODELS",
            help="with --triton: folder written by soir export, for what it does not serve (heat maps, words)",
        ),
    ] = None

    ocr: Annotated[
        bool | None,
        typer.Option(
            "--ocr/--no-ocr",
            help="read the text in images and on queries (extra ocr), or leave it (default: as the profile says)",
        ),
    ] = None

    @property
    def settings(self) -> Settings:
        settings = settings_of(self.profile, self.whitening)
        return settings if self.ocr is None else settings.but(ocr={} if self.ocr else None)

    @property
    def headers(self) -> dict[str, str]:
        """Of requests to Triton: $SOIR_TRITON_TOKEN, where it is set, as a bearer token."""
        token = os.environ.get("SOIR_TRITON_TOKEN")
        return {"authorization": f"Bearer {token}"} if token else {}

    def pipeline(self) -> Pipeline:
        """On the models of a Triton, of a folder of exports, or of this machine."""
        from soir_qdrant.assembly import make_pipeline

        return make_pipeline(self.settings, self.runtime())

    def runtime(self) -> Runtime | None:
        """Where the models run; None is here."""
        if self.triton and self.onnx:
            raise typer.BadParameter("--triton and --onnx: choose one")
        if self.exports and not self.triton:
            raise typer.BadParameter("--models goes with --triton; --onnx names such a folder itself")
        if self.triton:
            from soir_qdrant.serving.triton import TritonRuntime

            return TritonRuntime(self.triton, exports=self.exports, headers=self.headers)
        if self.onnx:
            from soir_qdrant.serving.onnx import OnnxRuntime

            return OnnxRuntime(self.onnx)
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """Which collection, and whose images."""

    collection: Annotated[str, typer.Option("--collection", help="name of the collection")] = "images"
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="of a tenant, shop ...; its images are its own")
    ] = None
    vector_name: Annotated[
        str | None, typer.Option("--vector-name", help="of our vector in a collection that has others")
    ] = None

    @property
    def place(self) -> dict[str, Any]:
        """Arguments of SoirIngestor and SoirSearcher."""
        return {
            "collection": self.collection,
            "namespace": self.namespace,
            "vector_name": self.vector_name,
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read, and how much of it at once."""

    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="pattern of paths to leave out, as in .gitignore; repeatable"),
    ] = None
    every: Annotated[
        float | None,
        typer.Option("--every", help="seconds between the frames of videos; else they are left out"),
    ] = None
    pages: Annotated[
        bool, typer.Option("--pages", help="also further pages of TIFF files, frames of animations")
    ] = False
    allow_http: Annotated[bool, typer.Option("--allow-http", help="read http:// and https:// too")] = False
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="and from addresses of private networks")
    ] = False
    max_pixels: MaxPixelsOption = MAX_PIXELS
    reduce: Annotated[
        int | None,
        typer.Option(
            "--reduce",
            min=1,
            help="pixels that are enough: JPEG files are decoded at 1/2, 1/4 or 1/8 of their sides where so many "
            "are left, such as 10000000",
        ),
    ] = None
    max_mb: Annotated[int, typer.Option(min=1, help="of the largest file")] = MAX_BYTES >> 20
    memory_mb: Annotated[int, typer.Option(min=1, help="that files and pixels take which are read ahead")] = (
        MEMORY >> 20
    )

    @property
    def options(self) -> ReadOptions:
        return ReadOptions(
            exclude=tuple(self.exclude or ()),
            every=self.every,
            pages=self.pages,
            http=self.allow_http,
            private=self.allow_private,
            max_pixels=self.max_pixels,
            reduce=self.reduce,
            max_bytes=self.max_mb << 20,
            memory=self.memory_mb << 20,
        )


def models_of(models: Models, client: QdrantBase, server: Server, target: Target) -> Models:
    """The models that were chosen; by default those that go on with the collection (`assembly.profile_of`)."""
    from soir_qdrant.assembly import profile_of
    from soir_qdrant.qdrant.collection import Store

    if models.profile or models.whitening:
        return models
    info = Store(client, target.collection, **server.requests).existing()
    return replace(models, profile=profile_of(info))


def open_ingestor(
    server: Server, target: Target, models: Models, reading: Reading, **options: Any
) -> SoirIngestor:
    """options: further ones of SoirIngestor."""
    from soir_qdrant.ingest.ingestor import SoirIngestor

    client = server.client(there=False)
    models = models_of(models, client, server, target)
    return SoirIngestor(
        client,
        pipeline=models.pipeline(),
        reading=reading.options,
        **target.place,
        **server.requests,
        **options,
    )
