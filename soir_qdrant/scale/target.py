"""Where the images go and what describes them, as actors get it: plain values, sent between machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient

from soir_qdrant.config import Settings
from soir_qdrant.images import ReadOptions
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.schema import Preset
from soir_qdrant.qdrant.transport import Retry, connect


@dataclass(frozen=True, slots=True)
class Target:
    """One collection of a Qdrant server, and the pipeline that fills it.

    Attributes:
        url: of the server; embedded Qdrant serves one process at a time, so it is none.
        collection: its name.
        api_key: of the server.
        settings: of the pipeline; None is the default profile.
        triton: host:port of a Triton that serves the models; None: each actor has its own.
        triton_headers: sent to it with every request, such as {"authorization": "Bearer ..."}.
        exports: folder of `soir export` with what that Triton does not serve; see `serving.runtime.Runtime`.
        onnx: folder of `soir export`, at the same place on every machine; None: torch.
        vector_name, namespace, keep_objects, object_patches, quantization, code_vectors: see `SoirIngestor`.
        reading: which files are read, and the limits of size and memory.
        timeout: seconds for one request.
        retry: for lost connections, timeouts, 429 and 5xx.
    """

    url: str
    collection: str = "images"
    api_key: str | None = None
    settings: Mapping[str, Any] | None = None
    triton: str | None = None
    onnx: str | None = None
    namespace: str | None = None
    keep_objects: bool = False
    object_patches: bool | None = None
    quantization: Preset | None = None
    code_vectors: Preset | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    retry: Retry = field(default_factory=Retry)
    timeout: int = 60
    vector_name: str | None = None
    triton_headers: Mapping[str, str] | None = None
    exports: str | None = None

    def client(self) -> QdrantClient:
        """A client of the server."""
        return connect(url=self.url, api_key=self.api_key, timeout=self.timeout, check_compatibility=False)

    def store(self) -> Store:
        """The collection, without a pipeline."""
        return Store(self.client(), self.collection, **self._place)

    def ingestor(self) -> SoirIngestor:
        """An ingestor of the collection. Its pipeline is made on first use, but on Triton, which is asked now."""
        settings = Settings.model_validate(self.settings) if self.settings else Settings.for_profile()
        return SoirIngestor(
            self.client(),
            self.collection,
            pipeline=self._pipeline(settings),
            keep_objects=self.keep_objects,
            object_patches=self.object_patches,
            quantization=self.quantization,
            code_vectors=self.code_vectors,
            reading=self.reading,
            **self._place,
        )

    @property
    def _place(self) -> dict[str, Any]:
        return {
            "vector_name": self.vector_name,
            "namespace": self.namespace,
            "timeout": self.timeout,
            "retry": self.retry,
        }

    def _pipeline(self, settings: Settings) -> Any:
        from soir_qdrant.assembly import make_pipeline

        if self.triton:
            from soir_qdrant.serving.triton import TritonRuntime

            runtime = TritonRuntime(self.triton, exports=self.exports, headers=self.triton_headers)
            return make_pipeline(settings, runtime)
        if self.onnx:
            from soir_qdrant.serving.onnx import OnnxRuntime

            return make_pipeline(settings, OnnxRuntime(Path(self.onnx)))
        return make_pipeline(settings)
