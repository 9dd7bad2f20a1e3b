"""Models served by NVIDIA Triton, behind the protocols of the local ones.

    SoirIngestor(client, runtime=TritonRuntime("host:8001")).add("photos/")

Requests are gRPC, several in flight. What passes by itself (a restart, a full queue, a slow answer) is tried
again; what does not is a clear error. The model is compared with what the client speaks before the first
image, and again whenever the connection was lost.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import DetectorSettings, Settings
from soir_qdrant.errors import ConfigError, ServerError
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.serving import last_block as last_blocks
from soir_qdrant.serving import spec
from soir_qdrant.serving.runtime import Runtime
from soir_qdrant.serving.served import Arrays, ServedDetector, ServedEncoder, ServedSegmenter, T, U
from soir_qdrant.serving.shared_memory import Regions

log = logging.getLogger(__name__)

MAX_MESSAGE = 256 * 1024 * 1024  # bytes; gRPC's own limit of 4 MB is less than a batch of tokens
# Giving any option to tritonclient replaces all of its own, so the message sizes are among these. Servers
# close connections that are pinged more than twice in five minutes without data, hence the rare pings.
CHANNEL: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
PASSING = ("UNAVAILABLE", "CANCELLED")  # a restart, a full queue: worth waiting for
TIMEOUTS = 2  # attempts that may end at the deadline: repeating makes a slow server slower


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form. root: of the authority that signed the server's certificate; None takes the
    system's. key, chain: of this client, where the server asks for them."""

    root: str | Path | None = None
    key: str | Path | None = None
    chain: str | Path | None = None


class TritonConnection:
    """One gRPC channel to a server, shared by the models.

    url: "host:8001", "grpc://host:8001", or "grpcs://host:8001" for TLS. timeout: seconds for one attempt of
    one request. retry: for lost connections and full queues. in_flight: requests at once. tls: None is
    without, unless the URL says so. headers: sent with every request, such as {"authorization": "Bearer
    ..."}. shared_memory: hand inputs over in the system's shared memory; the server must run on this host,
    share /dev/shm, and (from 2.68 on) be started with --allow-client-shm=true.
    Raises ConfigError where tritonclient is missing or a setting is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        retry: Retry | None = None,
        in_flight: int = 4,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        shared_memory: bool = False,
    ) -> None:
        if timeout <= 0:
            raise ConfigError(f"timeout {timeout}: give seconds, more than 0")
        if in_flight < 1:
            raise ConfigError(f"in_flight {in_flight}: at least 1 request")
        scheme, _, rest = url.rpartition("://")
        self.host = rest.rstrip("/")
        name, _, port = self.host.rpartition(":")
        if scheme not in ("", "grpc", "grpcs") or not name or not port.isdigit():
            raise ConfigError(
                f"Triton's URL {url!r}: give host:port of its gRPC service, such as triton:8001"
            )
        self.timeout, self.in_flight = timeout, in_flight
        self.retry = retry or Retry(attempts=8)
        self.headers = dict(headers or {})
        self._client = _client(self.host, tls or (Tls() if scheme == "grpcs" else None))
        self._requests = ThreadPoolExecutor(in_flight, "soir-triton")
        self._items = ThreadPoolExecutor(in_flight, "soir-triton-item")
        self.regions = Regions(self) if shared_memory else None

    def close(self) -> None:
        """Ends the threads and the channel. Nothing can be asked afterwards."""
        self._items.shutdown()
        self._requests.shutdown()
        if self.regions:
            self.regions.close()
        self._client.close()

    def call(
        self, what: str, method: str, *args: Any, lost: Callable[[], None] | None = None, **kw: Any
    ) -> Any:
        """A method of tritonclient's client, tried again while its errors are passing ones.

        what: the action in words, for messages. lost: called before a further attempt. Raises ServerError.
        """
        from tritonclient.utils import InferenceServerException

        timeouts = 0
        for attempt in range(1, self.retry.attempts + 1):
            try:
                if attempt > 1 and lost:
                    lost()
                return getattr(self._client, method)(
                    *args, headers=self.headers, client_timeout=self.timeout, **kw
                )
            except InferenceServerException as error:
                status = str(error.status()).rpartition(".")[2]
                timeouts += status == "DEADLINE_EXCEEDED"
                passing = status in PASSING or (status == "DEADLINE_EXCEEDED" and timeouts < TIMEOUTS)
                if not passing or attempt == self.retry.attempts:
                    tried = timeouts if status == "DEADLINE_EXCEEDED" else attempt
                    raise self._error(what, status, error.message(), tried) from error
                wait = min(self.retry.first * 2 ** (attempt - 1), self.retry.most) * random.uniform(0.5, 1)
                log.warning("could not %s, next attempt in %.1f s: %s", what, wait, error.message())
                time.sleep(wait)
        raise ConfigError(f"attempts must be at least 1, not {self.retry.attempts}")

    def each(self, action: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """`action` on every item, `in_flight` at once, in order."""
        return list(self._items.map(action, items))

    def batches(self, action: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """The same for the batches of one call. Threads of their own: an item may wait for its batches."""
        return [action(items[0])] if len(items) == 1 else list(self._requests.map(action, items))

    def _error(self, what: str, status: str, message: str, attempts: int) -> ServerError:
        where = f"could not {what} at {self.host}"
        if status == "DEADLINE_EXCEEDED":
            return ServerError(
                f"{where}: no answer within {self.timeout:g} s, {attempts} times; give the server more time "
                "(timeout), fewer requests at once (in_flight), or a faster device"
            )
        if status in PASSING:
            return ServerError(
                f"{where}: Triton did not answer in {attempts} attempts ({message}); see that it runs, is "
                "ready (/v2/health/ready) and can be reached, and that its queue is not always full"
            )
        if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return ServerError(f"{where}: this client is refused ({message}); see tls and headers")
        if status == "NOT_FOUND":
            return NotServed(f"{where}: {message}")
        return ServerError(f"{where}: {status or 'error'}: {message}")


class NotServed(ServerError):
    """The server answers, and has no such model."""


class TritonSession:
    """A `served.Session` on one model of a server, compared with its spec at once.

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
        """See `served.Session`."""
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

        asked = [grpc.InferRequestedOutput(name) for name in outputs]
        with self._inputs(inputs) as (given, renew):

            def lost() -> None:
                self._still_the_same()
                renew()

            answer = self.connection.call(
                f"run {self.name}", "infer", self.name, given, outputs=asked, lost=lost
            )
        return {name: answer.as_numpy(name) for name in outputs}

    @contextmanager
    def _inputs(self, inputs: Arrays) -> Iterator[tuple[list[Any], Callable[[], None]]]:
        """tritonclient's inputs, and what to call when the server was restarted."""
        import tritonclient.grpc as grpc

        arrays = [np.ascontiguousarray(inputs[tensor.name]) for tensor in self.spec.inputs]
        given = [
            grpc.InferInput(tensor.name, list(array.shape), tensor.dtype)
            for tensor, array in zip(self.spec.inputs, arrays, strict=True)
        ]
        if self.connection.regions:
            with self.connection.regions.filled(given, arrays) as renew:
                yield given, renew
            return
        for tensor, array in zip(given, arrays, strict=True):
            tensor.set_data_from_numpy(array)
        yield given, lambda: None

    def _config(self) -> dict[str, Any]:
        try:
            found = self.connection.call(f"find {self.name}", "get_model_config", self.name, as_json=True)
        except NotServed as error:
            raise ConfigError(
                f"{error}. `soir export` writes it; see that the server was started on that folder, and that "
                "its log says the model is READY"
            ) from error
        config: dict[str, Any] = found["config"]
        return config

    def _agree(self, config: dict[str, Any], wanted: str | None) -> tuple[spec.ModelSpec, str]:
        told = {k: str(v.get("string_value", "")) for k, v in config.get("parameters", {}).items()}
        where = f"{self.name} at {self.connection.host}"
        held, fingerprint = spec.read(told, where)
        if held.name != self.name:
            raise ConfigError(f"{where} is the model {held.name}: it was renamed after its export")
        if wanted and fingerprint != wanted:
            raise ConfigError(
                f"{where} has the weights {fingerprint}, and {wanted} is asked for: serve the "
                "export of those weights, or make a new collection with these"
            )
        return held, fingerprint

    def _check_shapes(self) -> None:
        """What the server loaded against the spec."""
        found = self.connection.call(f"look at {self.name}", "get_model_metadata", self.name, as_json=True)
        for side, tensors in (("inputs", self.spec.inputs), ("outputs", self.spec.outputs)):
            served = {t["name"]: (t["datatype"], tuple(map(int, t["shape"]))) for t in found.get(side, [])}
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
    """`types.Encoder`. server: a connection, or its URL. tokens: whether to fetch them. last_block: the file
    that was exported with the encoder, for the refinement. fingerprint: the weights it must have."""

    def __init__(
        self,
        server: TritonConnection | str,
        *,
        tokens: bool = True,
        last_block: str | Path | None = None,
        fingerprint: str | None = None,
    ) -> None:
        session = TritonSession(_connection(server), spec.ENCODER, fingerprint)
        load = (lambda: last_blocks.load(Path(last_block), session.fingerprint)) if last_block else None
        super().__init__(session, tokens=tokens, last_block=load)


class TritonDetector(ServedDetector):
    """`types.Detector`. server: a connection, or its URL. settings: None takes the kind that is served."""

    def __init__(self, server: TritonConnection | str, settings: DetectorSettings | None = None) -> None:
        super().__init__(TritonSession(_connection(server), spec.DETECTOR), settings)


class TritonSegmenter(ServedSegmenter):
    """`types.Segmenter`: SAM. server: a connection, or its URL."""

    def __init__(self, server: TritonConnection | str) -> None:
        held = _connection(server)
        super().__init__(
            TritonSession(held, spec.SEGMENTER_ENCODER), TritonSession(held, spec.SEGMENTER_DECODER)
        )


class TritonRuntime(Runtime):
    """All models of a server: `SoirIngestor(client, runtime=TritonRuntime("host:8001"))`.

    url: see `TritonConnection`, as are options. settings, last_block: see `Runtime`. fingerprint: the
    encoder weights that the server must have; None takes those it has (a collection refuses others anyway).
    """

    def __init__(
        self,
        url: str,
        settings: Settings | None = None,
        *,
        last_block: str | Path | None = None,
        fingerprint: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(settings, last_block=last_block)
        self.connection = TritonConnection(url, **options)
        self._fingerprint = fingerprint
        self._sessions: dict[str, TritonSession] = {}
        self._lock = threading.Lock()

    def session(self, name: str) -> TritonSession:
        with self._lock:
            if name not in self._sessions:
                wanted = self._fingerprint if name == spec.ENCODER else None
                self._sessions[name] = TritonSession(self.connection, name, wanted)
            return self._sessions[name]

    def close(self) -> None:
        """Ends its threads and the channel."""
        self.connection.close()


def _connection(server: TritonConnection | str) -> TritonConnection:
    return TritonConnection(server) if isinstance(server, str) else server


def _client(host: str, tls: Tls | None) -> Any:
    try:
        import tritonclient.grpc as grpc
    except ImportError as error:
        raise ConfigError(
            "serving from Triton needs its client: pip install 'soir-qdrant[triton]'"
        ) from error
    options: dict[str, Any] = {"channel_args": list(CHANNEL)}
    if tls:
        names = {"root_certificates": tls.root, "private_key": tls.key, "certificate_chain": tls.chain}
        files = {name: Path(file).expanduser() for name, file in names.items() if file}
        for file in files.values():
            if not file.is_file():
                raise ConfigError(f"Triton's TLS files: {file} is missing")
        options |= {"ssl": True} | {name: str(file) for name, file in files.items()}
    return grpc.InferenceServerClient(host, **options)
