"""Options of what fills a collection: what is kept of each image, and the Ray cluster that makes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from soir_qdrant.cli.groups import Models, Reading, Server, Target, models_of
from soir_qdrant.types import IngestReport

Preset = Literal["scalar", "turbo", "binary"]


@dataclass(frozen=True, slots=True)
class Storage:
    """What is kept."""

    keep_objects: Annotated[
        bool, typer.Option(help="also store every object's vector, for --rerank objects")
    ] = False
    object_patches: Annotated[
        bool | None,
        typer.Option(
            help="store every object's patches, 0.8 kB each, which order the hits better; if not given, as the "
            "collection was made, by default where the encoder has them at hand"
        ),
    ] = None
    quantization: Annotated[Preset | None, typer.Option(help="of a new collection, on a server")] = None
    code_vectors: Annotated[
        Preset | None,
        typer.Option(help="of a new collection, on a server: have it order hits by codes in this form"),
    ] = None

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of SoirIngestor."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who makes it, where that is not this process."""

    ray: Annotated[
        str | None,
        typer.Option(
            help="have actors of a Ray cluster do it: its address, auto, or local to start one here"
        ),
    ] = None
    actors: Annotated[int, typer.Option(min=1, help="with --ray: how many")] = 2
    gpus: Annotated[float, typer.Option(min=0, help="with --ray: GPUs of each actor")] = 0

    def ingest(
        self,
        images: Any,
        server: Server,
        target: Target,
        models: Models,
        reading: Reading,
        storage: Storage,
        batch_size: int,
    ) -> IngestReport:
        """Store the images."""
        if server.path or server.edge or not server.url:
            raise typer.BadParameter("--ray writes to a server (--url)")
        from soir_qdrant import scale

        models = models_of(models, server.client(), server, target)
        place = scale.Target(
            server.url,
            api_key=server.api_key,
            settings=models.settings.model_dump(mode="json"),
            triton=models.triton,
            triton_headers=models.headers,
            exports=str(models.exports) if models.exports else None,
            onnx=str(models.onnx) if models.onnx else None,
            reading=reading.options,
            **target.place,
            **storage.options,
            **server.requests,
        )
        return scale.ingest(
            images,
            place,
            address=self.ray or scale.LOCAL,
            actors=self.actors,
            gpus=self.gpus,
            batch_size=batch_size,
        )
