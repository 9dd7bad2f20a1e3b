"""One process of the service under uvicorn, and its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from soir_qdrant.errors import ConfigError
from soir_qdrant.service.settings import ServiceSettings

HEADER_SECONDS = 15.0  # for the head of a request to arrive


class PatientForAWhile(H11Protocol):
    """uvicorn's protocol, which closes a connection whose next request has no complete head in time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # one for each connection
        self._since = self.loop.time()
        self._watch = self.loop.call_later(HEADER_SECONDS, self._check)

    def _check(self) -> None:
        """Closes the connection where it has been without a request for too long."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._since = self.loop.time()
        left = self._since + HEADER_SECONDS - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(left + 0.01, self._check)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """A server that tells the app at once when it is to stop, so that open event streams end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        app: Any = self.config.app
        app.state.backend.stopping.set()
        super().handle_exit(sig, frame)


def run(app: FastAPI, settings: ServiceSettings, announce: Callable[[str], None]) -> None:
    """Listen until SIGTERM or SIGINT; then answer what is open, for 20 s at most.

    Args:
        app: of `create_app`.
        settings: the address.
        announce: called with the page's address once connections are taken.

    Raises:
        ConfigError: where the address cannot be listened on.
    """
    socket_ = listener(settings)
    host, port = socket_.getsockname()[:2]
    announce(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    if os.getpid() == 1:  # of a container: uvicorn, once it has stopped, sends itself the signal again
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Server(configuration(app)).run(sockets=[socket_])


def configuration(app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs the app: with bounds on heads, connections and the time of a stop."""
    return uvicorn.Config(
        app,
        http=PatientForAWhile,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=20,
        limit_concurrency=400,
        h11_max_incomplete_event_size=32_768,
    )


def listener(settings: ServiceSettings) -> socket.socket:
    """A socket at the address of the settings; uvicorn's own would exit with its own message."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket_ = socket.socket(family, kind, protocol)
        socket_.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket_.bind(address)
        socket_.listen(256)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror or error}): "
            "take another with --port, or 0 for a free one"
        ) from error
    return socket_
