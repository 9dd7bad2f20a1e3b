"""Who may come in: the token, its cookie, and how often a client may call."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

COOKIE = "soir_session"
WRONG_RATE, WRONG_BURST = 0.1, 10  # wrong tokens of one client: a second, at once


class Rates:
    """A token bucket for each client.

    Args:
        rate: requests a second; 0 sets no limit.
        burst: requests at once.
        max_clients: that are remembered.
    """

    def __init__(self, rate: float, burst: int, max_clients: int = 10_000) -> None:
        self.rate, self.burst, self.max_clients = rate, burst, max_clients
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> requests left, since

    def wait(self, client: str, now: float) -> float:
        """Seconds until this client's request is allowed; 0: it is, and counts."""
        if not self.rate:
            return 0.0
        left, since = self._left.pop(client, (float(self.burst), now))
        left = min(self.burst, left + (now - since) * self.rate)
        allowed = left >= 1
        self._left[client] = (left - 1 if allowed else left, now)
        if len(self._left) > self.max_clients:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate


class Access:
    """The token of a service; None lets everyone in."""

    def __init__(self, token: str | None) -> None:
        self.token = token
        self._wrong = Rates(WRONG_RATE, WRONG_BURST)

    def allows(self, headers: Headers) -> bool:
        """Whether a request carries the token, or the cookie of a page that presented it."""
        if self.token is None:
            return True
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.knows(sent):
            return True
        return _equal(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""), self.session())

    def knows(self, token: str) -> bool:
        """Whether this is the token."""
        return self.token is not None and _equal(token, self.token)

    def session(self) -> str:
        """What the cookie holds: made of the token, but not the token itself."""
        return hmac.new((self.token or "").encode(), b"soir session", hashlib.sha256).hexdigest()

    def too_many_wrong(self, client: str) -> bool:
        """Count a wrong token of this client; whether it has sent too many lately."""
        return self._wrong.wait(client, time.monotonic()) > 0


def _equal(sent: str, own: str) -> bool:
    return hmac.compare_digest(sent.encode(), own.encode())
