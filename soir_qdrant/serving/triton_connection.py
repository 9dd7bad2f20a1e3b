"""One gRPC channel to an NVIDIA Triton: what passes by itself is tried again, the rest is a clear error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soir_qdrant.errors import ConfigError, ServerError
from soir_qdrant.models.forked import Owner
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.serving.session import InputRefused, T, U
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
ATTEMPTS = 14  # with the waits between them about 100 s: a restart
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
        self.retry = retry or Retry()
        self.attempts = self.retry.attempts or ATTEMPTS
        self.headers = dict(headers or {})
        self._owner = Owner(f"the channel to Triton at {self.host}")
        in_clear = not tls and scheme != "grpcs" and name not in ("localhost", "127.0.0.1", "[::1]")
        if in_clear and any(key.lower() == "authorization" for key in self.headers):
            log.warning("%s: the token goes to Triton unencrypted; give grpcs:// or tls=", self.host)
        self._client = _client(self.host, tls or (Tls() if scheme == "grpcs" else None))
        self.sent = self.received = 0  # bytes of inputs and outputs
        self._counting = threading.Lock()
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

    def count(self, sent: int, received: int) -> None:
        """Add the bytes of a request's inputs and outputs to what `sent` and `received` say."""
        with self._counting:
            self.sent += sent
            self.received += received

    def serves(self, name: str) -> bool:
        """Whether the server has a model of that name. Raises ServerError where it does not answer."""
        try:
            self.call(f"find {name}", "get_model_config", name)
        except NotServed:
            return False
        return True

    def call(
        self, what: str, method: str, *args: Any, lost: Callable[[], None] | None = None, **kw: Any
    ) -> Any:
        """A method of tritonclient's client, tried again while its errors are passing ones.

        what: the action in words, for messages. lost: called before a further attempt. Raises ServerError.
        """
        from tritonclient.utils import InferenceServerException

        self._owner.check()
        timeouts = 0
        for attempt in range(1, self.attempts + 1):
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
                if not passing or attempt == self.attempts:
                    tried = timeouts if status == "DEADLINE_EXCEEDED" else attempt
                    raise self._error(what, status, error.message(), tried) from error
                wait = self.retry.wait(attempt)
                log.warning("could not %s, next attempt in %.1f s: %s", what, wait, error.message())
                time.sleep(wait)
        raise ConfigError(f"attempts must be at least 1, not {self.attempts}")

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
        if status == "INVALID_ARGUMENT":
            return InputRefused(f"{where}: {message}")
        return ServerError(f"{where}: {status or 'error'}: {message}")


class NotServed(ServerError):
    """The server answers, and has no such model."""


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
