"""http and https: only where they are allowed, and never, unless that is allowed too, to private addresses.

A name is looked up once, and what was checked is what is connected to; redirects are checked like the first
address. Proxies of the environment are not used.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin

import httpcore

from soir_qdrant.errors import ImageError

CONNECT, READ, TOTAL = 10.0, 30.0, 300.0  # seconds
REDIRECTS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet; addresses that stand for another one count as that."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        behind = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            behind = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if behind is not None:
            return is_public(str(behind))
    return ip.is_global and not ip.is_multicast


class _Checked(httpcore.SyncBackend):
    """Connects to addresses that were checked."""

    def __init__(self, private: bool) -> None:
        self.private = private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        if not self.private and not all(map(is_public, addresses)):
            raise ImageError(f"{host} is an address of a private network, which is not read by default")
        error: Exception = OSError(f"{host} has no address")
        for address in sorted(addresses):
            try:
                return super().connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as refused:
                error = refused
        raise error

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise ImageError("sockets are not read")


def download(url: str, *, private: bool, max_bytes: int) -> bytes:
    """The content of an address, at most max_bytes + 1 of it.

    Raises:
        ImageError: for a private address, an answer that is no success, or one that takes too long.
        OSError, httpcore's errors: where it cannot be reached.
    """
    end = time.monotonic() + TOTAL
    limits = {"connect": CONNECT, "read": READ, "write": READ, "pool": CONNECT}
    with httpcore.ConnectionPool(network_backend=_Checked(private)) as pool:
        for _ in range(REDIRECTS + 1):
            with pool.stream("GET", url, extensions={"timeout": limits}) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    named = [value for name, value in answer.headers if name.lower() == b"location"]
                    if not named:
                        raise ImageError(f"the server answered {answer.status}, and names no other place")
                    url = urljoin(url, named[0].decode("latin-1"))
                    if url.partition(":")[0].lower() not in ("http", "https"):
                        raise ImageError("it is redirected to what is not http")
                    continue
                if answer.status != 200:
                    raise ImageError(f"the server answered {answer.status}")
                content = bytearray()
                for part in answer.iter_stream():
                    content += part
                    if len(content) > max_bytes:
                        break
                    if time.monotonic() > end:
                        raise ImageError(f"it took more than {TOTAL:.0f} s")
                return bytes(content)
        raise ImageError(f"it is redirected more than {REDIRECTS} times")
