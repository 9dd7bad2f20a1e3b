"""What a failed request means: it may pass by itself, it was refused, or there is something to put right."""

from __future__ import annotations

import json
import re
import sqlite3
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from soir_qdrant.errors import CollectionError, ServerError

_PASSING_GRPC = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
_PASSING_HTTP = (408, 425, 429)
_RETRY_AFTER = (
    "Retry-After header value is not a valid integer: "  # the client's error for seconds like 0.5, or a date
)


_NO_COLLECTION = re.compile("collection .+ not found$", re.IGNORECASE)  # as local mode and Edge say it
_FOREIGN = "the answer is not one of Qdrant: see that the URL is that of a Qdrant server"


class Refused(CollectionError):
    """The server (or local mode) understood a request and refused it; repeating it would not help.

    status: of HTTP, or None.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[Refused], tuple[str, int | None]]:
        return type(self), (str(self), self.status)


class Gone(ServerError):
    """The collection was there, and is no longer."""


class Unconfirmed(Exception):
    """A write was accepted, and the server does not say that it is done."""


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later: lost connections, timeouts, 408, 425, 429, 5xx, and
    what is no answer of Qdrant's, as proxies give while a server restarts."""
    if isinstance(error, Unconfirmed | json.JSONDecodeError) or retry_after(error) is not None:
        return True
    if is_certificate(error):
        return False
    if isinstance(error, UnexpectedResponse):
        status = error.status_code
        return status is not None and (status in _PASSING_HTTP or status >= 500 or _is_of_a_proxy(error))
    if isinstance(error, ResponseHandlingException):
        source = error.source
        if isinstance(source, ValidationError):
            return _is_no_json(source)
        passing = isinstance(source, httpx.TransportError | httpx.DecodingError)
        return passing and not isinstance(source, httpx.UnsupportedProtocol)
    return grpc_code(error) in _PASSING_GRPC


def _is_of_a_proxy(error: UnexpectedResponse) -> bool:
    """A redirect, as to a page to log in, or a page that says 404: Qdrant says it in JSON."""
    status, content = error.status_code or 0, error.content.strip()
    return 300 <= status < 400 or (status == 404 and content[:1] not in (b"", b"{"))


def retry_after(error: Exception) -> float | None:
    """The seconds that the server asks to wait, 0 or more; None where it does not. It may say so in seconds,
    whole or not, or as a date."""
    seconds = getattr(error, "retry_after_s", None)
    if seconds is not None:
        return float(seconds)
    text = str(error)
    if not text.startswith(_RETRY_AFTER):
        return None
    value = text.removeprefix(_RETRY_AFTER)
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def is_certificate(error: Exception) -> bool:
    """Whether TLS failed: a wrong certificate, or a server that speaks none."""
    if "CERTIFICATE_VERIFY_FAILED" in text_of(error):
        return True
    broken = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # the connection was lost
    return any(isinstance(cause, ssl.SSLError) and not isinstance(cause, broken) for cause in _causes(error))


def is_of_qdrant(error: Exception) -> bool:
    """Whether an error comes from a request, rather than from a mistake in this program."""
    kinds = (
        Unconfirmed,
        UnexpectedResponse,
        ResponseHandlingException,
        ValueError,
        AssertionError,
        OSError,
        sqlite3.Error,
    )
    return isinstance(error, kinds) or retry_after(error) is not None or bool(grpc_code(error))


def lasting(error: Exception, what: str) -> CollectionError | ServerError:
    """What to raise for an error that will not pass. what: the action in words."""
    if isinstance(error, CollectionError):
        return error
    if is_certificate(error):
        return ServerError(
            f"could not {what}: no secure connection ({text_of(error)}); see that the URL begins with https:// "
            "where the server has a certificate, and with http:// where it has none, and that this machine trusts it"
        )
    if isinstance(error, OSError | sqlite3.Error):
        return ServerError(
            f"could not {what}: {text_of(error)}; see that the folder is writable and has space"
        )
    if isinstance(error, AssertionError) and text_of(error).endswith("returned None"):
        return ServerError(f"could not {what}: {_FOREIGN} ({text_of(error)})")
    status = error.status_code if isinstance(error, UnexpectedResponse) else None
    code = grpc_code(error)
    if status in (401, 403) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(
            f"could not {what}: the server refuses this client ({text_of(error)}); give its API key"
        )
    if code == "NOT_FOUND":
        status = 404
    return Refused(f"could not {what}: {text_of(error)}", status)


def is_missing(error: Refused) -> bool:
    """Whether a request was refused since there is no such collection."""
    return error.status == 404 or bool(_NO_COLLECTION.match(str(error.__cause__ or error)))


def _is_no_json(error: ValidationError) -> bool:
    return any(part["type"] == "json_invalid" for part in error.errors())


def grpc_code(error: Exception) -> str:
    """The name of a gRPC error's code; "" for others."""
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""


def text_of(error: Exception) -> str:
    """What an error says, for a person."""
    if isinstance(error, ResponseHandlingException):
        return text_of(error.source)
    if isinstance(error, json.JSONDecodeError):
        return f"{_FOREIGN}: {error.doc[:80]!r}"
    if isinstance(error, ValidationError) and _is_no_json(error):
        return f"the answer is cut off, or {_FOREIGN}"
    if isinstance(error, UnexpectedResponse):
        content = error.content.decode(errors="replace")[:500]
        return f"{error.status_code} {error.reason_phrase}: {content}"
    if grpc_code(error):
        details = getattr(error, "details", None)
        return f"{grpc_code(error)}: {details() if callable(details) else error}"
    return str(error) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it wraps, and what raised it."""
    while error is not None:
        yield error
        if isinstance(error, ResponseHandlingException):
            yield from _causes(error.source)
        error = error.__cause__ or error.__context__
