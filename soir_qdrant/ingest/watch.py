"""A collection kept in step with a folder for as long as the program runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from soir_qdrant.errors import ConfigError, ImageError, ServerError
from soir_qdrant.ingest.sync import SyncReport

log = logging.getLogger(__name__)
TICK = 1000  # milliseconds between looks at the clock
MAX_WAIT = 60_000  # milliseconds that changes in a row are waited for


def keep_in_step(
    sync: Callable[[], SyncReport],
    folder: Path,
    *,
    settle: float = 2.0,
    again: float = 30.0,
    stop: threading.Event | None = None,
    on_report: Callable[[SyncReport], None] = lambda _: None,
) -> None:
    """Sync at once, so that what happened while nobody watched is made up for, and after every change.

    Args:
        sync: one pass over the folder.
        folder: what is watched.
        settle: seconds without a change before a pass: files that are being written are waited for.
        again: seconds before the next try, where the server is lost or the folder is not there.
        stop: ends it, once set; None: nothing does but an interrupt.
        on_report: called with the report of each pass.

    Raises:
        ConfigError: where the package watchfiles is missing; and as `sync` does.
    """
    try:
        from watchfiles import watch
    except ImportError as error:
        raise ConfigError(
            "watching a folder needs the package watchfiles: pip install 'soir-qdrant[watch]'"
        ) from error
    stop = stop or threading.Event()
    due: float | None = 0.0  # when the next pass is to be, whatever happens
    while not stop.is_set():
        try:
            for changes in watch(
                folder,
                step=round(settle * 1000),
                debounce=MAX_WAIT,
                rust_timeout=TICK,
                yield_on_timeout=True,
                stop_event=stop,
            ):
                if changes or (due is not None and time.monotonic() >= due):
                    due = None if _passed(sync, on_report) else time.monotonic() + again
        except FileNotFoundError:
            log.warning("%s is not there; next try in %.0f s", folder, again)
            due = 0.0
            stop.wait(again)


def _passed(sync: Callable[[], SyncReport], on_report: Callable[[SyncReport], None]) -> bool:
    try:
        on_report(sync())
    except (ImageError, ServerError) as error:
        log.warning("%s", error)
        return False
    return True
