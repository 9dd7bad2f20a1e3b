"""What `soir serve` can be told, checked when it starts. Imports no web framework."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from soir_qdrant.errors import ConfigError
from soir_qdrant.images.remote import is_store

MIN_TOKEN = 16  # characters
READ_STORED = ("stored", "codes", "objects", "none")  # rerankers that open no image and load no model


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Limits and permissions of one service.

    Args:
        host: address to listen on; any but this machine's own needs a token.
        port: 0 takes a free one.
        token: what a client must present, as a bearer token or once on the page; None lets everyone in.
        collections: names that may be used; None allows all.
        namespace: only its images exist for this service; None: the whole collection.
        vector_name: of our vector, in collections that have others; None: the unnamed one.
        roots: folders; only images below them are opened. None: any file that the collection names and
            whose content is still what was ingested.
        stores: addresses such as s3://bucket/photos; images of the collection that lie below one are opened. None are
            without it.
        writable: whether images may be added and deleted.
        uploads: folder that keeps images which clients add as files; None refuses those.
        allowed_hosts: further names by which browsers may call the service (the Host header).
        max_bytes: of one request, and of one stored file that is opened.
        max_pixels: width x height of the largest image that is decoded.
        queue: searches that may wait; the next ones get 503 with Retry-After.
        batch: waiting searches with equal options that are run as one.
        rate: requests a second, for each client, to what runs a model; 0 sets no limit.
        burst: requests that a client may make at once before `rate` holds.
        timeout: seconds for a request to arrive, and for its answer.
        rerankers: names that a search may ask for. Others than these open the images of hits wherever they lie, and
            run, or load, models for each search.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    collections: tuple[str, ...] | None = None
    namespace: str | None = None
    vector_name: str | None = None
    roots: tuple[Path, ...] | None = None
    stores: tuple[str, ...] = ()
    writable: bool = False
    uploads: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    queue: int = 32
    batch: int = 8
    rate: float = 5.0
    burst: int = 40
    timeout: float = 60.0
    rerankers: tuple[str, ...] = READ_STORED

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise ConfigError(
                f"the token has {len(self.token)} characters: take at least {MIN_TOKEN}, such as those of "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`"
            )
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host}: others could reach the images there; set a token (--token or SOIR_TOKEN) "
                "or listen on 127.0.0.1"
            )
        for name in ("max_bytes", "max_pixels", "queue", "batch", "burst"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.rate < 0 or self.timeout <= 0:
            raise ConfigError(f"rate {self.rate}, timeout {self.timeout}: at least 0, and more than 0")
        for store in self.stores:
            if not is_store(store):
                raise ConfigError(f"{store}: no address of an object store, such as s3://bucket/photos")
        for folder in (*(self.roots or ()), *([self.uploads] if self.uploads else ())):
            if not folder.is_dir():
                raise ConfigError(f"{folder} is no folder: make it, or name another")

    @property
    def folders(self) -> tuple[Path, ...] | None:
        """The folders whose images may be opened, links resolved; None for no such limit."""
        if self.roots is None:
            return None
        own = (self.uploads,) if self.uploads else ()
        return tuple(folder.resolve() for folder in (*self.roots, *own))


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
