"""Models served by NVIDIA Triton, behind the protocols of the local ones.

    SoirIngestor(client, runtime=TritonRuntime("host:8001")).add("photos/")

Requests are gRPC, several in flight. What passes by itself (a restart, a full queue, a slow answer) is tried
again; what does not is a clear error. The model is compared with what the client speaks before the first
image, and again whenever the connection was lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.kinds import DetectorSettings
from soir_qdrant.recipe import short_hash
from soir_qdrant.serving import last_block as last_blocks
from soir_qdrant.serving import spec
from soir_qdrant.serving.model_spec import ModelSpec
from soir_qdrant.serving.runtime import Runtime
from soir_qdrant.serving.served import ServedEncoder
from soir_qdrant.serving.served_detector import ServedDetector
from soir_qdrant.serving.served_segmenter import ServedSegmenter
from soir_qdrant.serving.session import Arrays, T, U
from soir_qdrant.serving.triton_connection import NotServed, TritonConnection

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline


log = logging.getLogger(__name__)


class TritonSession:
    """A `session.Session` on one model of a server, compared with its spec at once.

    fingerprint: the weights it must have; None takes those it has. Raises ConfigError where the model is
    missing, has other shapes, another spec or another fingerprint; ServerError where the server does not
    answer.
    """

    def __init__(self, connection: TritonConnection, name: str, fingerprint: str | None = None) -> None:
        self.connection, self.name = connection, name
        config = self._config()
        self.spec, self.fingerprint = self._agree(config, fingerprint)
        self.batch = min(self.spec.usual_batch, int(config.get("max_batch_size", 0)))
        self._check_shapes()

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `session.Session`."""
        if not self.spec.max_batch:
            return self._infer(inputs, outputs)
        rows = len(next(iter(inputs.values())))
        chunks = [{k: v[i : i + self.batch] for k, v in inputs.items()} for i in range(0, rows, self.batch)]
        parts = self.connection.batches(lambda chunk: self._infer(chunk, outputs), chunks)
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def each(self, action: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """See `TritonConnection.each`."""
        return self.connection.each(action, items)

    def _infer(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        import tritonclient.grpc as grpc

        requested = [grpc.InferRequestedOutput(name) for name in outputs]
        with self._inputs(inputs) as (tensors, renew):

            def lost() -> None:
                self._still_the_same()
                renew()

            answer = self.connection.call(
                f"run {self.name}", "infer", self.name, tensors, outputs=requested, lost=lost
            )
        arrays = {name: answer.as_numpy(name) for name in outputs}
        sent, received = (sum(a.nbytes for a in side.values()) for side in (inputs, arrays))
        self.connection.count(sent, received)
        return arrays

    @contextmanager
    def _inputs(self, inputs: Arrays) -> Iterator[tuple[list[Any], Callable[[], None]]]:
        """tritonclient's inputs, and what to call when the server was restarted."""
        import tritonclient.grpc as grpc

        arrays = [np.ascontiguousarray(inputs[tensor.name]) for tensor in self.spec.inputs]
        tensors = [
            grpc.InferInput(tensor.name, list(array.shape), tensor.dtype)
            for tensor, array in zip(self.spec.inputs, arrays, strict=True)
        ]
        if self.connection.regions:
            with self.connection.regions.filled(tensors, arrays) as renew:
                yield tensors, renew
            return
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.set_data_from_numpy(array)
        yield tensors, lambda: None

    def _config(self) -> dict[str, Any]:
        try:
            answer = self.connection.call(f"find {self.name}", "get_model_config", self.name, as_json=True)
        except NotServed as error:
            raise ConfigError(
                f"{error}. `soir export` writes it; see that the server was started on that folder, and that "
                "its log says the model is READY"
            ) from error
        config: dict[str, Any] = answer["config"]
        return config

    def _agree(self, config: dict[str, Any], wanted: str | None) -> tuple[ModelSpec, str]:
        parameters = config.get("parameters", {})
        description = {key: str(value.get("string_value", "")) for key, value in parameters.items()}
        where = f"{self.name} at {self.connection.host}"
        model, fingerprint = spec.read(description, where)
        if model.name != self.name:
            raise ConfigError(f"{where} is the model {model.name}: it was renamed after its export")
        if wanted and fingerprint != wanted:
            raise ConfigError(
                f"{where} has the weights {fingerprint}, and {wanted} is asked for: serve the "
                "export of those weights, or make a new collection with these"
            )
        return model, fingerprint

    def _check_shapes(self) -> None:
        """What the server loaded against the spec."""
        metadata = self.connection.call(f"look at {self.name}", "get_model_metadata", self.name, as_json=True)
        for side, tensors in (("inputs", self.spec.inputs), ("outputs", self.spec.outputs)):
            served = {t["name"]: (t["datatype"], tuple(map(int, t["shape"]))) for t in metadata.get(side, [])}
            expected = {t.name: (t.dtype, self.spec.shape(t)) for t in tensors}
            if served != expected:
                raise ConfigError(
                    f"{self.name} at {self.connection.host}: {side} are {served}, expected {expected}; the "
                    "configuration was changed after the export: export the model again"
                )

    def _still_the_same(self) -> None:
        """After a lost connection: whoever answers now must serve the same weights."""
        self._agree(self._config(), self.fingerprint)


class TritonEncoder(ServedEncoder):
    """`contracts.Encoder`. server: a connection, or its URL. last_block: the file that was exported with the
    encoder, for the refinement. fingerprint: the weights it must have."""

    def __init__(
        self,
        server: TritonConnection | str,
        *,
        last_block: str | Path | None = None,
        fingerprint: str | None = None,
    ) -> None:
        session = TritonSession(_connection(server), spec.ENCODER, fingerprint)
        load = (lambda: last_blocks.load(Path(last_block), session.fingerprint)) if last_block else None
        super().__init__(session, last_block=load)


class TritonDetector(ServedDetector):
    """`contracts.Detector`. server: a connection, or its URL. settings: None takes the kind that is served."""

    def __init__(self, server: TritonConnection | str, settings: DetectorSettings | None = None) -> None:
        super().__init__(TritonSession(_connection(server), spec.DETECTOR), settings)


class TritonSegmenter(ServedSegmenter):
    """`contracts.Segmenter`: SAM. server: a connection, or its URL."""

    def __init__(self, server: TritonConnection | str) -> None:
        connection = _connection(server)
        super().__init__(
            TritonSession(connection, spec.SEGMENTER_ENCODER),
            TritonSession(connection, spec.SEGMENTER_DECODER),
        )


class TritonRuntime(Runtime):
    """All models of a server: `SoirIngestor(client, runtime=TritonRuntime("host:8001"))`.

    url: see `TritonConnection`, as are options. settings, last_block, tokenizer, exports: see `Runtime`. fingerprint:
    the encoder weights that the server must have; None takes those it has (a collection refuses others anyway).
    """

    def __init__(
        self,
        url: str,
        settings: Settings | None = None,
        *,
        last_block: str | Path | None = None,
        tokenizer: str | Path | None = None,
        exports: str | Path | None = None,
        fingerprint: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(settings, last_block=last_block, tokenizer=tokenizer, exports=exports)
        self.connection = TritonConnection(url, **options)
        self._fingerprint = fingerprint
        self._sessions: dict[str, TritonSession] = {}
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        return self.connection.host

    def session(self, name: str) -> TritonSession:
        with self._lock:
            if name not in self._sessions:
                wanted = self._fingerprint if name == spec.ENCODER else None
                self._sessions[name] = TritonSession(self.connection, name, wanted)
            return self._sessions[name]

    def serves(self, name: str) -> bool:
        return self.connection.serves(name)

    def pipeline(self, settings: Settings | None = None) -> Pipeline:
        """See `Runtime`. Where `soir_scene` serves these settings, whole images are described by the server."""
        pipeline = super().pipeline(settings)
        if not self.connection.serves(spec.SCENE):
            return pipeline
        from soir_qdrant.serving.scene import ScenePipeline

        session, recipe = self.session(spec.SCENE), short_hash(pipeline.recipe)
        if session.fingerprint != recipe:
            log.warning(
                "%s at %s was exported for other settings (recipe %s, these are %s): its models are used one by "
                "one, which takes more of the wire", spec.SCENE, self.connection.host, session.fingerprint, recipe,
            )  # fmt: skip
            return pipeline
        return ScenePipeline(
            pipeline.settings,
            session,
            detector=pipeline.detector,
            segmenter=pipeline.segmenter,
            encoder=pipeline.encoder,
            text_encoder=self.make_text_encoder(pipeline.settings),
        )

    def close(self) -> None:
        """Ends its threads and the channel."""
        self.connection.close()


def _connection(server: TritonConnection | str) -> TritonConnection:
    return TritonConnection(server) if isinstance(server, str) else server
