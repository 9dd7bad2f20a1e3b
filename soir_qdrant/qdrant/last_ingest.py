"""What became of a collection's last ingest, in the collection's own metadata: any process may look at it.

Servers before 1.16, and clients of that time, keep no metadata: nothing is remembered there.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from qdrant_client.client_base import QdrantBase

from soir_qdrant.errors import SoirError
from soir_qdrant.qdrant.collection import Store
from soir_qdrant.qdrant.transport import Retry
from soir_qdrant.types import Failure

log = logging.getLogger(__name__)
KEY = "soir_ingest"  # in the metadata; beside "soir", which the fingerprint has to itself
MAX_NAMED, MAX_REASON = 200, 300  # failures that are kept, characters of each
_RETRY = Retry(attempts=2)


def remember(
    store: Store,
    counts: Mapping[str, int],
    failed: Sequence[Failure],
    left_out: Sequence[str] = (),
    failures: int | None = None,
) -> None:
    """Put it in the place of the one before. A run that is over does not fail for this: it is logged.

    Args:
        store: the collection that was filled; each namespace has a record of its own.
        counts: such as {"added": 3, "skipped": 9}.
        failed: with reasons; the first MAX_NAMED are kept.
        left_out: of a folder; the first MAX_NAMED are kept.
        failures: how many failed, where `failed` has the first of them alone.
    """
    if "metadata" not in inspect.signature(store.client.update_collection).parameters:
        return
    record = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": dict(counts),
        "failures": len(failed) if failures is None else failures,
        "failed": [{"name": one.name, "reason": one.reason[:MAX_REASON]} for one in failed[:MAX_NAMED]],
        "left_out": list(left_out[:MAX_NAMED]),
    }
    try:
        update = store.client.update_collection
        store.call("remember the last ingest of", update, metadata={_key(store.namespace): record})
    except SoirError as error:
        log.warning("%s", error)


def recall(client: QdrantBase, collection: str, namespace: str | None) -> dict[str, Any] | None:
    """The record that `remember` wrote last, or None where there is none."""
    info = _RETRY(lambda: client.get_collection(collection), f"look into collection {collection!r}")
    metadata = getattr(info.config, "metadata", None) or {}
    record: dict[str, Any] | None = metadata.get(_key(namespace))
    return record


def _key(namespace: str | None) -> str:
    return f"{KEY}:{namespace}" if namespace else KEY
