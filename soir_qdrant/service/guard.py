"""Around every request: an id, who may come in, how much and how long, headers, a line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from soir_qdrant.service.access import Access, Rates
from soir_qdrant.service.metrics import Metrics
from soir_qdrant.service.problems import Refusal, problem
from soir_qdrant.service.settings import ServiceSettings, is_loopback

log = logging.getLogger(__name__)
OPEN = ("/", "/healthz", "/readyz", "/v1/session", "/openapi.json", "/favicon.ico")  # need no token
_COSTLY = re.compile(
    r"^/v1/(collections/[^/]+/(search|map|duplicates)|(collections/[^/]+/)?images/[^/]+/(heat|mask)|objects|session)$"
)
_ADDRESS = re.compile(r"[\d.]+|\[[0-9a-fA-F:.]+\]")
PROBES = ("/healthz", "/readyz")
_SAFE = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"^[\w.-]{8,64}$")
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
SECURITY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware with all that is the same for every route."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, access: Access) -> None:
        self.app, self.settings, self.metrics, self.access = app, settings, metrics, access
        self.costly = Rates(settings.rate, settings.burst)
        self.names = {settings.host, *settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, start, status = Headers(scope=scope), time.perf_counter(), 500
        sent = headers.get("x-request-id", "")
        scope["soir_request_id"] = sent if _REQUEST_ID.match(sent) else secrets.token_hex(8)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(message, scope)
            await send(message)

        try:
            self._admit(scope, headers)
            await self.app(scope, self._limited(receive, headers), answer)
        except Refusal as refusal:
            response = problem(
                refusal.status_code, refusal.detail, scope["soir_request_id"], dict(refusal.headers or {})
            )
            await response(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.observe_request(route, scope["method"], status, seconds)
            path = scope["path"].encode("unicode_escape").decode()[:200]
            log.info(
                "%s %s %s %d %.0f ms", scope["soir_request_id"], scope["method"], path, status, 1000 * seconds
            )

    def _mark(self, message: Message, scope: Scope) -> None:
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = scope["soir_request_id"]
        for name, value in SECURITY.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Raises Refusal for a request that may not come in."""
        path, client = scope["path"], (scope.get("client") or ("unknown", 0))[0]
        if path not in PROBES and not self._is_own_name(headers.get("host", "")):
            raise Refusal(
                421,
                f"{headers.get('host', '')[:80]!r} is no name of this service: allow it with --allow-host",
            )
        if scope["method"] not in _SAFE and not _same_site(headers):
            raise Refusal(403, "a request from another site: open the page of this service itself")
        if path not in OPEN and not path.startswith("/page/"):
            self._refuse_without_token(headers, client)
        if _COSTLY.match(path):
            wait = self.costly.wait(client, time.monotonic())
            if wait > 0:
                after = {"Retry-After": str(max(1, round(wait)))}
                raise Refusal(429, f"too many requests: try again in {after['Retry-After']} s", after)

    def _is_own_name(self, host: str) -> bool:
        """Whether a Host header names this service: a name that another site points here does not. Addresses
        cannot be pointed elsewhere."""
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        return name in self.names or is_loopback(name) or bool(_ADDRESS.fullmatch(name))

    def _refuse_without_token(self, headers: Headers, client: str) -> None:
        if self.access.allows(headers):
            return
        if "authorization" in headers and self.access.too_many_wrong(client):
            raise Refusal(429, "too many wrong tokens: wait a minute", {"Retry-After": "60"})
        detail = "this service needs its token: send it as `Authorization: Bearer TOKEN`"
        raise Refusal(401, detail, {"WWW-Authenticate": "Bearer"})

    def _limited(self, receive: Receive, headers: Headers) -> Receive:
        """A `receive` that lets in so many bytes, in so many seconds."""
        length = headers.get("content-length", "0")
        limit, deadline, received = self.settings.max_bytes, time.monotonic() + self.settings.timeout, 0
        if length.isdecimal() and int(length) > limit:
            raise Refusal(
                413, f"the request has {int(length):,} bytes, more than the {limit:,} that are taken"
            )

        over = False

        async def limited() -> Message:
            nonlocal received, over
            if over:  # the body is in: what comes now is that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise Refusal(
                    408, f"the request did not arrive within {self.settings.timeout:.0f} s"
                ) from None
            received += len(message.get("body", b""))
            over = not message.get("more_body", False)
            if received > limit:
                raise Refusal(413, f"the request has more than the {limit:,} bytes that are taken")
            return message

        return limited


def _same_site(headers: Headers) -> bool:
    """Whether a request that changes or costs something comes from the page itself, or from no browser."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")
